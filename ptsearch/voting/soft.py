"""The label with the highest mean log-probability over members."""

import numpy as np
from numpy.typing import ArrayLike

from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting.rule import Fitted, VoteInputs, VoteRule
from ptsearch.voting.votes import majority

DECIMALS = 9  # means that differ by less are a tie


def log_opinion_pool(answers: AnswerCodes, precision: Floats, logprobs: ArrayLike) -> AnswerCodes:
    """The label with the highest mean log-probability: the logarithmic opinion pool (Genest and
    Zidek 1986, https://doi.org/10.1214/ss/1177013825) with equal weights.

    `logprobs` (members, samples, labels); NaN for labels a sample does not have, and throughout
    where a member has none: it is dropped there. Where no member has any, because replies were
    generated, the majority of `answers` decides. Ties go to the preference of the most precise
    member.
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


def vote_soft(inputs: VoteInputs, _: Fitted) -> AnswerCodes:
    assert inputs.logprobs is not None, "the table was read without log-probabilities"
    return log_opinion_pool(inputs.answers, inputs.precision, inputs.logprobs)


VOTE = VoteRule(name="soft", vote=vote_soft, needs_logprobs=True)
