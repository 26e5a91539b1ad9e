"""Diversity of errors against counting by hand, and its laws; the heat maps' file."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_table, search_and_holdout
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from tables import random_asked, random_codes

from ptsearch.scoring import metrics
from ptsearch.scoring.diversity import (
    ALL,
    Diversity,
    compare,
    correlation_by_field,
    effective_voters,
    measure,
    pair_rows,
    summary,
)
from ptsearch.variant import Variant

SEEDS = st.integers(0, 2**32 - 1)


def by_hand(a: np.ndarray, b: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Definitions word by word, one pair, no abstaining."""
    n11 = n00 = n10 = n01 = agree = both_labels = same = 0
    for x, y, g in zip(a, b, gold, strict=True):
        n11 += x == g and y == g
        n00 += x != g and y != g
        n10 += x == g and y != g
        n01 += x != g and y == g
        agree += x == y or (x < 0 and y < 0)
        if x >= 0 and y >= 0 and x != g and y != g:
            both_labels += 1
            same += x == y
    n = len(gold)
    return {
        "agreement": 100 * agree / n,
        "double_fault": 100 * n00 / n,
        "q": (n11 * n00 - n10 * n01) / (n11 * n00 + n10 * n01),
        "same_wrong": 100 * same / both_labels,
        "correlation": float(np.corrcoef(a == gold, b == gold)[0, 1]),
    }


def test_pairs_equal_counting_by_hand(rng: np.random.Generator) -> None:
    gold = rng.integers(0, 4, 200)
    codes = np.where(rng.random((5, 200)) < 0.5, gold, rng.integers(-3, 4, (5, 200)))
    found = compare(codes.astype(np.int16), codes == gold)._asdict()
    for i, j in itertools.permutations(range(5), 2):
        for key, value in by_hand(codes[i], codes[j], gold).items():
            assert found[key][i, j] == pytest.approx(value), key


@given(SEEDS)
def test_symmetric_and_within_bounds_and_blind_to_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = random_asked(rng, samples=8)
    codes = random_codes(rng, asked, 4)
    by_benchmark, order = measure(asked, codes), rng.permutation(4)
    shuffled = measure(asked, codes[order])
    for name, diversity in by_benchmark.items():
        assert diversity.accuracy.max() <= diversity.oracle <= 100
        assert shuffled[name].effective == pytest.approx(diversity.effective, nan_ok=True)
        for key, each in diversity.pairs._asdict().items():
            assert_allclose(each, each.T)
            assert_allclose(getattr(shuffled[name].pairs, key), each[np.ix_(order, order)])
            known, least = each[~np.isnan(each)], -1 if key in ("q", "correlation") else 0
            assert (known >= least - 1e-9).all()
            assert (known <= (1 if least else 100) + 1e-9).all()


def test_copies_are_one_voter_and_strangers_are_many(rng: np.random.Generator) -> None:
    right = rng.random((1, 20_000)) < 0.7
    copies = compare(np.where(right, 1, 0).repeat(5, axis=0), right.repeat(5, axis=0))
    assert effective_voters(copies.correlation) == pytest.approx(1)
    right = rng.random((5, 20_000)) < 0.7
    strangers = compare(np.where(right, 1, 0), right)
    assert effective_voters(strangers.correlation) == pytest.approx(5, rel=0.1)
    assert effective_voters(np.ones((1, 1))) == 1


def test_who_is_always_right_has_no_correlation() -> None:
    right = np.array([[True, True, True], [True, False, True]])
    found = compare(right.astype(np.int16), right)
    assert np.isnan(found.correlation[0, 1])
    assert np.isnan(found.same_wrong[0, 1])
    assert np.isnan(effective_voters(found.correlation))


def test_only_scored_scenarios_count(rng: np.random.Generator) -> None:
    asked = random_asked(rng)
    codes = random_codes(rng, asked, 3)
    (unscored,) = [part for part in asked.parts if not part.scenario.scored]
    other = codes.copy()
    other[:, unscored.rows] = 0
    a, b = measure(asked, codes), measure(asked, other)
    assert list(a) == ["mmlu", "adversarial", "fairness", "ethics", "ood", "safety", ALL]
    assert a[ALL].samples == asked.gold.size - unscored.rows.size
    assert_allclose(a[ALL].pairs.agreement, b[ALL].pairs.agreement)
    right = metrics.is_correct(codes, asked.gold, asked.n_labels, asked.abstain_ok)
    rows = np.concatenate([part.rows for part in asked.parts if part.benchmark == "ood"])
    assert_allclose(a["ood"].accuracy, 100 * right[:, rows].mean(axis=1))


def test_correlations_of_pairs_that_differ_in_one_field() -> None:
    base = Variant("m", "0", method="gptq", bits=3, group_size=64)
    variants = [base, replace(base, seed=1), replace(base, bits=4), replace(base, method="rtn")]
    right = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]], dtype=bool)
    codes = right.astype(np.int16)
    pairs = compare(codes, right)
    found = correlation_by_field(Diversity(4, right.mean(1), 1.0, 1.0, pairs), variants)
    assert found == {
        "method": pytest.approx(pairs.correlation[0, 3]),
        "bits": pytest.approx(pairs.correlation[0, 2]),
        "seed": pytest.approx(pairs.correlation[0, 1]),
    }


def test_tables_hold_every_pair_and_their_means(tmp_path) -> None:
    table = fake_table(tmp_path)
    scorer, _ = search_and_holdout(table)
    by_benchmark = measure(scorer.asked, scorer.answers(table, list(table.variants))[0])
    pairs = [row for row in pair_rows(by_benchmark, table.variants) if row["benchmark"] == "ood"]
    assert len(pairs) == 10
    (row,) = [row for row in summary(by_benchmark) if row["benchmark"] == "ood"]
    assert row["voters"] == 5
    for key in ("correlation", "q", "agreement"):
        assert row[key] == pytest.approx(np.mean([pair[key] for pair in pairs]))
