"""What stays between calls changes no answer, and keeps to its limit."""

import pytest
import torch

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import Kept, kept, prefix, scoring

TEMPLATES = [tuple(range(start, start + 90)) for start in (1, 100)]
LABELS = [[1], [2, 3], [4]]


def prompts(call: int) -> list[list[int]]:
    return [
        [*template, *((7 * call + 3 * n + k) % 250 for k in range(5 + n))]
        for template in TEMPLATES
        for n in range(3)
    ]


@pytest.fixture(scope="module")
def engine(tiny_model):
    return engines.load(tiny_model, EngineConfig(dtype="float32"))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("few", [1, 10_000])
@pytest.mark.parametrize("most", [0, 100, 10_000])
def test_scores_are_the_same_call_after_call(most, few, engine, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "FEW", few)  # tokens of a lane
    monkeypatch.setattr(scoring, "AGAIN", 1)
    keeping = engine._replace(kept=Kept(most))
    for call in range(6):
        asked = prompts(call)
        rows = [engines.score(e, asked, [LABELS] * 6, lambda *_: None) for e in (engine, keeping)]
        for plain, found in zip(*rows, strict=True):
            assert found == pytest.approx(plain, abs=1e-4)
        assert sum(map(len, keeping.kept.known)) <= most
    begins = {tokens[:80] for tokens in keeping.kept.known}
    assert len(begins) == {0: 0, 100: 1, 10_000: 2}[most]


def test_a_kept_prefix_is_not_computed_again() -> None:
    sequences = [(*TEMPLATES[0], 7, n) for n in range(3)]
    whole = prefix.share(sequences, 512, 64)
    plan, known = kept.plan(sequences, [TEMPLATES[0]] * 3, 512, 64)
    assert known == [TEMPLATES[0]]
    for shared in (whole, plan):
        for sequence, chain in zip(sequences, shared.chains, strict=True):
            assert sum((shared.segments[n].tokens for n in chain), ()) == sequence
            for n in chain:
                before = sum((shared.segments[m].tokens for m in shared.segments[n].path), ())
                assert len(before) == shared.segments[n].start
    assert sum(len(segment.tokens) for segment in plan.segments[1:]) == 6
