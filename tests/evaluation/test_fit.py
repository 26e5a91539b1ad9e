"""Prompts beyond a real model's context lose whole demonstrations, counted, or are an error."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_benchmark import benchmark

from ptsearch import engine as engines
from ptsearch.benchmarks import Sample, Turn, chat, fairness
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import EngineConfig
from ptsearch.evaluation import evaluate
from ptsearch.evaluation.fit import fit
from ptsearch.models.prompting import Prompter


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> engines.Engine:
    loaded = engines.load(tiny_model, EngineConfig(dtype="float32", threads=1))
    return loaded._replace(context=2048)


@pytest.mark.parametrize("mode", ["generate", "choice"])
def test_demonstrations_are_dropped_until_it_fits(engine: engines.Engine, mode: str) -> None:
    before = benchmark(6, mode)
    after = evaluate.fitted(evaluate.asker(engine), before)
    [sample] = after.samples
    assert after.dropped == 6 - len(sample.demos) > 0
    assert len(Prompter(engine.tokenizer).prompt(sample.prompt)) + 8 <= engine.context
    assert sample.prompt[-1] == Turn("user", "y" * 100)
    assert evaluate.evaluate(evaluate.asker(engine), after, lambda *_: None).num_rows == 1
    one_more = replace(sample, prompt=before.samples[0].prompt[: sample.demos[-1][1] + 2])
    assert len(Prompter(engine.tokenizer).prompt(one_more.prompt)) + 8 > engine.context


def test_what_fits_is_left_alone(engine: engines.Engine) -> None:
    before = benchmark(2)
    assert evaluate.fitted(evaluate.asker(engine), before) == before


def test_error_as_configured(engine: engines.Engine) -> None:
    strict = engine._replace(settings=EngineConfig(too_long="error"))
    with pytest.raises(ValueError, match=r"few/0 is longer than the model's context; engine\.too_"):
        evaluate.fitted(evaluate.asker(strict), benchmark(6))


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
