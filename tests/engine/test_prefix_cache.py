"""What stays between calls changes no answer, and keeps to its limit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_prompts import changed

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import Kept, logprobs, prefix_cache
from ptsearch.engine.prefix_cache import Beginning, Piece

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
    monkeypatch.setattr(logprobs, "LANE_TOKENS", few)  # tokens of a lane
    monkeypatch.setattr(logprobs, "REPEATED", 1)
    keeping = changed(engine, kept=Kept(most))
    for call in range(6):
        asked = prompts(call)
        rows = [engines.score(e, asked, [LABELS] * 6, lambda *_: None) for e in (engine, keeping)]
        for plain, found in zip(*rows, strict=True):
            assert found == pytest.approx(plain, abs=1e-4)
        kept = keeping.runner.kept
        owned = [len(t) - len(piece.before) for t, piece in kept.pieces.items()]
        assert kept.tokens == sum(owned) <= most
        assert all(set(kept.lineage(t)) <= kept.pieces.keys() for t in kept.pieces)
    begins = {tokens[:80] for tokens in keeping.runner.kept.pieces}
    assert len(begins) == {0: 0, 100: 1, 10_000: 2}[most]


def piece(begun: Beginning) -> Piece:
    return Piece(begun.kept, {})


def keeping(most: int, *heads: tuple[int, ...]) -> Kept:
    """What is kept after OFTEN sequences had each head, one call each."""
    found = Kept(most)
    for head in heads:
        for n in range(prefix_cache.OFTEN):
            [begun], _ = found.beginnings([(*head, 250 + n)])
            found.add({begun.tokens: piece(begun)} if begun.tokens != begun.kept else {})
    return found


def test_a_kept_prefix_is_not_computed_again() -> None:
    (first, second), longer = TEMPLATES, (*TEMPLATES[0], *range(200, 210))
    found = keeping(10_000, first, longer)
    assert found.pieces[longer].before == first
    assert found.tokens == 100
    sequences = [*((*longer, 7, n) for n in range(3)), *((*second, 7, n) for n in range(3))]
    begun = [Beginning(longer, longer)] * 3 + [Beginning(second)] * 3
    laid = prefix_cache.plan(dict(zip(sequences, begun, strict=True)), found.pieces, 40, 64)
    assert laid.stored == [found.pieces[first], found.pieces[longer]]
    segments = laid.plan.segments
    for sequence, chain in zip(sequences, laid.plan.chains, strict=True):
        assert sum((segments[n].tokens for n in chain), ()) == sequence
        for n in chain:
            before = sum((segments[m].tokens for m in segments[n].path), ())
            assert len(before) == segments[n].start
    assert laid.new == {Beginning(second): (2, 3, 4)}  # in runs of 40, 40 and 10
    assert sum(len(segment.tokens) for segment in segments[5:]) == 12


def test_what_others_go_on_from_stays_longest() -> None:
    first, second = TEMPLATES
    heads = [(*first, *range(k, k + 5)) for k in (200, 210, 220)]
    found = keeping(100, first, heads[0], heads[1])
    assert list(found.pieces) == [heads[0], heads[1], first]
    found.beginnings([heads[0]])
    assert list(found.pieces) == [heads[1], heads[0], first]
    for n in range(prefix_cache.OFTEN):
        [begun], held = found.beginnings([(*heads[2], n)])
    assert begun == Beginning(heads[2], first)
    assert held == {first: found.pieces[first]}
    found.add({begun.tokens: piece(begun)})
    assert list(found.pieces) == [heads[0], heads[2], first]
    assert found.tokens == 100
    assert found.beginnings([heads[1]])[0][0].kept == first
    found.add({second: Piece((), {})})
    assert list(found.pieces) == [second]
    assert found.tokens == 90


def test_one_prompt_again_and_again_is_not_kept() -> None:
    (first, second), found = TEMPLATES, Kept(10_000)
    for _ in range(5):
        [begun], _ = found.beginnings([first])
        assert begun == Beginning()
    for _ in range(2):  # what several different ones begin with is
        begins, _ = found.beginnings([(*second, n) for n in range(prefix_cache.OFTEN)])
    assert {begin.tokens for begin in begins} == {second}


def test_several_threads_ask_at_once(engine) -> None:
    keeping = changed(engine, kept=Kept(150))  # one template, and another must go
    calls = [[prompt for prompt in prompts(n) if prompt[0] == 1 + 99 * (n % 2)] for n in range(16)]
    expected = [engines.score(engine, asked, [LABELS] * 3, lambda *_: None) for asked in calls]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(
            lambda asked: engines.score(keeping, asked, [LABELS] * 3, lambda *_: None), calls
        )
        for some, plain in zip(found, expected, strict=True):
            for row, other in zip(some, plain, strict=True):
                assert row == pytest.approx(other, abs=1e-4)
    owned = [len(t) - len(piece.before) for t, piece in keeping.runner.kept.pieces.items()]
    assert 0 < keeping.runner.kept.tokens == sum(owned) <= 150
