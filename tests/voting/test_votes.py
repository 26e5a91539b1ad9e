"""Majority voting against a plain reference, and its laws."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE
from ptsearch.voting.selective import majority_or_refusal, margins
from ptsearch.voting.soft import log_opinion_pool
from ptsearch.voting.votes import majority, majority_counting
from ptsearch.voting.weighted import weighted_majority


def plain_vote(answers: list[int], precision: list[float]) -> int:
    """Algorithm 1, one sample, word by word."""
    kept = [(answer, p) for answer, p in zip(answers, precision, strict=True) if answer >= 0]
    if not kept:
        return REFUSED
    votes = Counter(answer for answer, _ in kept)
    tied = [(answer, p) for answer, p in kept if votes[answer] == max(votes.values())]
    most_precise = max(p for _, p in tied)
    return next(answer for answer, p in tied if p == most_precise)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    members, samples = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    code = st.integers(-3, 4)
    rows = draw(st.lists(st.lists(code, min_size=samples, max_size=samples), min_size=members,
                         max_size=members))  # fmt: skip
    precision = draw(st.lists(st.sampled_from([3.0, 4.0, 8.0]), min_size=members, max_size=members))
    return np.array(rows, dtype=np.int16), np.array(precision)


@given(tables())
def test_majority_equals_the_plain_vote(table: tuple[np.ndarray, np.ndarray]) -> None:
    answers, precision = table
    expected = [plain_vote(list(column), list(precision)) for column in answers.T]
    assert_array_equal(majority(answers, precision), expected)


@given(tables(), st.randoms(use_true_random=False))
def test_member_order_matters_only_between_equal_precisions(table, random) -> None:
    answers, precision = table
    precision = precision + np.linspace(0.5, 0, len(precision))  # a total order
    order = random.sample(range(len(answers)), len(answers))
    assert_array_equal(majority(answers[order], precision[order]), majority(answers, precision))


@given(tables())
def test_one_member_votes_as_itself(table: tuple[np.ndarray, np.ndarray]) -> None:
    answers, precision = table
    alone = majority(answers[:1], precision[:1])
    assert_array_equal(alone, np.where(answers[0] < 0, REFUSED, answers[0]))


def test_tie_goes_to_the_most_precise_of_the_tied_not_of_all() -> None:
    answers = np.array([[0], [1], [1], [2], [2]], dtype=np.int16)
    precision = np.array([8.0, 3.0, 4.0, 3.0, 3.0])
    assert majority(answers, precision).tolist() == [1]


@given(tables(), st.floats(0.1, 9))
def test_equal_weights_are_the_majority(table, weight: float) -> None:
    answers, precision = table
    weights = np.full((len(answers), 1), weight)
    assert_array_equal(weighted_majority(answers, precision, weights), majority(answers, precision))


@given(tables(), st.randoms(use_true_random=False), st.integers(0, 99))
def test_weighted_is_the_plain_sum_in_any_order(table, random, seed: int) -> None:
    answers, precision = table
    precision = precision + np.linspace(0.5, 0, len(precision))
    weights = np.random.default_rng(seed).integers(0, 5, answers.shape) / 4
    voted = weighted_majority(answers, precision, weights)
    for column, own, label in zip(answers.T, weights.T, voted, strict=True):
        support = {a: own[column == a].sum() for a in column if a >= 0}
        assert support.get(label, 0) == max(support.values(), default=0)
        assert (label == REFUSED) == (not support)
    order = random.sample(range(len(answers)), len(answers))
    assert_array_equal(weighted_majority(answers[order], precision[order], weights[order]), voted)


def logprobs_of(answers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log-probabilities whose highest label is the answer; none where there is no answer."""
    found = np.log(rng.dirichlet(np.ones(6), answers.shape))
    found.sort(axis=2)
    for place in np.ndindex(answers.shape):
        if answers[place] < 0:
            found[place] = np.nan
        else:
            found[place] = np.roll(found[place], answers[place] + 1)
    found[:, :, 5] = np.nan  # a label that no sample has
    return found


@given(tables(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_soft_laws(table, seed: int, random) -> None:
    answers, precision = table
    precision = precision + np.linspace(0.5, 0, len(precision))
    logprobs = logprobs_of(answers, np.random.default_rng(seed))
    alone = log_opinion_pool(answers[:1], precision[:1], logprobs[:1])
    assert_array_equal(alone, majority(answers[:1], precision[:1]))
    order = random.sample(range(len(answers)), len(answers))
    voted = log_opinion_pool(answers, precision, logprobs)
    assert_array_equal(log_opinion_pool(answers[order], precision[order], logprobs[order]), voted)
    generated = np.full_like(logprobs, np.nan)
    assert_array_equal(
        log_opinion_pool(answers, precision, generated), majority(answers, precision)
    )


def test_soft_lets_one_who_is_sure_outweigh_two_who_are_not() -> None:
    logprobs = np.log([[[0.99, 0.01]], [[0.45, 0.55]], [[0.45, 0.55]]])
    answers, precision = np.array([[0], [1], [1]], dtype=np.int16), np.ones(3)
    assert log_opinion_pool(answers, precision, logprobs).tolist() == [0]
    assert majority(answers, precision).tolist() == [1]
    tied = np.log([[[0.3, 0.7]], [[0.7, 0.3]]])
    said = np.array([[1], [0]], dtype=np.int16)
    assert log_opinion_pool(said, np.array([3.0, 4.0]), tied).tolist() == [0]
    assert log_opinion_pool(said, np.array([4.0, 3.0]), tied).tolist() == [1]


@given(tables())
def test_selective_refuses_exactly_below_its_margin(table) -> None:
    answers, precision = table
    wide = margins(answers)
    for column, margin in zip(answers.T, wide, strict=True):
        first, second, *_ = *sorted(Counter(column[column >= 0]).values(), reverse=True), 0, 0
        assert margin == (first - second) / len(answers)
    assert_array_equal(majority_or_refusal(answers, precision, 0.0), majority(answers, precision))
    voted = majority_or_refusal(answers, precision, 0.5)
    assert (voted[wide < 0.5] == REFUSED).all()
    assert_array_equal(voted[wide >= 0.5], majority(answers, precision)[wide >= 0.5])


@given(tables())
def test_counting_no_codes_drops_them_all_and_counting_all_is_a_vote_for_refusing(table) -> None:
    answers, precision = table
    assert_array_equal(majority_counting(answers, precision, ()), majority(answers, precision))
    every = (REFUSED, UNUSABLE, CONTRADICTORY)
    named = majority(np.where(answers < 0, 9, answers).astype(np.int16), precision)
    assert_array_equal(
        majority_counting(answers, precision, every), np.where(named == 9, REFUSED, named)
    )
