"""Linears that keep their weights as stored, against the dense ones of compressed-tensors."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import stored_weights
from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration
from ptsearch.variant import Variant

SHAPES = [(2, 32, True), (3, 32, False), (4, 64, True), (5, -1, False), (8, 32, True)]
POOL = [
    Variant("tiny", "0", "rtn", bits=bits, group_size=group, sym=sym) for bits, group, sym in SHAPES
]
PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11], [200, 3]]
LABELS = [[[20], [21, 22]]] * 3


def silent(_done: int, _total: int) -> None:
    """Reports nowhere."""


@pytest.fixture(scope="module")
def cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    text = Calibration("A line of text that is long enough. " * 200, 4, 32)
    dense = Variant("tiny", "0")
    build.build_pool(
        BaseModel("tiny", "0", tiny_model), [dense, *POOL], text, folder, lambda *_: None, 1e9
    )
    return folder


def opened(folder: Path, form: str) -> engines.Engine:
    return engines.load(folder, EngineConfig(dtype="float32", device="cpu", form=form))


@pytest.mark.parametrize("variant", POOL, ids=lambda variant: variant.label)
def test_each_weight_is_the_dense_one_and_answers_are_equal(variant: Variant, cache: Path) -> None:
    folder = build.folder_of(cache, variant)
    stored, dense = opened(folder, "auto"), opened(folder, "dense")
    assert stored.local and dense.local
    kept = {
        name: module
        for name, module in stored.local.model.named_modules()
        if isinstance(module, stored_weights.StoredLinear)
    }
    linears = [
        name
        for name, module in loading.load(folder)[0].named_modules()
        if type(module) is nn.Linear and "lm_head" not in name
    ]
    assert sorted(kept) == sorted(linears)
    for name, module in kept.items():
        weight = dense.local.model.get_submodule(name).weight
        assert torch.equal(module.dense(), weight.to_dense() if weight.is_mkldnn else weight)
        bits = 8 * module.codes.numel() / weight.numel()
        assert bits == pytest.approx(variant.bits, rel=0.01)
    scores = [engines.score(engine, PROMPTS, LABELS, silent) for engine in (stored, dense)]
    for row, other in zip(*scores, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_other_layouts_stay_dense(cache: Path, tiny_model: Path) -> None:
    engine = opened(tiny_model, "auto")
    assert engine.local
    assert not any(isinstance(m, stored_weights.StoredLinear) for m in engine.local.model.modules())
    assert not stored_weights.is_kept({"format": "int-quantized", "config_groups": {"group_0": {}}})
    assert not stored_weights.is_kept({"quant_method": "gptq", "bits": 4})
