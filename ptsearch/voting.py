"""Precision-ensemble voting (arXiv 2511.22483, Algorithm 1) on answer codes.

Arrays are (members, samples); codes < 0 are no answers and are dropped before the vote.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

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


def vote(answers: Sequence[int]) -> int:
    """`majority` of one sample's codes; the most precise member stands first."""
    count = Counter(answer for answer in answers if answer >= 0)
    return max(count, key=lambda answer: count[answer], default=REFUSED)  # the first of the tied


def decided(answers: Mapping[str, int], order: Sequence[str]) -> bool:
    """Whether the vote stands, whatever the members of `order` that have no answer yet say.

    `order` is the vote's total order. At worst all of them say the same other label; with that it
    must have fewer votes than the leader, or as many and a later first voter.
    """
    left = [place for place, member in enumerate(order) if member not in answers]
    if not left:
        return True
    said = [(answers[m], place) for place, m in enumerate(order) if answers.get(m, REFUSED) >= 0]
    votes, first = Counter(label for label, _ in said), dict(reversed(said))
    if not votes:
        return False
    leader = max(votes, key=lambda label: (votes[label], -first[label]))
    others = [(votes[label], first[label]) for label in votes if label != leader]
    return all(
        (count + len(left), -min(place, left[0])) < (votes[leader], -first[leader])
        for count, place in [*others, (0, left[0])]
    )


VOTES = {"majority": majority}
