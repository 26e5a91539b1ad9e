"""What stays between calls changes no answer, and keeps to its limit."""

import pytest
import torch

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import Kept, kept, scoring
from ptsearch.engine.kept import Begun, Piece

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
        owned = [len(t) - len(piece.before) for t, piece in keeping.kept.known.items()]
        assert keeping.kept.tokens == sum(owned) <= most
        assert all(
            set(keeping.kept.lineage(t)) <= keeping.kept.known.keys() for t in keeping.kept.known
        )
    begins = {tokens[:80] for tokens in keeping.kept.known}
    assert len(begins) == {0: 0, 100: 1, 10_000: 2}[most]


def piece(begun: Begun) -> Piece:
    return Piece(begun.kept, {})


def keeping(most: int, *heads: tuple[int, ...]) -> Kept:
    """What is kept after each head was asked for OFTEN times, one call each."""
    found = Kept(most)
    for head in heads:
        for _ in range(kept.OFTEN):
            [begun] = found.begun([head])
            found.add({begun.tokens: piece(begun)} if begun.tokens != begun.kept else {})
    return found


def test_a_kept_prefix_is_not_computed_again() -> None:
    (first, second), longer = TEMPLATES, (*TEMPLATES[0], *range(200, 210))
    held = keeping(10_000, first, longer)
    assert held.known[longer].before == first
    assert held.tokens == 100
    sequences = [*((*longer, 7, n) for n in range(3)), *((*second, 7, n) for n in range(3))]
    begun = [Begun(longer, longer)] * 3 + [Begun(second)] * 3
    laid = kept.plan(sequences, begun, held, 40, 64)
    assert laid.stored == [first, longer]
    segments = laid.plan.segments
    for sequence, chain in zip(sequences, laid.plan.chains, strict=True):
        assert sum((segments[n].tokens for n in chain), ()) == sequence
        for n in chain:
            before = sum((segments[m].tokens for m in segments[n].path), ())
            assert len(before) == segments[n].start
    assert laid.new == {Begun(second): (2, 3, 4)}  # in runs of 40, 40 and 10
    assert sum(len(segment.tokens) for segment in segments[5:]) == 12


def test_what_others_go_on_from_stays_longest() -> None:
    first, second = TEMPLATES
    heads = [(*first, *range(k, k + 5)) for k in (200, 210, 220)]
    held = keeping(100, first, heads[0], heads[1])
    assert list(held.known) == [heads[0], heads[1], first]
    held.begun([heads[0]])
    assert list(held.known) == [heads[1], heads[0], first]
    for _ in range(kept.OFTEN):
        [begun] = held.begun([heads[2]])
    held.add({begun.tokens: piece(begun)})
    assert list(held.known) == [heads[0], heads[2], first]
    assert held.tokens == 100
    assert held.begun([heads[1]])[0].kept == first
    held.add({second: Piece((), {})})
    assert list(held.known) == [second]
    assert held.tokens == 90
