"""Closeness to the dense model: answers that flip, divergence and margin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ptsearch.scoring import metrics
from ptsearch.scoring.closeness import Near, divergence, kl, margin, margins

NAN = np.nan
DENSE = np.log(np.array([[0.5, 0.5, NAN], [0.7, 0.2, 0.1], [NAN, NAN, NAN]]))
OTHER = np.log(np.array([[0.25, 0.75, NAN], [0.7, 0.2, 0.1], [NAN, NAN, NAN]]))


def near(logprobs: np.ndarray) -> Near:
    return Near(divergence(DENSE, logprobs), margins(logprobs))


def test_divergence_and_margin_of_what_can_be_done_by_hand() -> None:
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert_allclose(divergence(DENSE, OTHER), [expected, 0, NAN], atol=1e-12)
    assert_allclose(margins(OTHER), [np.log(3), np.log(3.5), NAN])
    assert kl(near(OTHER), near(DENSE)) == pytest.approx(expected / 2)
    share = (np.log(3) + np.log(3.5)) / np.log(3.5)  # medians of two, and of 0 and log 3.5
    assert margin(near(OTHER), near(DENSE)) == pytest.approx(100 * share)


def test_the_dense_model_is_as_close_as_can_be_and_generated_replies_say_nothing() -> None:
    assert (kl(near(DENSE), near(DENSE)), margin(near(DENSE), near(DENSE))) == (0, 100)
    nothing = near(np.full_like(DENSE, NAN))
    assert np.isnan([kl(nothing, near(DENSE)), margin(nothing, near(DENSE))]).all()


@given(st.integers(0, 2**32 - 1))
def test_divergence_is_not_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dense, other = (np.log(rng.dirichlet(np.ones(4), 9)) for _ in range(2))
    assert (divergence(dense, other) > 0).all()
    assert_allclose(divergence(dense, dense), 0)


@given(st.lists(st.tuples(*[st.integers(-3, 2)] * 3), min_size=1))
def test_flips_that_gain_and_lose_differ_by_the_gain_in_accuracy(rows) -> None:
    codes, dense, gold = np.array(rows).T
    right, was_right = codes == gold, dense == gold
    found = metrics.flips(codes, dense, right & (gold >= 0), was_right & (gold >= 0))
    gain = ((codes == gold) & (gold >= 0)).mean() - ((dense == gold) & (gold >= 0)).mean()
    assert found.won - found.lost == pytest.approx(100 * gain)
    assert found.all >= found.won + found.lost - 1e-9
    assert metrics.flips(dense, dense, was_right, was_right) == (0, 0, 0)
