"""Layer error, stored bits and seconds of every weight method, beside rounding to nearest.

    python experiments/method_errors.py [LAYER] [METHOD ...]

One decoder layer of the embedded model (default: number 8), calibrated on 16 x 512 tokens. The
error is tr(dW H dW^T) / tr(W H W^T) in thousandths, the mean of the layer's linears, and everything
that is stored is counted. One JSON line a variant. SqueezeLLM's Fisher information takes a pass
over the whole model. Processor time is of one thread, the first of a method with its compilation.
"""

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ptsearch.config import CalibrationConfig, ModelConfig
from ptsearch.models import base_model, layers, loading
from ptsearch.models.checkpoint import Tensors
from ptsearch.pool import calibration as calibrations
from ptsearch.pool import fisher, layerwise, writer
from ptsearch.quantize import METHODS, solve
from ptsearch.quantize.layer import Layer, LayerResult
from ptsearch.variant import Variant, expand_pool

ROWS: list[dict[str, Any]] = [
    {"method": "rtn", "bits": [2, 3, 4, 8], "group_size": [32, 64], "sym": False},
    {"method": "gptq", "bits": [2, 3, 4, 8], "sym": False, "actorder": "static"},
    {"method": "nested", "bits": [3, 4, 8]},
    {"method": "hqq", "bits": [2, 3, 4, 8]},
    {"method": "squeezellm", "bits": [2, 3, 4]},
    {"method": "qtip", "bits": [2, 3, 4]},
]


def main(number: int, methods: list[str]) -> None:
    torch.set_num_threads(1)
    base = base_model.prepare(ModelConfig(), Path("mlruns/cache"), lambda *_: None)
    calibration = calibrations.read(CalibrationConfig(samples=16))
    rows = [row for row in ROWS if not methods or row["method"] in methods]
    defaults = {"group_size": 64, "damp_percent": 0.05}
    dense = Variant(base.name, base.revision)
    variants = expand_pool(dense, rows, defaults, calibration.identity)
    tokenizer = loading.load_tokenizer(base.path)
    chunks = calibrations.chunks(tokenizer, calibration.fitted, calibration.length)
    tokens = chunks[calibrations.draw(len(chunks), calibration.samples, 0)]

    read = Tensors(base.path).under
    seeds = {0: list(range(len(tokens)))}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {}
        if any("gradients" in METHODS[variant.method].needs for variant in variants):
            folders[0] = Path(scratch)
            fisher.measure(base, tokens, folders[0], lambda *_: None)

        def visit(layer: Layer) -> dict[str, Tensor]:
            if layer.number == number:
                show(layer._replace(fisher=fisher.read(folders, number)), variants)
                raise SystemExit
            return {}

        layerwise.walk(
            read,
            layers.skeleton(base.path, base.trust_remote_code),
            layerwise.Samples(tokens, seeds),
            visit,
        )


def show(layer: Layer, variants: list[Variant]) -> None:
    for variant in variants:
        solved = [part for job in solve.jobs(layer, [variant], []) for _, part in job.solve()]
        errors, stored, weights = [], 0, 0
        for slot, names in enumerate(layer.inputs):
            for name in names:
                W = layer.stored[f"{name}.weight"].float()
                found = _of(solved, name)
                H = layer.moments[slot][0].H
                errors.append(1000 * _energy(found.dense() - W, H) / _energy(W, H))
                held = writer.tensors(name, found, variant)
                stored += sum(t.nbytes for key, t in held.items() if not key.endswith("_shape"))
                weights += W.numel()
        row = {
            "variant": variant.label,
            "bits": round(8 * stored / weights, 2),
            "error": float(f"{mean(errors):.3g}"),
            "cpu_s": round(sum(part.cpu_seconds for part in solved), 1),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def _of(solved: list[LayerResult], name: str) -> Any:
    return next(part.quantized[name] for part in solved if name in part.quantized)


def _energy(W: Tensor, H: Tensor) -> float:
    return ((W @ H) * W).sum().item()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8, sys.argv[2:])
