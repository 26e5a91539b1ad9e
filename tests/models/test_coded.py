"""The layout ptsearch-codes/1: what is written is read back, by hand and by `models.load`."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ptsearch import store
from ptsearch.models import checkpoint, coded, layers, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build, writer
from ptsearch.pool.calibration import Calibration
from ptsearch.quantize import METHODS
from ptsearch.scoring.cost import VariantCost, total_cost
from ptsearch.variant import Variant, expand_pool

TEXT = "\n".join(f"Line {n}: {n * n} little foxes jump over {n} dogs." for n in range(400))
CALIBRATION = Calibration(TEXT, samples=4, length=64)
ROWS: list[dict[str, Any]] = [
    {"method": "nested", "bits": [3, 4, 8], "damp_percent": 0.05},
    {"method": "squeezellm", "bits": 3},
    {"method": "qtip", "bits": 2, "damp_percent": 0.05},
]


def silent(_stage: str, _done: int, _total: int) -> None: ...


def pool() -> list[Variant]:
    return expand_pool(Variant("tiny", "0"), ROWS, {"group_size": 32}, CALIBRATION.identity)


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    build.build_pool(BaseModel("tiny", "0", tiny_model), pool(), CALIBRATION, root, silent)
    return root


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_packing_loses_nothing(bits: int, rows: int, n: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, (rows, n))
    packed = coded.pack(numbers, bits)
    assert packed.shape == (rows, -(-n * bits // 8))
    assert np.array_equal(coded.unpack(packed, bits, n), numbers)


@pytest.mark.parametrize("n", [64, 576, 96, 7])
def test_turning_keeps_lengths_and_can_be_undone(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    signs = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    Q = coded.rotate(torch.eye(n, dtype=torch.double), signs)
    torch.testing.assert_close(Q @ Q.T, torch.eye(n, dtype=torch.double))
    X = torch.randn(3, n, generator=generator, dtype=torch.double)
    torch.testing.assert_close(coded.rotate(X, signs), X @ Q)
    torch.testing.assert_close(coded.unrotate(X @ Q, signs), X)


def test_turning_spreads_what_stands_out() -> None:
    spike = torch.zeros(1, 576)
    spike[0, 100] = 1
    assert coded.rotate(spike, torch.ones(576)).abs().max() < 0.1


@given(st.integers(1, 3), st.integers(1, 3))
def test_blocks_are_put_back(tall: int, wide: int) -> None:
    W = torch.arange(tall * 16 * wide * 16.0).view(tall * 16, wide * 16)
    assert torch.equal(coded.unblock(coded.blocks(W), (tall * 16, wide * 16)), W)


def test_loaded_weights_are_those_that_are_stored(built: Path, tiny_model: Path) -> None:
    dense, _ = loading.load(tiny_model, "float32")
    linears = layers.linears_of(dense)
    for variant in pool():
        folder = build.folder_of(built, variant)
        model, _ = loading.load(folder, "float32")
        state, loaded = loading.dense_state(folder), model.state_dict()
        for name, tensor in state.items():
            assert torch.equal(loaded[name], tensor.float()), (variant.label, name)
        for name, linear in linears.items():
            away = (loaded[f"{name}.weight"] - linear.weight).norm() / linear.weight.norm()
            assert 0 < away < 0.6, (variant.label, name)
        rest = dense.state_dict().keys() - {f"{name}.weight" for name in linears}
        assert all(torch.equal(loaded[name], dense.state_dict()[name]) for name in rest)


def test_what_a_solver_gives_is_what_is_read(built: Path, tmp_path: Path) -> None:
    """Also from a folder of layout 1, as earlier versions wrote it: one file, no weight map."""
    folder = build.folder_of(built, pool()[0])
    index = json.loads((folder / coded.INDEX).read_text())
    assert index["format"] == coded.FORMATS[-1]
    solved = coded.Coded(
        "codebook",
        2,
        (2, 3),
        {
            "codes": coded.pack(np.array([[0, 1, 3], [2, 2, 0]]), 2),
            "book": torch.tensor([[-1.0, 0, 1, 2], [-4, 0, 0.5, 9]], dtype=torch.float16),
            "outlier_counts": torch.tensor([0, 1], dtype=torch.int32),
            "outlier_columns": torch.tensor([1], dtype=torch.int32),
            "outlier_values": torch.tensor([7.0], dtype=torch.float16),
        },
    )
    expected = torch.tensor([[-1.0, 0, 2], [0.5, 7, -4]])
    assert torch.equal(solved.dense(), expected)
    stored = writer.tensors("a.b", solved, Variant("tiny", "0")) | {"a.b.bias": torch.ones(2)}
    save_file(stored, tmp_path / coded.WEIGHTS)
    linear = {"kind": "codebook", "bits": 2, "shape": [2, 3]}
    first = {"format": "ptsearch-codes/1", "linears": {"a.b": linear}}
    (tmp_path / coded.INDEX).write_text(json.dumps(first))
    one = checkpoint.dense(tmp_path)
    (tmp_path / coded.WEIGHTS).rename(tmp_path / "codes-00001.safetensors")
    files = dict.fromkeys(stored, "codes-00001.safetensors")
    coded.write_index(tmp_path, {"a.b": solved.entry()}, files)
    for read in (one, checkpoint.dense(tmp_path)):
        assert read.keys() == {"a.b.weight", "a.b.bias"}
        assert torch.equal(read["a.b.weight"], expected)


def test_bytes_are_those_on_the_disk(built: Path) -> None:
    for variant in pool():
        assert METHODS[variant.method].storage == "codes"
        folder = build.folder_of(built, variant)
        meta = store.read_meta(folder)
        assert meta.tensors == writer.table_of(folder)
        assert meta.perplexity is not None
        assert meta.perplexity > 1
        assert not meta.degenerate


def test_nested_members_share_their_planes(built: Path) -> None:
    three, four, eight = (
        store.read_json(build.folder_of(built, variant) / store.META) for variant in pool()[:3]
    )
    for narrow, wide in ((three, four), (four, eight)):
        planes = [name for name in narrow["tensors"] if ".plane" in name]
        assert len(planes) == narrow["variant"]["bits"] * 14
        assert all(narrow["tensors"][name] == wide["tensors"][name] for name in planes)
    members = [
        VariantCost({t["sha256"]: t["bytes"] for t in meta["tensors"].values()}, 0, 1.0)
        for meta in (three, four, eight)
    ]
    together = total_cost(members, "sequential").memory_gb
    own = [
        tensor["bytes"]
        for meta in (three, four)
        for name, tensor in meta["tensors"].items()
        if name.endswith((".scale", ".offset"))
    ]
    alone = total_cost(members[2:], "sequential").memory_gb
    assert together * 1e9 == pytest.approx(alone * 1e9 + sum(own))


def test_another_version_of_the_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / coded.INDEX).write_text('{"format": "ptsearch-codes/9", "linears": {}}')
    with pytest.raises(ValueError, match=r"has the layout ptsearch-codes/9, known: .*/2"):
        coded.read_index(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"method": "qtip", "bits": 5}, "qtip: bits must be 2 to 4, got bits=5"),
        ({"method": "nested", "bits": 2}, "nested: bits must be 3 to 8"),
        ({"method": "qtip", "bits": 2, "group_size": 64}, "qtip has no groups"),
        ({"method": "awq", "bits": 4, "rounding_seed": 1}, "awq has no stochastic rounding"),
    ],
)
def test_what_a_method_does_not_have_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_pool(Variant("m", "r"), [row], {"group_size": 64}, "text")


def test_hqq_is_stored_as_its_library_has_it() -> None:
    pytest.importorskip("hqq", reason="the package hqq is not installed")
    from hqq.core.quantize import Quantizer

    from ptsearch.quantize import hqq

    W = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        found = hqq.quantize(W, bits, 64)
        codes_, meta = Quantizer.quantize(
            W.clone(), nbits=bits, group_size=64, axis=1, bitpack=False, device="cpu"
        )
        theirs = ((codes_.float() - meta["zero"]) * meta["scale"]).reshape(W.shape)
        torch.testing.assert_close(found.dense(), theirs, rtol=2e-3, atol=2e-3)


def test_a_library_that_is_missing_is_named(tiny_model: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("hqq"):
        pytest.skip("hqq is installed")
    variants = [Variant("tiny", "0", "hqq", bits=4, group_size=32)]
    with pytest.raises(ValueError, match=r"method=hqq requires the package hqq: pip install"):
        build.build_pool(
            BaseModel("tiny", "0", tiny_model), variants, CALIBRATION, tmp_path, silent
        )
