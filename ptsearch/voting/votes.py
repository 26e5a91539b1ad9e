"""Precision-ensemble voting (arXiv 2511.22483, Algorithm 1) on answer codes.

Arrays are (members, samples); codes < 0 are not answers and are dropped before the vote. Ties are
decided by the members' precision.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.scoring.refusals import VETO
from ptsearch.shared import AnswerCodes, Floats


def majority(answers: AnswerCodes, precision: Floats) -> AnswerCodes:
    """The most frequent label of each sample; ties go to the label of the most precise member.

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
    """`majority` of one sample's codes, ordered from the most precise member."""
    count = Counter(answer for answer in answers if answer >= 0)
    return max(count, key=lambda answer: count[answer], default=REFUSED)  # the first of the tied


def decided(answers: Mapping[str, int], order: Sequence[str], veto: int = 0) -> bool:
    """Whether no answer of the pending members of `order` can change the vote on these ballots.

    `order` is the vote's total order. In the worst case all pending members give the same other
    label; even then it must have fewer votes than the leader, or equally many and a later first
    voter. Where a refusal is a veto, `veto` of them decide.
    """
    pending = [place for place, member in enumerate(order) if member not in answers]
    vetoes = sum(answer == VETO for answer in answers.values())
    if not pending or 0 < veto <= vetoes:
        return True
    if 0 < veto <= vetoes + len(pending):
        return False
    usable = [(answers[m], place) for place, m in enumerate(order) if answers.get(m, REFUSED) >= 0]
    votes, first = Counter(label for label, _ in usable), dict(reversed(usable))
    if not votes:
        return False
    leader = max(votes, key=lambda label: (votes[label], -first[label]))
    others = [(votes[label], first[label]) for label in votes if label != leader]
    return all(
        (count + len(pending), -min(place, pending[0])) < (votes[leader], -first[leader])
        for count, place in [*others, (0, pending[0])]
    )


def majority_counting(
    answers: AnswerCodes, precision: Floats, codes: tuple[int, ...]
) -> AnswerCodes:
    """The majority in which answers in `codes` (< 0) are not dropped: together they are one more
    label, and where it wins the vote is `REFUSED`.
    """
    extra = np.int16(max(int(answers.max(initial=0)), 0) + 1)
    voted = majority(np.where(np.isin(answers, codes), extra, answers), precision)
    return np.where(voted == extra, REFUSED, voted).astype(np.int16)
