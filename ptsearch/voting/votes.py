"""Precision-ensemble voting (arXiv 2511.22483, Algorithm 1) on answer codes, and its kin.

Arrays are (members, samples); codes < 0 are no answers and are dropped before the vote. Every rule
takes the answers and the members' precision, which decides ties, and then what is its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ptsearch.aliases import AnswerCodes, Floats
from ptsearch.benchmarks.parsing import REFUSED

DECIMALS = 9  # sums of weights that differ by less are a tie


def majority(answers: AnswerCodes, precision: Floats) -> AnswerCodes:
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


def majority_counting(
    answers: AnswerCodes, precision: Floats, codes: tuple[int, ...]
) -> AnswerCodes:
    """The majority with the answers in `codes` (< 0) not dropped: together they are one more label,
    and where it wins the vote is `REFUSED`.
    """
    extra = np.int16(max(int(answers.max(initial=0)), 0) + 1)
    voted = majority(np.where(np.isin(answers, codes), extra, answers), precision)
    return np.where(voted == extra, REFUSED, voted).astype(np.int16)


def weighted(answers: AnswerCodes, precision: Floats, weights: ArrayLike) -> AnswerCodes:
    """The label whose voters weigh most; ties as in `majority`, which it is with equal weights.

    `weights` (members, samples) or (members, 1), not negative. What only voters without weight
    answer still beats no answer.
    """
    order = np.argsort(-precision, kind="stable")
    answers = answers[order]
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64)[order], answers.shape)
    support = np.stack([(weights * (answers == own)).sum(axis=0) for own in answers])
    support = np.where(answers < 0, -1.0, support.round(DECIMALS))
    first_best = support.argmax(axis=0)
    samples = np.arange(answers.shape[1])
    return np.where(support[first_best, samples] < 0, REFUSED, answers[first_best, samples]).astype(
        np.int16
    )


def soft(answers: AnswerCodes, precision: Floats, logprobs: ArrayLike) -> AnswerCodes:
    """The label with the highest mean log-probability: the logarithmic opinion pool (Genest and
    Zidek 1986, https://doi.org/10.1214/ss/1177013825) with equal weights.

    `logprobs` (members, samples, labels); NaN for labels a sample does not have, and throughout
    where a member has none: it drops out there. Where nobody has any, and replies were written
    instead, the majority of `answers` decides. A tie goes to what the most precise member prefers.
    """
    given = np.asarray(logprobs, dtype=np.float64)[np.argsort(-precision, kind="stable")]
    has = np.isfinite(given).max(axis=2)  # (members, samples)
    filled = np.where(np.isnan(given), -np.inf, given)
    total = np.where(has[:, :, None], filled, 0.0).sum(axis=0)
    mean = (total / np.maximum(has.sum(axis=0), 1)[:, None]).round(DECIMALS)
    tied = mean == mean.max(axis=1, keepdims=True)
    samples = np.arange(answers.shape[1])
    first = filled[has.argmax(axis=0), samples]  # of the most precise member that has any
    best = np.where(tied, first, -np.inf).argmax(axis=1)
    return np.where(has.any(axis=0), best, majority(answers, precision)).astype(np.int16)


def margins(answers: AnswerCodes) -> Floats:
    """(samples,) from 0 to 1: votes of the first label less those of the second, by member."""
    usable = np.where(answers < 0, -1, answers)
    labels = np.arange(max(int(usable.max(initial=0)), 1) + 1)
    votes = np.sort((usable[None] == labels[:, None, None]).sum(axis=1), axis=0)
    return (votes[-1] - votes[-2]) / len(answers)


def selective(answers: AnswerCodes, precision: Floats, margin: float) -> AnswerCodes:
    """The majority where its margin reaches `margin`, else `REFUSED`: who is not sure abstains
    (Chow 1970, https://doi.org/10.1109/TIT.1970.1054406).
    """
    unsure = margins(answers) < margin
    return np.where(unsure, REFUSED, majority(answers, precision)).astype(np.int16)
