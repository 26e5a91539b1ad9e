"""Votes weighted by the members' accuracy on the search half."""

import numpy as np
from numpy.typing import ArrayLike

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.config import VoteConfig
from ptsearch.scoring import metrics
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting.rule import Fitted, VoteInputs, VoteRule

DECIMALS = 9  # sums of weights that differ by less are a tie


def weighted_majority(answers: AnswerCodes, precision: Floats, weights: ArrayLike) -> AnswerCodes:
    """The label with the largest sum of weights; ties, and the result with equal weights, as in
    `votes.majority`.

    `weights` (members, samples) or (members, 1), not negative. A label whose voters all weigh 0
    still beats no answer.
    """
    order = np.argsort(-precision, kind="stable")
    answers = answers[order]
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64)[order], answers.shape)
    support = np.stack([(weights * (answers == row)).sum(axis=0) for row in answers])
    support = np.where(answers < 0, -1.0, support.round(DECIMALS))
    first_best = support.argmax(axis=0)
    samples = np.arange(answers.shape[1])
    return np.where(support[first_best, samples] < 0, REFUSED, answers[first_best, samples]).astype(
        np.int16
    )


def log_odds(inputs: VoteInputs, config: VoteConfig) -> Fitted:
    """`weights` (members,): log of right over wrong among the usable answers to all scored samples,
    one added to each (Nitzan and Paroush 1982, https://doi.org/10.2307/2526438).

    One weight per member, not per perspective: a request has a number of labels, and no
    perspective.
    """
    questions = inputs.questions
    scored = np.concatenate(list(questions.scored().values()))
    right = metrics.is_correct(
        inputs.answers, questions.gold, questions.n_labels, questions.abstain_ok
    )
    answered = inputs.answers[:, scored] >= 0
    hits = (right[:, scored] & answered).sum(axis=1)
    weights = np.log((hits + 1) / (answered.sum(axis=1) - hits + 1))
    return {"weights": weights.tolist()}


def vote_weighted(inputs: VoteInputs, fitted: Fitted) -> AnswerCodes:
    """With c labels a vote weighs log(p / (1 - p)) + log(c - 1) (Kuncheva and Rodriguez 2014,
    https://doi.org/10.1007/s10115-012-0586-6); members below chance weigh 0.
    """
    labels = np.log(np.maximum(inputs.questions.n_labels - 1, 1))
    weights = np.maximum(np.array(fitted["weights"])[:, None] + labels, 0.0)
    return weighted_majority(inputs.answers, inputs.precision, weights)


VOTE = VoteRule(name="weighted", vote=vote_weighted, fit=log_odds)
