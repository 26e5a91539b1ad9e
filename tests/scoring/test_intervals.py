"""The simultaneous bootstrap: its estimates, its laws, and that it covers as often as it says."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tables import random_asked, random_codes

from ptsearch.scoring import rates, scores
from ptsearch.scoring.intervals import ClusterSums, clusters_needed, max_t_intervals

WEIGHTS = {"adversarial": 1.0, "fairness": 2.0, "ethics": 1.0, "ood": 0.5}
KEYS = ("trust", "mmlu", *WEIGHTS, "refusal_rate", "fairness/zero.dpd", "fairness/few.eod")


def equal_voters(rng: np.random.Generator, n: int, clusters: int, copied: float) -> np.ndarray:
    """Correctness (n, clusters) of voters that are right in 70 %, and copy one another in part."""
    common, own = rng.random(clusters) < 0.7, rng.random((n, clusters)) < 0.7
    return np.where(rng.random((n, clusters)) < copied, common, own).astype(float)


def against_the_first(n: int) -> np.ndarray:
    """Contrasts (n - 1, n, 1): each system's one rate minus that of the first."""
    coefficients = np.zeros((n - 1, n, 1))
    coefficients[:, 0] = -1
    coefficients[np.arange(n - 1), np.arange(1, n)] = 1
    return coefficients


def one_rate(correct: np.ndarray) -> ClusterSums:
    clusters = correct.shape[1]
    ones, together = np.ones((clusters, 1)), np.zeros(clusters, dtype=np.intp)
    return ClusterSums(correct[:, :, None], ones, together)


def test_estimates_are_the_differences_of_the_scores(rng) -> None:
    asked = random_asked(rng, 200)
    votes = random_codes(rng, asked, 4)
    plan = rates.plan(asked, WEIGHTS)
    sums = rates.cluster_sums(plan, asked, votes, rng.integers(0, 700, asked.gold.size))
    pairs = [(0, 1), (3, 1), (2, 2)]
    found = max_t_intervals(sums, rates.contrasts(plan, sums, KEYS, pairs), rng, resamples=200)
    one = [scores.score(asked, codes, WEIGHTS) for codes in votes]
    expected = [one[a][key] - one[b][key] for a, b in pairs for key in KEYS]
    assert_allclose(found.estimate, expected, atol=1e-9)
    same = slice(2 * len(KEYS), None)
    assert_array_equal(found.low[same], 0)
    assert_array_equal(found.high[same], 0)
    assert not found.significant[same].any()
    assert (found.low[: 2 * len(KEYS)] < found.high[: 2 * len(KEYS)]).all()


def test_slopes_are_the_derivatives_of_the_scores(rng) -> None:
    plan = rates.plan(asked := random_asked(rng, 200), WEIGHTS)
    sums = rates.cluster_sums(plan, asked, random_codes(rng, asked, 3), np.arange(asked.gold.size))
    hits = sums.hits.sum(axis=1)
    slope = rates.slopes(plan, hits)
    for rate in range(plan.size.size):
        more = hits + 1e-3 * (np.arange(plan.size.size) == rate)
        before, after = rates.score_counts(plan, hits), rates.score_counts(plan, more)
        moved = np.stack([after[key] - before[key] for key in plan.keys], axis=1)
        assert_allclose(moved, slope[:, :, rate] * 0.1 / plan.size[rate], atol=1e-9)


def test_a_sample_asked_twice_is_no_new_evidence(rng) -> None:
    sums = one_rate(equal_voters(rng, 3, 80, 0.5))
    twice = sums._replace(hits=2 * sums.hits, sizes=2 * sums.sizes)
    once, again = (
        max_t_intervals(each, against_the_first(3), np.random.default_rng(1), resamples=300)
        for each in (sums, twice)
    )
    for a, b in zip(once, again, strict=True):
        assert_allclose(a, b, atol=1e-9)


def test_the_reach_is_that_of_a_plain_bootstrap(rng) -> None:
    """One contrast of ratios with uneven clusters: close to 1.96 bootstrap deviations."""
    sizes = rng.integers(1, 5, (300, 1)).astype(float)
    hits = rng.binomial(sizes.astype(int), [[[0.6]], [[0.7]]]).astype(float)
    sums = ClusterSums(hits, sizes, np.arange(300) % 3)
    found = max_t_intervals(sums, against_the_first(2), rng, resamples=4000)
    places = rng.integers(0, 300, (4000, 300))
    ratios = hits[:, places, 0].sum(axis=2) / sizes[places, 0].sum(axis=1)
    deviation = 100 * (ratios[1] - ratios[0]).std()
    assert (found.high - found.low)[0] / 2 == pytest.approx(1.96 * deviation, rel=0.1)


