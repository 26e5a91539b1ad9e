"""Bounds of a gate: their laws, and how often they are wrong."""

import numpy as np
import pytest
from gates import gate, population
from tables import random_asked, random_codes
from test_golden import golden, table  # noqa: F401

from ptsearch.scoring import rates, scores
from ptsearch.scoring.intervals import ClusterSums
from ptsearch.scoring.noninferiority import LESS_IS_BETTER, Bounds, bounds
from ptsearch.scoring.rates import Plan
from ptsearch.search.scorer import scorers

WEIGHTS = {"adversarial": 1.0, "fairness": 2.0, "ethics": 1.0, "ood": 0.5}
KEYS = ["trust", "mmlu", *WEIGHTS, "refusal_rate", "fairness/zero.dpd", "fairness/few.eod"]
MARGIN = 2.0
ONE = Plan(
    row=np.zeros(1, dtype=np.intp), target=np.zeros(1, dtype=np.int16), first=np.ones(1, bool),
    rate=np.zeros(1, dtype=np.intp), size=np.ones(1, dtype=np.int64),
    gaps=np.zeros((0, 2, 2), dtype=np.intp), answered=np.zeros((0, 2), dtype=np.intp),
    keys=("accuracy",), constant=np.zeros(1), by_rate=np.ones((1, 1)), by_gap=np.zeros((1, 0)),
)  # fmt: skip


def accuracy(base, candidate, rng, resamples: int = 199) -> Bounds:
    """Of two systems' correctness (items,)."""
    hits = np.stack([base, candidate]).astype(float)[..., None]
    sums = ClusterSums(hits, np.ones((base.size, 1)), np.zeros(base.size, dtype=np.intp))
    return bounds(ONE, sums, ["accuracy"], MARGIN, rng, resamples)["accuracy"]


def test_the_estimate_is_the_difference_and_lies_between_the_bounds(rng) -> None:
    asked = random_asked(rng, 100)
    votes = random_codes(rng, asked, 2)
    plan = rates.plan(asked, WEIGHTS)
    sums = rates.cluster_sums(plan, asked, votes, np.arange(asked.gold.size))
    base, candidate = (scores.score(asked, codes, WEIGHTS) for codes in votes)
    for key, found in bounds(plan, sums, KEYS, MARGIN, rng, 199).items():
        sign = -1 if key.endswith(LESS_IS_BETTER) else 1
        assert found.estimate == pytest.approx(sign * (candidate[key] - base[key]))
        assert found.low < found.estimate < found.high


def test_equal_answers_to_few_items_show_nothing(rng) -> None:
    """60 items without a change hide a loss of 2 points in 30 % of cases; 400, in 0.03 %."""
    for items, shown in ((60, False), (400, True)):
        correct = rng.random(items) < 0.6
        found = accuracy(correct, correct, rng)
        assert found.estimate == 0
        assert (found.low > -MARGIN) == shown
        if not shown:
            assert 120 < found.factor * items < 250  # log 0.05 / log 0.98 = 149


def test_more_items_tighten_both_bounds(rng) -> None:
    base = rng.random(2000) < 0.7
    candidate = np.where(rng.random(2000) < 0.1, rng.random(2000) < 0.7, base)
    few, many = (accuracy(base[:n], candidate[:n], rng, 999) for n in (200, 2000))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_a_change_of_the_gap_whose_sign_is_unsure_is_no_gain(rng) -> None:
    """Rates of 50 % in both groups; the candidate's differ, and whichever group comes out ahead in
    the sample, the gap's bound counts the change as a loss.
    """
    asked = random_asked(rng, 150)
    plan = rates.plan(asked, WEIGHTS)
    votes = random_codes(rng, asked, 2)
    sums = rates.cluster_sums(plan, asked, votes, np.arange(asked.gold.size))
    dpd = "fairness/zero.dpd"
    found = bounds(plan, sums, [dpd], MARGIN, rng, 199)[dpd]
    swapped = sums._replace(hits=sums.hits[::-1])
    other = bounds(plan, swapped, [dpd], MARGIN, rng, 199)[dpd]
    assert found.low <= -abs(found.estimate)
    assert other.low <= -abs(other.estimate)


@pytest.mark.parametrize("won", [0.0, 0.03])
def test_a_loss_of_the_margin_seldom_passes(won: float, rng) -> None:
    """300 gates: at most 5 % and three standard errors."""
    passed = 0
    for _ in range(300):
        draw, right = rng.random(200), rng.random(200) < 0.6
        base = np.where(draw < 0.02 + won, True, right)
        candidate = np.where(draw < 0.02 + won, False, right)
        turn = draw > 1 - won
        base, candidate = np.where(turn, False, base), np.where(turn, True, candidate)
        passed += accuracy(base, candidate, rng).low > -MARGIN
    assert passed <= 300 * 0.05 + 3 * np.sqrt(300 * 0.05 * 0.95)


@pytest.mark.slow
def test_ten_thousand_gates_at_the_margin(table, rng) -> None:
    """Every score in which a recorded variant is worse than dense, the margin exactly by so much:
    no score passes or fails more often than 5 %, three standard errors allowed.
    """
    scorer = scorers(table)["all"]
    cases = []
    for label in table.variants:
        whole = population(table, scorer, label)
        gaps = [key for key in whole.plan.keys if key.endswith((".dpd", ".eod"))]
        keys = ["adversarial", "fairness", "ethics", "ood", "mmlu", *gaps]
        cases += [(whole, key) for key in keys if whole.truth[key] <= -0.3]
    each = 10_000 // len(cases) + 1
    passed, failed = [], []
    for whole, key in cases:
        margin = -whole.truth[key]
        found = [gate(whole, key, margin, 1, rng) for _ in range(each)]
        passed.append(np.mean([one.low > -margin for one in found]))
        failed.append(np.mean([one.high < -margin for one in found]))
    assert np.mean(passed) <= 0.05
    assert np.mean(failed) <= 0.05
    assert max(passed) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / each)
    assert max(failed) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / each)
