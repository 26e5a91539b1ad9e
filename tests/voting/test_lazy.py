"""Asking stops early and never changes the vote; what it costs, counted one sample at a time."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.scoring.refusals import VETO
from ptsearch.search import enumeration
from ptsearch.voting import lazy
from ptsearch.voting.votes import decided, majority, vote


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    members, samples = draw(st.integers(1, 6)), draw(st.integers(1, 10))
    row = st.lists(st.integers(-3, 3), min_size=samples, max_size=samples)
    codes = draw(st.lists(row, min_size=members, max_size=members))
    value = st.lists(st.sampled_from([3.0, 4.0, 8.0]), min_size=members, max_size=members)
    return np.array(codes, dtype=np.int16), np.array(draw(value)), np.array(draw(value))


def ask(codes: list[int], order: list[int], total: list[int], veto: int = 0) -> dict[int, int]:
    """Members in turn until the vote is decided; `total` is the vote's own order."""
    answers: dict[int, int] = {}
    for member in order:
        answers[member] = codes[member]
        if decided(answers, total, veto):
            break
    return answers


def as_ballots(codes: np.ndarray, veto: np.ndarray) -> np.ndarray:
    """Refusals veto in every second sample or so."""
    return np.where((codes == REFUSED) & (veto > 0), VETO, codes).astype(np.int16)


@st.composite
def vetoed(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A table with ballots, and the veto of each sample."""
    codes, precision, latency = draw(tables())
    samples = codes.shape[1]
    veto = draw(st.lists(st.integers(0, 3), min_size=samples, max_size=samples))
    decide = np.array(veto, dtype=np.int16)
    return as_ballots(codes, decide), precision, latency, decide


def full_vote(said: list[int], veto: int) -> int:
    return VETO if 0 < veto <= said.count(VETO) else vote(said)


@given(vetoed(), st.randoms(use_true_random=False))
def test_a_veto_is_asked_for_until_it_is_decided_and_no_longer(table, random) -> None:
    codes, precision, _, veto = table
    total = np.argsort(-precision, kind="stable").tolist()
    for column, k in zip(codes.T.tolist(), veto.tolist(), strict=True):
        answers = ask(column, random.sample(total, len(total)), total, k)
        said = [answers[m] for m in total if m in answers]
        assert full_vote(said, k) == full_vote([column[m] for m in total], k)
        answers.popitem()
        left = [m for m in total if m not in answers]
        possible = {
            full_vote([(answers | dict.fromkeys(left, other))[m] for m in total], k)
            for other in (-1, *([VETO] if k else []), 0, 1, 2, 3, 4)
        }
        assert len(possible) > 1


@given(vetoed())
def test_expected_calls_with_vetoes_are_those_of_asking_each_sample(table) -> None:
    codes, precision, latency, veto = table
    total = np.argsort(-precision, kind="stable").tolist()
    found = lazy.plan(codes, precision, latency, veto)
    counts = np.zeros(len(codes))
    for column, k in zip(codes.T.tolist(), veto.tolist(), strict=True):
        counts[list(ask(column, found.order, total, k))] += 1 / codes.shape[1]
    np.testing.assert_allclose(found.asked, counts)
    each = lazy.asked_each(codes, precision, found.order, veto)
    np.testing.assert_allclose(each.mean(axis=1), counts)


@given(tables(), st.randoms(use_true_random=False))
def test_the_lazy_vote_is_the_full_vote_whatever_the_order(table, random) -> None:
    codes, precision, _ = table
    total = np.argsort(-precision, kind="stable").tolist()
    full = majority(codes, precision)
    for sample, column in enumerate(codes.T.tolist()):
        answers = ask(column, random.sample(total, len(total)), total)
        assert vote([answers[m] for m in total if m in answers]) == full[sample]


@given(tables(), st.randoms(use_true_random=False))
def test_it_stops_as_soon_as_it_may(table, random) -> None:
    """One member earlier, some answers of the rest would have changed the vote."""
    codes, precision, _ = table
    total = np.argsort(-precision, kind="stable").tolist()
    for column in codes.T.tolist():
        answers = ask(column, random.sample(total, len(total)), total)
        answers.popitem()
        left = [m for m in total if m not in answers]
        outcomes = {
            vote([(answers | dict.fromkeys(left, other))[m] for m in total])
            for other in (-1, 0, 1, 2, 3, 4)
        }
        assert len(outcomes) > 1


@given(tables())
@example((np.array([[0], [1], [1]], dtype=np.int16), np.ones(3), np.ones(3)))
def test_expected_calls_are_those_of_asking_each_sample(table) -> None:
    codes, precision, latency = table
    total = np.argsort(-precision, kind="stable").tolist()
    found = lazy.plan(codes, precision, latency)
    counts = np.zeros(len(codes))
    for column in codes.T.tolist():
        counts[list(ask(column, found.order, total))] += 1 / codes.shape[1]
    np.testing.assert_allclose(found.asked, counts)
    each = lazy.asked_each(codes, precision, found.order)
    np.testing.assert_allclose(each.mean(axis=1), counts)
    assert found.calls == pytest.approx(counts.sum())
    assert (np.diff(latency[found.order]) >= 0).all()  # the cheapest first


@given(tables())
def test_all_ensembles_at_once_are_each_by_itself(table) -> None:
    codes, precision, latency = table
    masks = enumeration.enumerate_ensembles(len(codes), len(codes))
    asked, _ = lazy.asked_all(codes, precision, latency, masks)
    for mask, shares in zip(masks, asked, strict=True):
        members = list(enumeration.members(mask))
        alone = lazy.plan(codes[members], precision[members], latency[members])
        np.testing.assert_allclose(shares[members], alone.asked)
        assert shares.sum() == pytest.approx(alone.calls)


def test_three_that_always_agree_need_two() -> None:
    codes = np.zeros((3, 5), dtype=np.int16)
    found = lazy.plan(codes, np.array([8.0, 4.0, 3.0]), np.ones(3))
    assert found.calls == 2
    assert found.asked.tolist() == [1, 1, 0]


def test_more_members_than_fit_into_one_number(rng) -> None:
    codes = rng.integers(-3, 8, (25, 40)).astype(np.int16)
    codes[:, 20:] = codes[:, :20]  # each column twice
    precision, latency = rng.random(25), rng.random(25)
    found = lazy.plan(codes, precision, latency)
    total = np.argsort(-precision, kind="stable").tolist()
    calls = [len(ask(column, found.order, total)) for column in codes.T.tolist()]
    assert found.calls == pytest.approx(np.mean(calls))
