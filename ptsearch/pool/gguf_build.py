"""Builds GGUF variants: by llama.cpp's quantizer, or of a file that is there."""

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ptsearch.models import gguf_file, gguf_weights
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import tensors_of
from ptsearch.models.layers import skeleton
from ptsearch.pool import layerwise, one_pass
from ptsearch.pool.calibration import Calibration
from ptsearch.pool.variant_build import VariantBuild, alone
from ptsearch.quantize import gguf
from ptsearch.quantize.layer import Layer
from ptsearch.shared import Report


def build(
    base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration, report: Report
) -> None:
    """Quantize the base model's GGUF, which is written once, to each variant's type."""
    for each in builds:
        each.method.check_available()
    source = builds[0].scratch / "base.gguf"
    gguf_weights.write(base.path, source, "bfloat16", base.trust_remote_code)
    importance = _importance(base, builds, calibration)
    for done, each in enumerate(builds):
        report("quantizing with llama.cpp", done, len(builds))
        with alone(each):
            started = time.process_time()
            columns, out = importance[each.variant.seed], each.folder / gguf_file.NAME
            gguf.quantize(source, out, dict(each.variant.method_args)["type"], columns)
            each.write_config(base, [])
            each.cpu_seconds = time.process_time() - started
    source.unlink()


def link(base: BaseModel, build: VariantBuild) -> None:
    """A checkpoint of a ready-made file, which stays where it is."""
    place = build.folder / gguf_file.NAME
    place.unlink(missing_ok=True)
    place.symlink_to(Path(dict(build.variant.method_args)["path"]))
    build.write_config(base, [])


def _importance(
    base: BaseModel, builds: Sequence[VariantBuild], calibration: Calibration
) -> dict[int, dict[str, Tensor]]:
    """Seed -> tensor in a GGUF -> second moments of its input's columns (in,)."""
    samples = one_pass.draw(base, builds, calibration)
    model = skeleton(base.path, base.trust_remote_code)
    found: dict[int, dict[str, Tensor]] = {seed: {} for seed in samples.seeds}

    def visit(layer: Layer) -> dict[str, Tensor]:
        for linears, moments in zip(layer.inputs, layer.moments, strict=True):
            for seed, seen in moments.items():
                for name in linears:
                    stored = gguf_weights.in_gguf(f"{name}.weight")
                    found[seed][stored] = seen.H.diagonal().clone()
        return {}

    layerwise.walk(tensors_of(model, base.path).under, model, samples, visit)
    return found
