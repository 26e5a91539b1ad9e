"""A built variant is read back, measured and described before it may vote."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ptsearch import store
from ptsearch.engine import fake_quant as runtime
from ptsearch.engine import memory
from ptsearch.engine.fake_quant import Runtime
from ptsearch.models import checkpoint, gguf_file, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.layers import fill_around, forwards, give_back, layers_of, linears_of, skeleton
from ptsearch.pool import calibration as calibrations
from ptsearch.pool import layerwise
from ptsearch.pool.calibration import Calibration
from ptsearch.pool.layerwise import Samples
from ptsearch.pool.variant_build import VariantBuild
from ptsearch.pool.writer import table_of
from ptsearch.quantize.layer import Layer
from ptsearch.store import VariantMeta
from ptsearch.variant import Variant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PERPLEXITY_SAMPLES = 8
PERPLEXITY_LENGTH = 256
ROWS = 64  # of logits that are in memory as fp32
ROOM = 1.5  # of a model's dense weights, to load a variant whole


class Check(NamedTuple):
    """How the variants of a pool are checked."""

    base: BaseModel
    calibration: Calibration
    dense_folder: Path  # where the dense model's perplexity is found
    max_ratio: float  # of perplexity to the dense model's; a variant beyond it is degenerate
    seconds: float  # wall time of the pool


def check(build: VariantBuild, how: Check) -> VariantMeta:
    """Read the checkpoint back and measure its perplexity."""
    variant, base, folder = build.variant, how.base, build.folder
    if build.method.dense and not (folder / gguf_file.NAME).is_file():
        folder = Path(dict(variant.method_args).get("path", base.path))
    tensors = table_of(folder) | table_of(build.folder)
    asked = runtime.of_variant(variant, build.folder)
    tokenizer = loading.load_tokenizer(base.path, base.trust_remote_code)
    cut = (PERPLEXITY_LENGTH, how.calibration.rendering)
    chunks = calibrations.chunks(tokenizer, how.calibration.held_out, *cut)[:PERPLEXITY_SAMPLES]
    whole = variant.method == "path" or variant.kv_bits != 16 or _fits(base)
    read = _read_whole if whole else _read_by_layers
    value, finite = read(base, folder, asked, chunks)
    memory.collect(base.path)
    give_back()
    dense = value
    if variant.method != "none":
        dense = store.read_meta(how.dense_folder).perplexity or math.nan
    notes = build.notes()
    return VariantMeta(
        variant,
        variant.label,
        checkpoint="." if folder == build.folder else str(folder.resolve()),
        trust_remote_code=base.trust_remote_code,
        tensors=tensors,
        tensor_bytes=sum(tensor.bytes for tensor in tensors.values()),
        types=gguf_file.read(file).types if (file := folder / gguf_file.NAME).is_file() else {},
        read_back="whole" if whole else "layer by layer",
        perplexity=value if math.isfinite(value) else None,
        dense_perplexity=dense if math.isfinite(dense) else None,
        degenerate=not finite or not value <= how.max_ratio * dense,
        damp_raised={name: damp for n in notes for name, damp in n.damp_raised.items()},
        rounded_to_nearest=[name for n in notes for name in n.rounded_to_nearest],
        seconds=how.seconds,
        cpu_seconds=build.cpu_seconds + sum(n.cpu_seconds for n in notes),
        gradient_cpu_seconds=build.gradient_cpu_seconds,
        calibration_indices=build.calibration_indices,
        versions={name: version(name) for name in _packages(variant)},
    )


def joined_meta(build: VariantBuild, folders: Sequence[Path]) -> VariantMeta:
    """Of a variant whose replies have two phases; prompts are read by the first."""
    if not all(map(store.is_whole, folders)):
        raise store.FullDiskError(f"{build.variant.label}: there was no room for its two models")
    first, later = map(store.read_meta, folders)
    tensors = first.tensors | {f"later.{name}": t for name, t in later.tensors.items()}
    sizes = {tensor.sha256: tensor.bytes for tensor in tensors.values()}
    return replace(
        first,
        variant=build.variant,
        label=build.variant.label,
        checkpoint=str(Path("..", folders[0].name)),
        tensors=tensors,
        tensor_bytes=sum(sizes.values()),
        degenerate=first.degenerate or later.degenerate,
    )


def perplexity(model: "PreTrainedModel", chunks: Tensor) -> float:
    """exp of the mean negative log-likelihood of chunks (n, length), first tokens left out."""
    return _perplexity([_loss(model, ids) for ids in chunks.split(1)])


class Measured(NamedTuple):
    """What reading a checkpoint back found."""

    perplexity: float
    finite: bool  # all of its tensors


def _fits(base: BaseModel) -> bool:
    """Whether a variant can be loaded whole: its dense weights, and what is made into them."""
    needed = memory.weights(base.path, base.trust_remote_code) * loading.compute_dtype().itemsize
    return ROOM * needed < memory.available("cpu")


def _read_whole(base: BaseModel, folder: Path, asked: Runtime, chunks: Tensor) -> Measured:
    """As transformers loads it, in the dtype that this machine computes in."""
    model, _ = loading.load(folder, loading.dtype_name(loading.compute_dtype()))
    runtime.apply(model, linears_of(model), asked)
    finite = all(map(_is_finite, model.parameters()))
    return Measured(perplexity(model, chunks), finite)


def _read_by_layers(base: BaseModel, folder: Path, asked: Runtime, chunks: Tensor) -> Measured:
    """The same by transformers' layers, of which one is in memory."""
    model = skeleton(base.path, base.trust_remote_code)
    _, layers = layers_of(model)
    runtime.apply(model, linears_of(model), asked)
    finite = True

    def look(layer: Layer) -> dict[str, Tensor]:
        nonlocal finite
        finite = finite and all(map(_is_finite, layer.stored.values()))
        return {}

    read = partial(checkpoint.dense, folder, names=checkpoint.tensors_of(model, base.path).names)
    hidden = layerwise.walk(read, model, Samples(chunks), look)
    fill_around(read, model, "", layers)
    model.tie_weights()
    losses = []
    for ids, X in zip(chunks.split(1), hidden.split(1), strict=True):
        with forwards(layers, lambda *_, _X=X, **__: _X):
            losses.append(_loss(model, ids))
    return Measured(_perplexity(losses), finite)


def _is_finite(tensor: Tensor) -> bool:
    return math.isfinite(tensor.sum(dtype=torch.float32).item())


def _loss(model: "PreTrainedModel", ids: Tensor) -> float:
    """Mean negative log-likelihood of one chunk (1, length)."""
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        parts = zip(logits.split(ROWS), ids[0, 1:].split(ROWS), strict=True)
        losses = [cross_entropy(rows.float(), told, reduction="sum") for rows, told in parts]
        return torch.stack(losses).sum().item() / len(logits)


def _perplexity(losses: list[float]) -> float:
    mean = sum(losses) / len(losses)
    return math.exp(mean) if mean < 700 else math.inf


def _packages(variant: Variant) -> list[str]:
    backend = [] if variant.backend == "native" else [variant.backend]
    return ["torch", "transformers", "compressed-tensors", *backend]
