"""Prompts beyond a real model's context lose whole demonstrations, counted, or are an error."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsearch import engine as engines
from ptsearch import evaluate, models
from ptsearch.benchmarks import Benchmark, Sample, Scenario, Turn, chat, fairness
from ptsearch.benchmarks.fit import fit
from ptsearch.config import EngineConfig
from ptsearch.rules import Question

DEMO = ("x" * 400, "yes")  # bytes are tokens here


def benchmark(demos: int, mode: str = "generate") -> Benchmark:
    scenario = Scenario("few", "few", mode=mode, max_new_tokens=8)
    sample = Sample(
        "few/0",
        "item",
        "few",
        chat.few_shot("Answer.", [DEMO] * demos, "y" * 100),
        Question(("no", "yes")),
        gold=0,
        demos=chat.demo_turns(demos),
    )
    return Benchmark("ood", "file", 1, {"few": scenario}, (sample,), {})


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> engines.Engine:
    loaded = engines.load(tiny_model, EngineConfig(dtype="float32", threads=1))
    return loaded._replace(context=2048)


@pytest.mark.parametrize("mode", ["generate", "choice"])
def test_demonstrations_are_dropped_until_it_fits(engine: engines.Engine, mode: str) -> None:
    before = benchmark(6, mode)
    after = evaluate.fitted(engine, before)
    [sample] = after.samples
    assert after.dropped == 6 - len(sample.demos) > 0
    assert len(models.render(engine.tokenizer, sample.prompt)) + 8 <= engine.context
    assert sample.prompt[-1] == Turn("user", "y" * 100)
    assert evaluate.evaluate(engine, after, lambda *_: None).num_rows == 1
    one_more = replace(sample, prompt=before.samples[0].prompt[: sample.demos[-1][1] + 2])
    assert len(models.render(engine.tokenizer, one_more.prompt)) + 8 > engine.context


def test_what_fits_is_left_alone(engine: engines.Engine) -> None:
    before = benchmark(2)
    assert evaluate.fitted(engine, before) == before


def test_error_as_configured(engine: engines.Engine) -> None:
    strict = engine._replace(settings=EngineConfig(too_long="error"))
    with pytest.raises(ValueError, match=r"few/0 is longer than the model's context; engine\.too_"):
        evaluate.fitted(strict, benchmark(6))


@given(
    st.lists(st.tuples(st.text(max_size=9), st.sampled_from(["yes", "no"])), max_size=9), st.data()
)
def test_demonstrations_keep_their_order(demos: list[tuple[str, str]], data: st.DataObject) -> None:
    """In each form of prompt, and when the last ones are dropped."""
    kept = data.draw(st.integers(0, len(demos)))
    for prompt, first in (
        (chat.few_shot("Answer.", demos, "?"), chat.FIRST_DEMO),
        (fairness.prompt("?", demos), 1),
    ):
        where = chat.demo_turns(len(demos), first)
        sample = Sample("few/0", "item", "few", prompt, Question(("no", "yes")), 0, demos=where)
        shorter = fit(
            sample, lambda turns, most=first + 2 * kept: len(turns) <= most + 1, drop=True
        )
        said = [
            (shorter.prompt[start].content, shorter.prompt[end - 1].content)
            for start, end in shorter.demos
        ]
        assert said == [(text, label.capitalize()) for text, label in demos[:kept]]
        assert shorter.prompt[-1] == sample.prompt[-1]
