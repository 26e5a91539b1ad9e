"""Architectures that are run, not claimed: each is built, answers as transformers, and reloads.

`docs/models.md` has the table that the slow tests find.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from tiny_pool import build_tiny, pool
from zoo import ZOO, write

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.models import checkpoint, layers
from ptsearch.pool import build

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
SHARED = [(7 * k) % 250 for k in range(20)]
PROMPTS = [SHARED + [(5 * k + n) % 250 for k in range(n)] for n in (30, 12, 9)]
LABELS = [[[5], [9, 8], [65, 66, 67]]] * len(PROMPTS)
VARIANTS = pool([{"method": "gptq", "bits": 4}, {"method": "squeezellm", "bits": 4}])
FAST = ["Falcon-H1", "Qwen2-VL"]
REFUSED = ["GPT-2", "T5"]


def silent(*_: object) -> None: ...


def auto_of(name: str) -> Any:
    sees = ZOO[name].outer is not None
    return transformers.AutoModelForImageTextToText if sees else transformers.AutoModelForCausalLM


def plainly(model: Any) -> list[list[float]]:
    """log p(label | prompt) by transformers, one sequence at a time."""
    model.eval().set_attn_implementation("eager")
    answers = []
    for prompt, labels in zip(PROMPTS, LABELS, strict=True):
        row = []
        for label in labels:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + label]), use_cache=False).logits[0]
            told = logits.float().log_softmax(-1)[len(prompt) - 1 :]
            row.append(sum(told[k, token].item() for k, token in enumerate(label)))
        answers.append(row)
    return answers


def dense_model(name: str, base: Path, variant: Path) -> Any:
    """The base model as transformers reads it, with a variant's weights in its linear layers."""
    model = auto_of(name).from_pretrained(base, dtype=torch.float32)
    values = checkpoint.dense(variant)
    assert values.keys() == checkpoint.weight_map(base).keys()
    state = {key: value.float() for key, value in values.items()}
    return type(model).from_pretrained(None, config=model.config, state_dict=state)


class Found(NamedTuple):
    """What a member of the zoo was seen to do."""

    packed: bool
    quantized: set[str]  # last names of the linears
    dense: set[str]  # of the other weights of the decoder layers


def run(name: str, folder: Path) -> Found:
    """Build two variants, ask them, and read them back."""
    base = write(folder / "base", name)
    build_tiny(base, folder, VARIANTS)
    stored = checkpoint.Tensors(base)
    for variant in VARIANTS:
        place = build.folder_of(folder, variant)
        with engines.opened(place, EngineConfig(dtype="float32")) as engine:
            scored = engines.score(engine, PROMPTS, LABELS, silent)
            packed = engine.local is not None and engine.local.packed
        for row, expected in zip(scored, plainly(dense_model(name, base, place)), strict=True):
            assert row == pytest.approx(expected, abs=2e-5)
    place = build.folder_of(folder, VARIANTS[0])
    same = checkpoint.Tensors(place)
    linears = {key.rpartition(".")[0] for key in same.file_of if key.endswith(".weight_packed")}
    untouched = [key for key in stored.file_of if key.rpartition(".")[0] not in linears]
    for key, tensor in same.read(untouched).items():
        assert torch.equal(tensor, stored.read([key])[key]), key
    reloaded = auto_of(name).from_pretrained(place, dtype=torch.float32)
    loose = plainly(reloaded)
    for row, expected in zip(loose, plainly(dense_model(name, base, place)), strict=True):
        assert row == pytest.approx(expected, abs=0.05)  # renamed tensors stay bf16 there
    return Found(packed, *parts(base))


def parts(base: Path) -> tuple[set[str], set[str]]:
    model = layers.skeleton(base, False)
    root, decoder = layers.layers_of(model)
    linears = layers.linears_of(model)
    assert not any("vis" in name for name in linears)
    others = {
        re.sub(r"\.\d+\.", ".N.", name)
        for name, weight in decoder.named_parameters()
        if weight.ndim > 1 and f"{root}.{name}".rpartition(".")[0] not in linears
    }
    return {name.rpartition(".")[2] for name in linears}, others


@pytest.mark.parametrize("name", FAST)
def test_a_member(name: str, tmp_path: Path) -> None:
    run(name, tmp_path)
