"""Exact enumeration against the slow path, plain dominance, and Optuna's hypervolume."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from optuna._hypervolume import compute_hypervolume
from tables import random_asked, random_codes, random_refusals

from ptsearch.benchmarks.parsing import REFUSED, UNUSABLE
from ptsearch.scoring import rates, refusals, scores
from ptsearch.scoring.cost import VariantCost, total_cost
from ptsearch.search import enumeration, pareto
from ptsearch.voting import lazy
from ptsearch.voting import votes as voting

WEIGHTS = {"adversarial": 1.0, "fairness": 2.0, "ethics": 1.0, "ood": 0.5}
PRECISION = np.array([4.0, 8.0, 3.0, 4.0, 3.0, 16.0])
seeds = st.integers(0, 2**32 - 1)


def slow_scores(asked, codes, precision, masks) -> list[dict[str, float]]:
    """`voting.majority` and `scores.score`, one ensemble after the other."""
    chosen = [list(enumeration.members(mask)) for mask in masks]
    known = asked.refusals
    votes = [
        refusals.outcomes(
            voting.majority(refusals.ballots(codes[places], known), precision[places]),
            codes[places],
            known,
        )
        for places in chosen
    ]
    return [scores.score(asked, voted, WEIGHTS) for voted in votes]


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(1, 6), st.booleans())
def test_every_score_equals_the_slow_path(seed: int, n_variants: int, refusing: bool) -> None:
    rng = np.random.default_rng(seed)
    asked = random_asked(rng)
    if refusing:
        dense = random_codes(rng, asked, 1)[0]
        not_offered = (dense == asked.n_labels) & (asked.gold != asked.n_labels)
        dense[not_offered & ~asked.abstain_ok] = REFUSED
        asked = asked._replace(refusals=random_refusals(rng, asked), dense=dense)
    codes, precision = random_codes(rng, asked, n_variants), PRECISION[:n_variants]
    masks = enumeration.enumerate_ensembles(n_variants, n_variants)
    fast = enumeration.score_all(asked, codes, precision, WEIGHTS, masks)
    slow = slow_scores(asked, codes, precision, masks)
    assert {"trust", "mmlu", "refusal_rate", *WEIGHTS} < set(fast)
    for key, values in fast.items():
        assert_allclose(values, [found[key] for found in slow], atol=1e-9, rtol=0, err_msg=key)


def test_subsets_of_a_half_and_without_a_perspective(rng) -> None:
    """Rows selected by `where` leave scenarios with nobody in some rates, or with nobody at all."""
    asked = random_asked(rng)
    few = asked.where(rng.random(asked.gold.size) < 0.04)
    codes = random_codes(rng, few, 4)
    masks = enumeration.enumerate_ensembles(4, 2)
    fast = enumeration.score_all(few, codes, PRECISION[:4], WEIGHTS, masks)
    slow = slow_scores(few, codes, PRECISION[:4], masks)
    for key in ("trust", "mmlu", "refusal_rate", *WEIGHTS):
        assert_allclose(fast[key], [found[key] for found in slow], atol=1e-9, rtol=0, err_msg=key)
    with pytest.raises(ValueError, match=r"no data for toxicity.*trust.weights.toxicity=0"):
        enumeration.score_all(few, codes, PRECISION[:4], {"toxicity": 1.0}, masks)


def test_a_score_that_is_not_estimable_is_nan_on_both_paths(rng) -> None:
    """A variant that answers one sex alone has no fairness, so no trust; a vote may have both."""
    asked = random_asked(rng)
    codes = random_codes(rng, asked, 3)
    codes[0, asked.group == 0] = UNUSABLE
    masks = enumeration.enumerate_ensembles(3, 2)
    fast = enumeration.score_all(asked, codes, PRECISION[:3], WEIGHTS, masks)
    slow = slow_scores(asked, codes, PRECISION[:3], masks)
    for key in ("trust", "mmlu", *WEIGHTS):
        assert_allclose(fast[key], [found[key] for found in slow], atol=1e-9, rtol=0, err_msg=key)
    alone = masks == 1
    assert np.isnan(fast["trust"]).tolist() == alone.tolist()
    assert np.isnan(fast["fairness/few.eod"]).tolist() == alone.tolist()


def test_published_rules_take_the_slow_path(rng) -> None:
    asked = random_asked(rng)._replace(rules="dt")
    codes = random_codes(rng, asked, 3)
    masks = enumeration.enumerate_ensembles(3, 3)
    found = enumeration.score_all(asked, codes, PRECISION[:3], WEIGHTS, masks)
    slow = slow_scores(asked, codes, PRECISION[:3], masks)
    assert_array_equal(found["trust"], [each["trust"] for each in slow])
    with pytest.raises(ValueError, match="rules=clean"):
        rates.plan(asked, WEIGHTS)


def test_more_masks_than_a_chunk(rng) -> None:
    """17 variants: chunks and blocks meet without a seam."""
    asked = random_asked(rng, 5)
    codes, precision = random_codes(rng, asked, 17), rng.integers(2, 9, 17).astype(float)
    masks = enumeration.enumerate_ensembles(17, 17)
    assert masks.size == 2**17 - 1 > enumeration.CHUNK
    trust = enumeration.score_all(asked, codes, precision, WEIGHTS, masks)["trust"]
    places = rng.integers(0, masks.size, 40)
    slow = slow_scores(asked, codes, precision, masks[places])
    assert_allclose(trust[places], [found["trust"] for found in slow], atol=1e-9, rtol=0)


@pytest.mark.parametrize(("n", "largest"), [(1, 1), (5, 2), (5, 5), (6, 9), (12, 4)])
def test_enumeration_is_complete_and_without_repeats(n: int, largest: int) -> None:
    masks = enumeration.enumerate_ensembles(n, largest)
    expected = {
        sum(1 << v for v in chosen)
        for size in range(1, largest + 1)
        for chosen in itertools.combinations(range(n), size)
    }
    assert masks.dtype == np.uint32
    assert len(masks) == len(expected)
    assert set(masks.tolist()) == expected
    assert (np.diff(np.bitwise_count(masks).astype(int)) >= 0).all()


def test_too_many_ensembles_are_refused_with_their_number() -> None:
    with pytest.raises(ValueError, match=r"67,108,863 ensembles of 26.*lower study.max_members"):
        enumeration.enumerate_ensembles(26, 26)
    assert enumeration.enumerate_ensembles(27, 2).size == 27 + 27 * 26 // 2


@pytest.mark.parametrize("latency", ["sequential", "parallel", "lazy"])
def test_costs_equal_those_of_the_members(rng, latency: str) -> None:
    costs = [
        VariantCost(
            {f"{i}-{n}": 10 ** (i + 1) + n for i, n in enumerate(rng.integers(0, 3, 4).tolist())},
            kv_bytes=int(rng.integers(9, 999)),
            latency_ms=float(rng.uniform(10, 90)),
        )
        for _ in range(6)
    ]
    masks = enumeration.enumerate_ensembles(6, 6)
    codes, precision = rng.integers(-1, 3, (6, 30)).astype(np.int16), rng.random(6)
    no_refusals = random_asked(rng)
    each = np.array([cost.latency_ms for cost in costs])
    memory, times = enumeration.cost_all(costs, latency, masks, (no_refusals, codes, precision))
    for i, mask in enumerate(masks):
        members = list(enumeration.members(mask))
        shares = lazy.plan(codes[members], precision[members], each[members]).asked.tolist()
        slow = total_cost([costs[v] for v in members], latency, shares)
        assert memory[i] == slow.memory_gb
        assert times[i] == pytest.approx(slow.latency_ms, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 4), st.integers(1, 60))
def test_front_is_what_nothing_dominates(seed: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, (n, k)).astype(float)
    directions = rng.choice(["minimize", "maximize"], k).tolist()
    losses = values * [1 if direction == "minimize" else -1 for direction in directions]
    no_worse = (losses[:, None] <= losses[None]).all(axis=2)
    better = (losses[:, None] < losses[None]).any(axis=2)
    expected = np.flatnonzero(~(no_worse & better).any(axis=0))
    assert_array_equal(pareto.pareto_front(values, directions), expected)


def test_front_refuses_what_it_cannot_compare() -> None:
    with pytest.raises(ValueError, match="NaN"):
        pareto.pareto_front([[1.0, np.nan]], ["minimize", "maximize"])
    with pytest.raises(ValueError, match=r"\(n, 3\).*\(1, 2\)"):
        pareto.pareto_front([[1.0, 2.0]], ["minimize"] * 3)


@settings(deadline=None, max_examples=50)
@given(seeds, st.integers(1, 4), st.integers(0, 40))
def test_hypervolume_equals_optunas(seed: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((n, k)).round(rng.integers(1, 4))
    reference = np.full(k, 1.1)
    expected = compute_hypervolume(values, reference) if n else 0.0
    assert pareto.hypervolume(values, reference) == pytest.approx(expected, abs=1e-12)
    beyond = np.vstack([values, np.full((1, k), 2.0)])
    assert pareto.hypervolume(beyond, reference) == pareto.hypervolume(values, reference)


def test_greedy_climbs_and_finds_the_best_pair_of_its_first_pick(rng) -> None:
    asked = random_asked(rng)
    codes = random_codes(rng, asked, 6)

    def trust_then_size(masks):
        found = enumeration.score_all(asked, codes, PRECISION, WEIGHTS, masks)["trust"]
        return np.stack([found, -np.bitwise_count(masks).astype(float)], axis=1)

    path = enumeration.greedy(trust_then_size, 6, 4)
    reached = trust_then_size(path)[:, 0]
    assert (np.diff(reached) > 0).all()
    singles = np.uint32(1) << np.arange(6, dtype=np.uint32)
    assert reached[0] == trust_then_size(singles)[:, 0].max()
    pairs = path[0] | singles[singles != path[0]]
    best = trust_then_size(pairs)[:, 0].max()
    assert reached[1] == best if len(path) > 1 else best <= reached[0]
