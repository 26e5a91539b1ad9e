"""What a refusal is in a vote: an error, which is dropped; a label like others; or a veto.

Rules vote on ballots: answer codes in which declining is `n_labels` where it is a label, `REFUSED`
where it is an error, and `VETO` where enough of them decide. Rules drop codes < 0. `outcome` and
`outcomes` turn a vote on ballots into an answer code again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.benchmarks.parsing import REFUSED, Question, declined
from ptsearch.shared import AnswerCodes

VETO = -4  # on a ballot
ERROR, LABEL = -1, 0  # what a refusal is; above: the number of members that veto by it


class Refusals(NamedTuple):
    """Of each sample, all (samples,)."""

    decide: NDArray[np.int16]  # ERROR, LABEL, or how many refusing members decide
    code: AnswerCodes  # of declining: n_labels where that is an answer, else REFUSED
    n_labels: AnswerCodes

    def at(self, rows: Sequence[int] | NDArray[np.intp]) -> "Refusals":
        return Refusals(*(column[rows] for column in self))


def of_questions(asked: Sequence[tuple[str, Question]], veto: int) -> Refusals:
    """`asked`: what the scenario says that a refusal is, and the question."""
    columns = [
        (deciding(kind, question, veto), declined(question), len(question.labels))
        for kind, question in asked
    ]
    return Refusals(*np.array(columns, dtype=np.int16).reshape(-1, 3).T)


def deciding(kind: str, question: Question, veto: int) -> int:
    """ERROR, LABEL or `veto`; "" is a label where the question offers to decline."""
    kind = kind or ("label" if question.abstain else "error")
    return {"error": ERROR, "label": LABEL, "veto": veto}[kind]


def ballots(answers: AnswerCodes, refusals: Refusals | None) -> AnswerCodes:
    """What is voted on: answers (members, samples) with declining as the vote takes it."""
    if refusals is None:
        return answers
    decide, _, n_labels = refusals
    taken = np.select([decide == LABEL, decide == ERROR], [n_labels, REFUSED], VETO)
    return np.where(_declining(answers, refusals), taken, answers).astype(np.int16)


def outcomes(voted: AnswerCodes, answers: AnswerCodes, refusals: Refusals | None) -> AnswerCodes:
    """(samples,) answer codes of a vote on the ballots of `answers` (members, samples).

    It declines where the label does that won, enough members veto, or nobody says anything else.
    """
    if refusals is None:
        return voted
    decide, code, n_labels = refusals
    declining = _declining(answers, refusals)
    number = declining.sum(axis=0)
    alone = (number > 0) & ((answers < 0) | declining).all(axis=0)
    vetoed = (decide > 0) & (number >= decide)
    labelled = (decide == LABEL) & (voted == n_labels)
    return np.where(vetoed | alone | labelled, code, voted).astype(np.int16)


def ballot(code: int, question: Question, decide: int) -> int:
    """`ballots` of one answer."""
    if code not in (REFUSED, declined(question)):
        return code
    return {LABEL: len(question.labels), ERROR: REFUSED}.get(decide, VETO)


def outcome(voted: int, codes: Sequence[int], question: Question, decide: int) -> int:
    """`outcomes` of one sample."""
    said = declined(question)
    declining = [code for code in codes if code in (REFUSED, said)]
    alone = declining and all(code < 0 or code == said for code in codes)
    labelled = decide == LABEL and voted == len(question.labels)
    return said if labelled or alone or 0 < decide <= len(declining) else voted


def _declining(answers: AnswerCodes, refusals: Refusals) -> NDArray[np.bool_]:
    return (answers == REFUSED) | (answers == refusals.code)
