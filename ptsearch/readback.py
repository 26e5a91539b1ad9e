"""A built variant is read back, measured and described before it may vote."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ptsearch import calibration as calibrations
from ptsearch import models, store
from ptsearch.calibration import Calibration
from ptsearch.engine import runtime
from ptsearch.models import BaseModel
from ptsearch.quantize import checkpoint
from ptsearch.variant import DENSE_WEIGHTS, Variant

PERPLEXITY_SAMPLES = 8
PERPLEXITY_LENGTH = 256


@dataclass
class Work:
    """One variant while it is built."""

    variant: Variant
    folder: Path  # becomes the variant's folder when `finish` is called
    finish: Callable[[], None]
    writer: checkpoint.Writer | None = None
    cpu_seconds: float = 0.0  # of this variant alone, beside what the pass costs all
    damp_raised: dict[str, float] = field(default_factory=dict)  # linear -> damping it needed
    to_nearest: list[str] = field(default_factory=list)  # linears that calibration hardly reached
    drawn: list[int] = field(default_factory=list)  # calibration samples, by index
    coded: dict[str, dict[str, Any]] = field(default_factory=dict)  # linear -> kind, bits, shape
    gradient_seconds: float = 0.0  # processor time of the pass for gradients, shared by a seed
    runtime: dict[str, Tensor] = field(default_factory=dict)  # what rounds while it runs
    no_room: bool = False  # on the disk


def check(
    base: BaseModel,
    work: Work,
    calibration: Calibration,
    dense_folder: Path,
    max_ratio: float,
    seconds: float,
) -> None:
    """Read the checkpoint back, measure its perplexity and write meta.json."""
    variant = work.variant
    folder = work.folder
    if variant.method in DENSE_WEIGHTS:
        folder = Path(dict(variant.method_args).get("path", base.path))
    table = work.writer.table if work.writer else checkpoint.table_of(folder)
    model, tokenizer = models.load(folder)
    if work.runtime:
        save_file(work.runtime, work.folder / runtime.TENSORS)
        table = table | checkpoint.table_of(work.folder, runtime.TENSORS)
    asked = runtime.of_variant(variant, work.folder)
    runtime.apply(model, runtime.linear_names(model), asked, packed=False)
    how = (PERPLEXITY_LENGTH, calibration.rendering)
    held_out = calibrations.chunks(tokenizer, calibration.held_out, *how)
    sums = [tensor.sum(dtype=torch.float32).item() for tensor in model.parameters()]
    finite = all(map(math.isfinite, sums))
    value = perplexity(model, held_out[:PERPLEXITY_SAMPLES])
    dense = value
    if variant.method != "none":
        dense = models.read_json(dense_folder / models.META)["perplexity"]
    meta = {
        "variant": asdict(variant),
        "label": variant.label,
        "checkpoint": "." if folder == work.folder else str(folder.resolve()),
        "trust_remote_code": base.trust_remote_code,
        "tensors": table,
        "tensor_bytes": sum(tensor["bytes"] for tensor in table.values()),
        "kv": runtime.kv_stored(model, asked),
        "perplexity": value if math.isfinite(value) else None,
        "dense_perplexity": dense,
        "degenerate": not finite or not value <= max_ratio * dense,
        "damp_raised": work.damp_raised,
        "rounded_to_nearest": work.to_nearest,
        "seconds": seconds,
        "cpu_seconds": work.cpu_seconds,
        "gradient_cpu_seconds": work.gradient_seconds,
        "calibration_indices": work.drawn,
        "versions": {name: version(name) for name in _packages(variant)},
    }
    text = json.dumps(meta, indent=1)
    (work.folder / models.META).write_text(text, encoding="utf-8")


def join_phases(work: Work, folders: Sequence[Path]) -> None:
    """meta.json of a variant whose replies have two phases: of prompts it is the first one."""
    if not all(map(store.is_whole, folders)):
        raise store.FullDiskError(f"{work.variant.label}: there was no room for its two models")
    first, later = (models.read_json(folder / models.META) for folder in folders)
    tensors = first["tensors"] | {f"later.{name}": t for name, t in later["tensors"].items()}
    stored = {tensor["sha256"]: tensor["bytes"] for tensor in tensors.values()}
    meta = first | {
        "variant": asdict(work.variant),
        "label": work.variant.label,
        "checkpoint": str(Path("..", folders[0].name)),
        "tensors": tensors,
        "tensor_bytes": sum(stored.values()),
        "degenerate": first["degenerate"] or later["degenerate"],
    }
    (work.folder / models.META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def perplexity(model: Any, chunks: Tensor) -> float:
    """exp of the mean negative log-likelihood of chunks (n, length), first tokens left out."""
    total = 0.0
    with torch.inference_mode():
        for ids in chunks.split(4):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
            ).item()
    mean = total / chunks[:, 1:].numel()
    return math.exp(mean) if mean < 700 else math.inf


def _packages(variant: Variant) -> list[str]:
    backend = [] if variant.backend == "native" else [variant.backend]
    return ["torch", "transformers", "compressed-tensors", *backend]