def test_a_real_gain_is_significant_and_more_contrasts_widen(rng) -> None:
    correct = equal_voters(rng, 12, 400, 0.6)
    correct[1] = np.maximum(correct[1], rng.random(400) < 0.5)
    alone = max_t_intervals(one_rate(correct[:2]), against_the_first(2), rng)
    among = max_t_intervals(one_rate(correct), against_the_first(12), rng)
    assert alone.significant[0]
    assert among.significant[0]
    assert among.estimate[0] == alone.estimate[0]
    assert among.high[0] > alone.high[0]


def test_few_differences_do_not_blow_the_others_up(rng) -> None:
    """A contrast in which most resamples hold no difference leaves the rest their intervals."""
    correct = equal_voters(rng, 3, 400, 0.6)
    correct[2] = correct[0]
    correct[2, 0] = 1 - correct[2, 0]
    found = max_t_intervals(one_rate(correct), against_the_first(3), rng)
    alone = max_t_intervals(one_rate(correct[:2]), against_the_first(2), rng)
    assert not found.significant[1]
    assert found.low[1] < 0 < found.high[1]
    assert found.high[0] - found.low[0] < 1.5 * (alone.high[0] - alone.low[0])


def test_joint_coverage_of_equal_voters(rng) -> None:
    repetitions = 300
    missed = sum(
        max_t_intervals(
            one_rate(equal_voters(rng, 8, 150, 0.8)), against_the_first(8), rng, resamples=400
        ).significant.any()
        for _ in range(repetitions)
    )
    assert 0.91 <= 1 - missed / repetitions <= 0.985


def test_too_few_clusters_say_how_many_it_takes(rng) -> None:
    assert clusters_needed(1, 0.95) == 6  # 2 x 0.5^6 = 0.031
    correct = equal_voters(rng, 9, 8, 0.5)
    with pytest.raises(ValueError, match=r"8 simultaneous 95 % .* at least 9 items.* has 8"):
        max_t_intervals(one_rate(correct), against_the_first(9), rng)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        max_t_intervals(one_rate(correct), against_the_first(9), rng, level=95)
    with pytest.raises(ValueError, match="nothing to compare"):
        max_t_intervals(one_rate(correct), np.zeros((0, 9, 1)), rng)


def test_clusters_and_strata_come_from_items_sex_and_gold(rng) -> None:
    asked = random_asked(rng, 60)
    plan = rates.plan(asked, WEIGHTS)
    items = np.array([f"item {i // 2}" for i in range(asked.gold.size)])
    sums = rates.cluster_sums(plan, asked, random_codes(rng, asked, 2), items)
    assert_array_equal(sums.sizes.sum(axis=0), plan.size)
    assert sums.hits.shape == (2, *sums.sizes.shape)
    alone = rates.cluster_sums(plan, asked, random_codes(rng, asked, 2), np.arange(items.size))
    fairness = np.concatenate([p.rows for p in asked.parts if p.benchmark == "fairness"])
    kinds = set(zip(asked.group[fairness].tolist(), asked.gold[fairness].tolist(), strict=True))
    assert alone.strata.max() + 1 == len(kinds) + 5  # and the five other benchmarks


def test_a_rate_over_nobody_changes_nothing(rng) -> None:
    """A limited Adult setting of parity 1 has no positive women: that rate is 0 for everybody."""
    sums = one_rate(equal_voters(rng, 3, 60, 0.5))
    empty = np.zeros((3, 60, 1))
    wider = ClusterSums(
        np.concatenate([sums.hits, empty], axis=2),
        np.concatenate([sums.sizes, np.zeros((60, 1))], axis=1),
        sums.strata,
    )
    coefficients = against_the_first(3)
    both = np.concatenate([coefficients, coefficients], axis=2)
    plain = max_t_intervals(sums, coefficients, np.random.default_rng(1), resamples=200)
    found = max_t_intervals(wider, both, np.random.default_rng(1), resamples=200)
    for name in ("estimate", "low", "high"):
        assert_allclose(getattr(found, name), getattr(plain, name))
