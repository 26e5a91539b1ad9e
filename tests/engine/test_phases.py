"""Replies in two phases: the first tokens are the precise member's, and it keeps the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import write_tiny_model
from tiny_pool import build_tiny, pool
from tiny_prompts import FP32, LABELS, PROMPTS, WIDE, changed, silent

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks import Benchmark, Sample, Scenario, sources
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import CONF, BenchmarksConfig
from ptsearch.evaluation import evaluate
from ptsearch.models import loading
from ptsearch.pool import build
from ptsearch.scoring.cost import VariantCost, total_cost

ROWS: list[dict[str, Any]] = [{"method": "rtn", "bits": 8, "decode_schedule": "4:2"}]
NEW = 9


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("base"), **WIDE)
    root = tmp_path_factory.mktemp("store")
    build_tiny(folder, root, pool(ROWS))
    return root


@pytest.fixture(scope="module")
def engine(built: Path) -> engines.Engine:
    return engines.load(build.folder_of(built, pool(ROWS)[0]), FP32)._replace(eos=frozenset())


@torch.inference_mode()
def by_hand(engine: engines.Engine, prompt: list[int]) -> list[int]:
    """One prompt, one token at a time, the cache handed over."""
    first, later = (
        loading.load(Path(model.name_or_path), "float32")[0]
        for model in (engine.runner.model, engine.runner.later)
    )
    ids, past, reply = torch.tensor([prompt]), None, []
    for done in range(NEW):
        output = (first if done < 4 else later)(ids, past_key_values=past, use_cache=True)
        past, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        reply.append(int(ids))
    return reply


def test_replies_are_the_precise_members_in_its_phase(built: Path, engine: engines.Engine) -> None:
    _, first, later = pool(ROWS)[0].phases()
    said = engines.generate(engine, PROMPTS, NEW, silent)
    precise, coarse = (
        engines.generate(
            engines.load(build.folder_of(built, part), FP32)._replace(eos=frozenset()),
            PROMPTS, NEW, silent,
        )
        for part in (first, later)
    )  # fmt: skip
    assert [reply[:4] for reply in said] == [reply[:4] for reply in precise]
    assert said != precise
    assert [reply[:4] for reply in said] != [reply[:4] for reply in coarse]
    assert said[:5] == [by_hand(engine, prompt) for prompt in PROMPTS[:5]]


def test_the_plain_path_writes_the_same(engine: engines.Engine) -> None:
    said = engines.generate(engine, PROMPTS, NEW, silent)
    scored = engines.score(engine, PROMPTS, LABELS, silent)
    for model in (engine.runner.model, engine.runner.later):
        model.set_attn_implementation("eager")
    slow = changed(engine, packed=False)
    assert engines.generate(slow, PROMPTS, NEW, silent) == said
    for row, other in zip(engines.score(slow, PROMPTS, LABELS, silent), scored, strict=True):
        assert row == pytest.approx(other, abs=1e-3)


def test_both_are_built_and_stored_tensors_count_once(built: Path) -> None:
    variant = pool(ROWS)[0]
    assert variant.label == "rtn-8b-g32-then2b-s0"
    _, *parts = variant.phases()
    metas = [store.read_meta(build.folder_of(built, v)) for v in (variant, *parts)]
    assert all(store.is_whole(build.folder_of(built, part)) for part in parts)
    each = [VariantCost({t.sha256: t.bytes for t in m.tensors.values()}, 0, 1.0) for m in metas]
    costs = [total_cost(several, "parallel") for several in (each[:1], each[1:], each)]
    assert len({cost.memory_gb for cost in costs}) == 1


@pytest.mark.parametrize(("mode", "new"), [("choice", 9), ("generate", 4)])
def test_a_schedule_that_no_reply_reaches_is_no_member(
    engine: engines.Engine, mode: str, new: int
) -> None:
    scenario = Scenario("s", "s", mode=mode, max_new_tokens=new)
    sample = Sample("1", "i", "s", "Is it?", Question(("no", "yes")), 0)
    asked = Benchmark("ethics", "fake", 1, {"s": scenario}, (sample,), {})
    assert "first 4 tokens" in evaluate.unexercised(evaluate.asker(engine), [asked])
    longer = Scenario("s", "s", mode="generate", max_new_tokens=5)
    asked = Benchmark("ethics", "fake", 1, {"s": longer}, (sample,), {})
    assert evaluate.unexercised(evaluate.asker(engine), [asked]) == ""


def test_the_embedded_benchmark_reaches_the_schedule_of_every_pool(engine: engines.Engine) -> None:
    pools = [yaml.safe_load(path.read_text()) for path in (CONF / "pool").glob("*.yaml")]
    variants = [row for content in pools for row in content["variants"]]
    schedules = [row["decode_schedule"] for row in variants if "decode_schedule" in row]
    assert schedules
    pocket = sources.load(BenchmarksConfig(), Path("unused"))
    for schedule in schedules:
        first = int(schedule.split(":")[0])
        assert evaluate.unexercised(evaluate.asker(changed(engine, first=first)), pocket) == ""
