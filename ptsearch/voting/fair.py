"""The majority with weights on label 1 that keep DPD and EOD within limits on the search half."""

import itertools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ptsearch.config import VoteConfig
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting.rule import Fitted, VoteInputs, VoteRule
from ptsearch.voting.weighted import DECIMALS, weighted_majority

if TYPE_CHECKING:
    from ptsearch.scoring.scores import Part


def fair_weights(inputs: VoteInputs, config: VoteConfig) -> Fitted:
    """Per parity scenario the weight of a vote for label 1 in group 0 and in group 1, where votes
    for label 0 weigh 1: a shifted threshold on the share of votes.

    A majority within the limits is kept. Otherwise the most accurate weights within them, and if
    there are none, those closest to them. The groups share one weight unless `vote.by_group`, which
    needs the protected attribute at prediction time, as the post-processing of Hardt et al. (2016,
    https://arxiv.org/abs/1610.02413), which this applies to votes.
    """
    return {
        f"{part.benchmark}/{part.scenario.name}": _fit_part(inputs, part, config)
        for part in inputs.questions.parts
        if part.scenario.metric == "parity"
    }


def vote_fair(inputs: VoteInputs, fitted: Fitted) -> AnswerCodes:
    weights = np.ones(inputs.answers.shape)
    for part in inputs.questions.parts:
        pair = fitted.get(f"{part.benchmark}/{part.scenario.name}")
        if pair is not None:
            of_one = np.array(pair)[np.maximum(inputs.questions.group[part.rows], 0)]
            weights[:, part.rows] = np.where(inputs.answers[:, part.rows] == 1, of_one, 1.0)
    return weighted_majority(inputs.answers, inputs.precision, weights)


def label_weights(members: int) -> list[float]:
    """All weights of a vote that differ in some outcome of `members`, 1 (the majority) first."""
    votes = range(1, members + 1)
    ties = sorted({a / b for a, b in itertools.product(votes, votes)})
    between = [(a * b) ** 0.5 for a, b in itertools.pairwise([ties[0] / 4, *ties, ties[-1] * 4])]
    return [1.0, *sorted(between, key=lambda weight: abs(np.log(weight)))]


def _fit_part(inputs: VoteInputs, part: "Part", config: VoteConfig) -> list[float]:
    gold, group = inputs.questions.gold[part.rows], inputs.questions.group[part.rows]
    if np.unique(group).size < 2:  # no difference, as in `metrics.parity`
        return [1.0, 1.0]
    answers, weights = inputs.answers[:, part.rows], label_weights(len(inputs.answers))
    voted = np.stack(
        [
            weighted_majority(answers, inputs.precision, np.where(answers == 1, w, 1.0))
            for w in weights
        ]
    )  # (weights, samples)

    def rate(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> Floats:
        """(weights,) percent; of an empty set 0, as in `metrics.parity`."""
        return 100.0 * hit[:, among].sum(axis=1) / max(int(among.sum()), 1)

    def gap(among: NDArray[np.bool_]) -> Floats:
        """(weights of group 0, of group 1)"""
        zero, one = (rate(voted == 1, among & (group == side)) for side in (0, 1))
        return np.abs(zero[:, None] - one)

    dpd = gap(np.ones(gold.shape, dtype=bool))
    eod = np.maximum(gap(gold == 1), gap(gold == 0))
    beyond = np.zeros_like(dpd)
    for gaps, limit in ((dpd, config.max_dpd), (eod, config.max_eod)):
        beyond = np.maximum(beyond, gaps - (np.inf if limit is None else limit))
    if not config.by_group:
        beyond[~np.eye(len(weights), dtype=bool)] = np.inf
    right = [((voted == gold) & (group == side)).sum(axis=1) for side in (0, 1)]
    if beyond[0, 0] <= 0:
        return [1.0, 1.0]
    return _closest(beyond, right[0][:, None] + right[1], weights)


def _closest(beyond: Floats, right: NDArray[np.int_], weights: list[float]) -> list[float]:
    """The pair least beyond the limits, then most often right, then nearest to the majority."""
    moved = np.abs(np.log(weights))
    keys = (moved[:, None] + moved, -right, np.maximum(beyond, 0.0).round(DECIMALS))
    best = int(np.lexsort([key.ravel() for key in keys])[0])
    return [weights[best // len(weights)], weights[best % len(weights)]]


VOTE = VoteRule(name="fair", vote=vote_fair, fit=fair_weights, takes_limits=True)
