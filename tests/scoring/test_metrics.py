"""Scores against fairlearn and by hand, corners included."""

import math
from typing import Any

import numpy as np
import pytest

from ptsearch.scoring import metrics


def test_parity_equals_fairlearn(rng: np.random.Generator) -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    for size in [60] * 50 + [2, 3, 4, 5, 6] * 20:  # small ones have cells without anybody
        gold, codes, group = rng.integers(0, 2, (3, size))
        if len(set(group)) == 1:
            continue
        assert metrics.parity(codes, gold, group) == differences(fairlearn, gold, codes, group)


@pytest.mark.parametrize("base_rates", [(1, 0), (0, 1), (1, 1), (0, 0), (1, 0.5), (0.5, 0)])
def test_base_rate_corners(base_rates: tuple[float, float], rng: np.random.Generator) -> None:
    """Groups of which all, or none, are of one label: rates over nobody are 0, as in fairlearn."""
    fairlearn = pytest.importorskip("fairlearn.metrics")
    for _ in range(20):
        group = np.repeat([1, 0], 40)
        gold = (rng.random(80) < np.repeat(base_rates, 40)).astype(int)
        codes = rng.integers(0, 2, 80)
        assert metrics.parity(codes, gold, group) == differences(fairlearn, gold, codes, group)


def differences(fairlearn: Any, gold: Any, codes: Any, group: Any) -> Any:
    found = [
        function(gold, codes, sensitive_features=group)
        for function in (
            fairlearn.demographic_parity_difference,
            fairlearn.equalized_odds_difference,
        )
    ]
    return pytest.approx([100 * value for value in found])


def test_parity_one_set_has_nobody_to_rate_in_two_cells() -> None:
    """Base-rate parity 1: no positive women, no negative men; an exact classifier looks unfair."""
    fairlearn = pytest.importorskip("fairlearn.metrics")
    group = np.array([1] * 10 + [0] * 10)
    ours = metrics.parity(group, group, group)
    eod = fairlearn.equalized_odds_difference(group, group, sensitive_features=group)
    assert ours == (100.0, 100.0) == (100.0, 100 * eod)


def test_one_group_alone_has_no_difference() -> None:
    fairlearn = pytest.importorskip("fairlearn.metrics")
    gold, codes, group = np.array([1, 0, 1]), np.array([1, 1, 0]), np.ones(3)
    assert metrics.parity(codes, gold, group) == differences(fairlearn, gold, codes, group)
    assert metrics.parity(codes, gold, group) == (0.0, 0.0)


def test_refused_people_stay_in_their_group() -> None:
    codes = np.array([1, -1, 1, 1])
    parity = metrics.parity(codes, gold=np.ones(4), group=np.array([0, 0, 1, 1]))
    assert parity == (50.0, 50.0)


def test_abstaining_is_right_only_where_allowed() -> None:
    codes = np.array([3, 3, 1, -1])
    correct = metrics.is_correct(
        codes, np.array([0, 0, 1, 0]), np.full(4, 3), np.array([True, False, False, True])
    )
    assert correct.tolist() == [True, False, True, False]


def test_refusals_split_by_reason_and_empty_is_nan() -> None:
    assert metrics.refusals(np.array([0, -1, -2, -3])) == (75.0, 25.0, 25.0, 25.0)
    assert math.isnan(metrics.refusals(np.array([])).rate)
    assert math.isnan(metrics.majority_rate(np.array([])))
