"""Prompts and labels for the tiny model, and the reference that scores them."""

from typing import Any

import torch

from ptsearch.config import EngineConfig
from ptsearch.engine import Engine

DEMOS = [(5 * k + 1) % 250 for k in range(70)]  # a prefix that pays, longer than a window
OTHER = [(3 * k + 2) % 250 for k in range(20)]

FP32 = EngineConfig(dtype="float32", device="cpu", threads=1)
WIDE = {"initializer_range": 0.3}  # far apart logits: few near ties
PROMPTS = (
    [DEMOS + [k, k + 1, k * 7 % 250][: 1 + k % 3] + OTHER[: 4 * k] for k in range(6)]
    + [DEMOS, DEMOS[:30] + OTHER, OTHER, [9], OTHER[:11] * 3, list(range(200)), [*DEMOS, 1]]
    + [DEMOS[:30] + OTHER]
)  # a prompt that others begin with, unrelated ones, one token, a repetition
LABELS = [[[10], [11, 12, 13], [11, 14], [200 + k]][: 2 + k % 3] for k in range(len(PROMPTS))]


def silent(done: int, total: int) -> None:
    pass


def changed(engine: Engine, **fields: object) -> Engine:
    """The engine with other fields of its local model."""
    assert engine.local is not None
    return engine._replace(runner=engine.local._replace(**fields))


@torch.inference_mode()
def one_score(model: Any, prompt: list[int], label: list[int]) -> float:
    logits = model(torch.tensor([prompt + label]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(label)), label].sum().item()
