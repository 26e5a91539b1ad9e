"""The majority where it is clear, else a refusal (Chow 1970)."""

import numpy as np

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting.rule import VoteRule
from ptsearch.voting.votes import majority


def majority_or_refusal(answers: AnswerCodes, precision: Floats, margin: float) -> AnswerCodes:
    """The majority where its margin reaches `margin`, else `REFUSED` (Chow 1970,
    https://doi.org/10.1109/TIT.1970.1054406).
    """
    unsure = margins(answers) < margin
    return np.where(unsure, REFUSED, majority(answers, precision)).astype(np.int16)


def margins(answers: AnswerCodes) -> Floats:
    """(samples,) from 0 to 1: votes of the first label minus those of the second, per member."""
    usable = np.where(answers < 0, -1, answers)
    labels = np.arange(max(int(usable.max(initial=0)), 1) + 1)
    votes = np.sort((usable[None] == labels[:, None, None]).sum(axis=1), axis=0)
    return (votes[-1] - votes[-2]) / len(answers)


VOTE = VoteRule(
    name="selective",
    vote=lambda inputs, fitted: majority_or_refusal(
        inputs.answers, inputs.precision, fitted["margin"][0]
    ),
    fit=lambda _, config: {"margin": [config.margin]},
)
