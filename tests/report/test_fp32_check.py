"""Answers that rounding moved, and those that fp32 leaves open as well."""

import numpy as np
import pytest

from ptsearch.report import fp32_check


def test_near_ties_are_counted_among_choices_only() -> None:
    margins = np.array([0.0, 1e-4, 3e-4, 2.0, np.nan])
    assert fp32_check.near_ties(margins) == 2
    assert fp32_check.near_ties(np.array([np.nan])) == 0


def test_a_refusal_that_becomes_an_answer_is_a_flip() -> None:
    assert fp32_check.flips(np.array([0, 1, -1, -2]), np.array([0, 1, 1, -2])) == pytest.approx(25)
