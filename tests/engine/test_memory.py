"""What the engine takes of the memory: room for a model, and for its forwards."""

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import memory, opening
from ptsearch.models import loading

FP32 = EngineConfig(dtype="float32", device="cpu", threads=1)


def test_a_model_too_large_is_refused_before_loading(tiny_model, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ValueError, match=r"needs [0-9,]+ bytes .* 1,000 are available on cpu"):
        engines.load(tiny_model, FP32)


def test_a_model_that_is_done_with_takes_no_memory_from_the_next(tiny_model, monkeypatch):
    loaded = engines.load(tiny_model, FP32)
    loaded.runner.model.own = [loaded.runner.model]  # as a decompressed one has
    before, found = weakref.ref(loaded.runner.model), []
    check = opening.check_fits

    def checked(*arguments: Any) -> str:
        found.append(before())
        return check(*arguments)

    monkeypatch.setattr(opening, "check_fits", checked)
    monkeypatch.setattr(memory, "LARGE", 0)
    del loaded
    engines.load(tiny_model, FP32)
    assert found == [None]


def test_the_budget_follows_free_memory(tiny_model, monkeypatch):
    model = engines.load(tiny_model, FP32).runner.model
    assert memory.limits(model, 77).tokens == 77
    plenty = memory.limits(model, 0).tokens
    monkeypatch.setattr(memory, "available", lambda device: 2**20)
    assert memory.limits(model, 0).tokens == memory.LEAST < plenty


def test_the_budget_needs_no_attention_heads():
    config = transformers.MambaConfig(hidden_size=64, num_hidden_layers=2)
    model = SimpleNamespace(config=config, dtype=torch.float32, device=torch.device("cpu"))
    assert memory.limits(model, 0).tokens >= memory.LEAST
