"""Precision-ensemble voting (arXiv 2511.22483, Algorithm 1) on answer codes.

Arrays are (members, samples); codes < 0 are no answers and are dropped before the vote.
"""

import numpy as np
from numpy.typing import NDArray

from ptsearch.rules import REFUSED

Codes = NDArray[np.int16]


def majority(answers: Codes, precision: NDArray[np.float64]) -> Codes:
    """The most frequent label of each sample; a tie goes to the most precise of the tied members.

    `precision` (members,): higher is more precise; equal precisions rank by position. A sample
    without a usable answer is `REFUSED`.
    """
    answers = answers[np.argsort(-precision, kind="stable")]
    count = (answers[:, None, :] == answers[None, :, :]).sum(axis=1, dtype=np.int16)
    count[answers < 0] = 0
    first_best = count.argmax(axis=0)  # the first member is the most precise
    samples = np.arange(answers.shape[1])
    return np.where(count[first_best, samples] > 0, answers[first_best, samples], REFUSED).astype(
        np.int16
    )


def majority_counting(
    answers: Codes, precision: NDArray[np.float64], codes: tuple[int, ...]
) -> Codes:
    """The majority with the answers in `codes` (< 0) not dropped: together they are one more label,
    and where it wins the vote is `REFUSED`.
    """
    extra = np.int16(max(int(answers.max(initial=0)), 0) + 1)
    voted = majority(np.where(np.isin(answers, codes), extra, answers), precision)
    return np.where(voted == extra, REFUSED, voted).astype(np.int16)


VOTES = {"majority": majority}
