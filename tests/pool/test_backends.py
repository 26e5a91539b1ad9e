"""Variants built by other libraries; each needs its optional extra."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny_model
from torch import Tensor

from ptsearch import store
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors
from ptsearch.pool import backends, build, verify
from ptsearch.pool.calibration import Calibration
from ptsearch.quantize import rtn
from ptsearch.quantize.grid import Quantized
from ptsearch.variant import Variant, expand_pool

TEXT = "\n".join(f"Line {n}: {n * n} little foxes jump over {n} dogs." for n in range(400))
CALIBRATION = Calibration(TEXT, samples=8, length=64)


def silent(_stage: str, _done: int, _total: int) -> None: ...


@pytest.mark.parametrize("backend", backends.PACKAGES)
def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    variant = Variant("m", "r", "gptq", backend=backend, bits=4, group_size=32)
    message = rf"pool.backend={backend} needs .*pip install 'ptsearch\[{backend}\]'"
    with pytest.raises(ValueError, match=message):
        backends.check_available(variant)


@pytest.mark.parametrize(
    "variant",
    [
        Variant("m", "r", "nested", backend="llmcompressor", bits=4, group_size=32),
        Variant("m", "r", "gptq", "llmcompressor", bits=4, group_size=32, rounding_seed=0),
        Variant("m", "r", "awq", backend="gptqmodel", bits=4, group_size=32),
    ],
    ids=lambda variant: variant.label,
)
def test_what_a_library_does_not_build_is_refused(
    monkeypatch: pytest.MonkeyPatch, variant: Variant
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    with pytest.raises(ValueError, match=rf"builds .* only here, .*{variant.label}"):
        backends.check_available(variant)


@given(st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_codes_are_found_again_from_values(bits: int, sym: bool, seed: int) -> None:
    W = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    quantized = rtn.quantize(W, bits, 32, sym)
    found = backends.from_values(quantized.dense(), quantized.grid.scale, bits, sym)
    assert torch.equal(found.dense(), quantized.dense())


def test_values_off_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="not on a uniform grid"):
        backends.from_values(torch.tensor([[0.0, 0.3], [1.0, 2.0]]), torch.ones(2, 1), 4, True)


def resetting(base: BaseModel, _variant: Variant, samples: Tensor) -> dict[str, Quantized]:
    """A library that sets the global seeds, as GPTQModel does, and fits to its samples."""
    random.seed(0)
    torch.manual_seed(0)
    scale = 1 + samples.sum().item() % 97 / 97
    held = Tensors(base.path).under("")
    linears = {n.removesuffix(".weight"): W.float() for n, W in held.items() if "_proj" in n}
    return {name: rtn.quantize(W * scale, 4, 32, True) for name, W in linears.items()}


@pytest.mark.parametrize("backend", ["native", "gptqmodel"])
def test_seeds_differ_whatever_resets_the_global_one(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(backends, "gptqmodel", resetting)
    monkeypatch.setattr(backends, "check_available", lambda _: None)
    monkeypatch.setattr(verify, "version", lambda _: "0")
    row = {"method": "gptq", "bits": 4, "damp_percent": 0.05, "seed": [0, 1, 2]}
    given = {"group_size": 32, "backend": backend}
    variants = expand_pool(Variant("tiny", "0"), [row], given, CALIBRATION.identity)
    base = BaseModel("tiny", "0", tiny_model)
    build.build_pool(base, variants, CALIBRATION, tmp_path, silent)
    metas = [store.read_json(build.folder_of(tmp_path, v) / store.META) for v in variants]
    packed = [
        {t["sha256"] for name, t in meta["tensors"].items() if name.endswith("weight_packed")}
        for meta in metas
    ]
    assert packed[0].isdisjoint(packed[1])
    assert packed[1].isdisjoint(packed[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "row"),
    [
        ("llmcompressor", {"method": "rtn", "bits": [3, 4], "sym": False}),
        ("llmcompressor", {"method": "gptq", "bits": [3, 4], "damp_percent": 0.05}),
        (
            "llmcompressor",
            {"method": "gptq", "bits": 4, "damp_percent": 0.05, "actorder": "static"},
        ),
        ("llmcompressor", {"method": "awq", "bits": 4}),
        ("gptqmodel", {"method": "gptq", "bits": [3, 4, 8], "damp_percent": 0.05}),
        ("gptqmodel", {"method": "gptq", "bits": 4, "sym": False, "damp_percent": 0.05}),
        ("gptqmodel", {"method": "gptq", "bits": 4, "damp_percent": 0.05, "actorder": "static"}),
    ],
)
def test_a_library_builds_the_same_kind_of_folder(
    tmp_path: Path, backend: str, row: dict[str, object]
) -> None:
    pytest.importorskip(backends.PACKAGES[backend])
    folder = write_tiny_model(tmp_path / "base")
    variants = expand_pool(
        Variant("tiny", "0"), [row], {"group_size": 32, "backend": backend}, CALIBRATION.identity
    )
    base = BaseModel("tiny", "0", folder)
    build.build_pool(base, variants, CALIBRATION, tmp_path / "store", silent)
    for variant in variants:
        made = build.folder_of(tmp_path / "store", variant)
        assert store.verify_folder(made) == []
        meta = store.read_json(made / store.META)
        assert backend in meta["versions"]
        assert meta["perplexity"] == pytest.approx(meta["dense_perplexity"], rel=0.2)
        assert any(name.endswith("weight_packed") for name in meta["tensors"])
