"""Architectures that are run, not claimed: each is built, answers as transformers, and reloads.

`docs/models.md` has the table that the slow tests find.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from command import ptsearch
from small_study import STUDY
from tiny_pool import build_tiny, pool
from zoo import ZOO, refusal, write

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.models import checkpoint, layers
from ptsearch.pool import build

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
SHARED = [(7 * k) % 250 for k in range(20)]
PROMPTS = [SHARED + [(5 * k + n) % 250 for k in range(n)] for n in (30, 12, 9)]
LABELS = [[[5], [9, 8], [65, 66, 67]]] * len(PROMPTS)
NEW = 4  # tokens of a reply
VARIANTS = pool([{"method": "gptq", "bits": 4}, {"method": "squeezellm", "bits": 4}])
FAST = ["Falcon-H1", "Qwen2-VL"]


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


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The most probable tokens, the whole sequence read for each."""
    ids = list(prompt)
    for _ in range(NEW):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def dense_model(name: str, base: Path, variant: Path) -> Any:
    """The base model as transformers reads it, with a variant's weights in its linear layers."""
    model = auto_of(name).from_pretrained(base, dtype=torch.float32)
    values = checkpoint.dense(variant)
    assert values.keys() == checkpoint.weight_map(base).keys()
    state = {key: value.float() for key, value in values.items()}
    return type(model).from_pretrained(None, config=model.config, state_dict=state)


def run(name: str, folder: Path) -> bool:
    """Build variants, ask them, read them back; whether they answer in packs."""
    base = write(folder / "base", name)
    build_tiny(base, folder, VARIANTS)
    packed = set()
    for variant in VARIANTS:
        place = build.folder_of(folder, variant)
        with engines.opened(place, EngineConfig(dtype="float32")) as engine:
            scored = engines.score(engine, PROMPTS, LABELS, silent)
            said = engines.generate(engine._replace(eos=frozenset()), PROMPTS, NEW, silent)
            packed.add(engine.local is not None and engine.local.packed)
        model = dense_model(name, base, place)
        for row, expected in zip(scored, plainly(model), strict=True):
            assert row == pytest.approx(expected, abs=2e-5)
        assert said == [greedy(model, prompt) for prompt in PROMPTS]
    check_reload(name, base, build.folder_of(folder, VARIANTS[0]))
    (answer,) = packed
    return answer


def check_reload(name: str, base: Path, variant: Path) -> None:
    """What is not quantized is the base model's bit for bit, and transformers loads it all."""
    stored, same = checkpoint.Tensors(base), checkpoint.Tensors(variant)
    linears = {key.rpartition(".")[0] for key in same.file_of if key.endswith(".weight_packed")}
    untouched = [key for key in stored.file_of if key.rpartition(".")[0] not in linears]
    assert linears
    for key, tensor in same.read(untouched).items():
        assert torch.equal(tensor, stored.read([key])[key]), key
    reloaded = auto_of(name).from_pretrained(variant, dtype=torch.float32)
    expected = plainly(dense_model(name, base, variant))
    for row, other in zip(plainly(reloaded), expected, strict=True):
        assert row == pytest.approx(other, abs=0.05)  # tensors that it renames stay in bf16


def row_of(name: str, runs: str, base: Path) -> str:
    """The member's line in the table of docs/models.md."""
    if runs == "refused":
        return f"| {name} | refused | - | {refusal(base)} |"
    model = layers.skeleton(base, False)
    root, decoder = layers.layers_of(model)
    linears = layers.linears_of(model)
    names = {key.rpartition(".")[2] for key in linears}
    assert all(key.startswith(f"{root}.") for key in linears)
    others = {
        re.sub(r"\.\d+(?=\.)|^\d+\.", "", key.removesuffix(".weight"))
        for key, weight in decoder.named_parameters()
        if weight.ndim > 1 and f"{root}.{key}".removesuffix(".weight") not in linears
    }
    shown = [", ".join(f"`{key}`" for key in sorted(keys)) or "-" for keys in (names, others)]
    return f"| {name} | {runs} | {shown[0]} | {shown[1]} |"


def documented() -> dict[str, str]:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if " | " in line}


@pytest.mark.parametrize("name", FAST)
def test_a_member(name: str, tmp_path: Path) -> None:
    run(name, tmp_path)


def test_every_member_is_in_the_document() -> None:
    assert list(ZOO) == [name for name in documented() if name in ZOO]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_a_study(name: str, tmp_path: Path, monkeypatch, capfd) -> None:
    """The whole study; with PTSEARCH_REGENERATE=1 the document is corrected, not compared."""
    base = write(tmp_path / "base", name)
    reason = refusal(base)
    status = ptsearch(
        monkeypatch, tmp_path, "+study=pareto", "model=path", f"model.path={base}", "model.name=m",
        "pool.variants=[{method: [gptq, awq], bits: 4, group_size: 32}]", *STUDY, "study.name=s",
        "benchmarks.limit=4", "latency.prompts=1", "study.trials=3", "engine.dtype=float32",
        "trust.weights.fairness=0",  # four samples do not show it
    )  # fmt: skip
    said = capfd.readouterr()
    if reason:
        assert status == 2
        assert said.err.splitlines()[-1] == f"ptsearch: {reason}"
        assert not list(tmp_path.glob("mlruns/cache/variants/*"))
        runs = "refused"
    else:
        assert status == 0, said.err
        assert said.err.count("runs in plain batches") <= 1
        runs = "packed" if run(name, tmp_path) else "plain batches"
        assert (runs == "packed") == ("runs in plain batches" not in said.err)
    row = row_of(name, runs, base)
    if os.environ.get("PTSEARCH_REGENERATE"):
        old = documented().get(name)
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(text.replace(old, row) if old else f"{text}{row}\n", encoding="utf-8")
    assert documented()[name] == row
