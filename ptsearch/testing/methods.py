"""Laws of a quantization method, checked on variants of a tiny random model."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ptsearch import store
from ptsearch.models import base_model, layers, loading
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration
from ptsearch.quantize import METHODS, Method
from ptsearch.testing.tiny_model import write_tiny_model
from ptsearch.variant import Variant, expand_pool

TEXT = "\n".join(f"Line {n}: {n * n} little foxes jump over {n} dogs." for n in range(400))
CALIBRATION = Calibration(TEXT, samples=4, length=64)
PASSES = ("first", "second")
TOKENS = 24  # of the prompt that loaded variants are compared on


class Loaded(NamedTuple):
    logits: torch.Tensor
    weights: dict[str, torch.Tensor]  # of the linears, decoded


def check_method(method: Method) -> None:
    """AssertionError: the record or what it builds breaks a law.

    Its lowest and highest bit-width are built (and a dense method once) from a random one-layer
    Llama. A method that needs an optional package that is not installed raises ValueError.
    """
    check_record(method)
    method.check_available()
    with _registered(method), tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny_model(
            Path(scratch) / "model", num_hidden_layers=1, intermediate_size=64
        )
        base, stores = base_model.BaseModel("tiny", "0", folder), Path(scratch)
        variants = _variants(method)
        for name in PASSES:
            store = stores / name
            failures = build.build_pool(base, variants, CALIBRATION, store, _silent, float("inf"))
            assert not failures, f"{method.name}: {failures}"
        for variant in variants:
            first, second = (build.folder_of(stores / name, variant) for name in PASSES)
            _check_folders(first, second)
        loaded = [_load(build.folder_of(stores / "first", variant)) for variant in variants]
        _check_weights(method, variants, _load(folder), loaded)


def check_record(method: Method) -> None:
    """The bit-widths that the record claims are those that it accepts."""
    low, high = method.bits
    assert method.name and method.name == method.name.lower(), (
        f"not a lower-case name: {method.name!r}"
    )
    assert 1 <= low <= high <= 16, (
        f"{method.name}: bits must rise within 1 to 16, got {method.bits}"
    )
    for bits in (low, high):
        method.check_bits(bits)
    for bits in (low - 1, high + 1, *method.without_bits):
        assert _refuses(method, bits), f"{method.name} accepts {bits} bits, which it does not have"


def _variants(method: Method) -> list[Variant]:
    bits = [16] if method.dense else sorted(set(method.bits))
    row: dict[str, object] = {"method": method.name, "damp_percent": 0.05}
    row |= {"type": [*method.types][:: len(method.types) - 1]} if method.types else {"bits": bits}
    if method.kv:
        row |= {"kv_bits": 4}
    return expand_pool(Variant("tiny", "0"), [row], {"group_size": 32}, CALIBRATION.identity)


def _check_folders(first: Path, second: Path) -> None:
    """Whole, finite, described, and the same when built again."""
    metas = [store.read_meta(folder) for folder in (first, second)]
    label = metas[0].label
    assert store.verify_folder(first) == [], f"{label}: {store.verify_folder(first)[0]}"
    assert metas[0].perplexity is not None, f"{label}: its perplexity is not finite"
    sums = [{name: tensor.sha256 for name, tensor in meta.tensors.items()} for meta in metas]
    changed = [name for name in sums[0] if sums[0][name] != sums[1].get(name)]
    assert not changed, f"{label}: built twice, {changed[0]} differs; draw from the variant's seeds"


def _check_weights(
    method: Method, variants: list[Variant], dense: Loaded, loaded: list[Loaded]
) -> None:
    """Shapes are kept, values finite and on the grid; more bits are closer to the dense model."""
    for variant, (_, weights) in zip(variants, loaded, strict=True):
        assert weights.keys() == dense.weights.keys(), f"{variant.label}: other linears"
        for name, weight in weights.items():
            where = f"{variant.label}, {name}"
            assert weight.shape == dense.weights[name].shape, f"{where}: shape {weight.shape}"
            assert weight.isfinite().all(), f"{where}: not finite"
            if method.storage == "uniform":
                most = _most_values(weight, variant.group_size)
                assert most <= 1 << variant.bits, f"{where}: {most} values in a group"
    errors = [float((each.logits - dense.logits).norm() / dense.logits.norm()) for each in loaded]
    if method.dense:
        assert max(errors) == 0, f"{method.name} is dense, but changes weights"
    assert errors[-1] < 1, f"{method.name}: relative error of the logits is {errors[-1]:.2f}"
    assert errors[-1] <= errors[0], f"{method.name}: the logits' error grows with bits: {errors}"


def _load(folder: Path) -> Loaded:
    """A stored model, loaded twice with equal results."""
    models = [loading.load(folder, "float32")[0] for _ in range(2)]
    prompt = torch.arange(TOKENS)[None]
    with torch.inference_mode():
        first, second = (model(prompt).logits for model in models)
    assert torch.equal(first, second), f"{folder}: loading it twice gives other logits"
    linears = layers.linears_of(models[0])
    return Loaded(first, {name: linear.weight.detach() for name, linear in linears.items()})


def _most_values(weight: torch.Tensor, group_size: int) -> int:
    size = weight.shape[1] if group_size == -1 else group_size
    groups = weight.unflatten(1, (-1, size)).flatten(0, 1)
    return max(int(group.unique().numel()) for group in groups)


def _refuses(method: Method, bits: int) -> bool:
    try:
        method.check_bits(bits)
    except ValueError:
        return True
    return False


@contextmanager
def _registered(method: Method) -> Iterator[None]:
    """The method under its name while it is checked, whether or not it is installed."""
    before = METHODS.get(method.name)
    METHODS[method.name] = method
    try:
        yield
    finally:
        del METHODS[method.name]
        if before:
            METHODS[method.name] = before


def _silent(_stage: str, _done: int, _total: int) -> None: ...
