"""How an ensemble votes: a rule is fitted to its members' search half, then cast anywhere.

What is fitted is plain numbers, so that it can be recorded and exported.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.aliases import AnswerCodes, Floats
from ptsearch.config import VoteConfig
from ptsearch.scoring import metrics
from ptsearch.scoring.scores import Part, Questions
from ptsearch.voting import votes as voting

Fitted = dict[str, list[float]]


class VoteInputs(NamedTuple):
    """What the members of an ensemble answer on some samples."""

    asked: Questions
    said: AnswerCodes  # (members, samples)
    precision: Floats  # (members,)
    logprobs: Floats | None = None  # (members, samples, labels); only the soft vote needs them


class Rule(NamedTuple):
    fit: Callable[[VoteInputs, VoteConfig], Fitted]
    cast: Callable[[VoteInputs, Fitted], AnswerCodes]


def log_odds(inputs: VoteInputs, config: VoteConfig) -> Fitted:
    """`weights` (members,): log of right over wrong among the usable answers to all scored samples,
    one added to each (Nitzan and Paroush 1982, https://doi.org/10.2307/2526438).

    One weight a member, not one a perspective: a request says how many labels it has, not what it
    is a test of.
    """
    asked = inputs.asked
    scored = np.concatenate(list(asked.scored().values()))
    right = metrics.is_correct(inputs.said, asked.gold, asked.n_labels, asked.abstain_ok)
    answered = inputs.said[:, scored] >= 0
    hits = (right[:, scored] & answered).sum(axis=1)
    weights = np.log((hits + 1) / (answered.sum(axis=1) - hits + 1))
    return {"weights": weights.tolist()}


def cast_weighted(inputs: VoteInputs, fitted: Fitted) -> AnswerCodes:
    """With c labels a vote weighs log(p / (1 - p)) + log(c - 1) (Kuncheva and Rodriguez 2014,
    https://doi.org/10.1007/s10115-012-0586-6); who is below chance weighs nothing.
    """
    labels = np.log(np.maximum(inputs.asked.n_labels - 1, 1))
    weights = np.maximum(np.array(fitted["weights"])[:, None] + labels, 0.0)
    return voting.weighted(inputs.said, inputs.precision, weights)


def cast_soft(inputs: VoteInputs, _: Fitted) -> AnswerCodes:
    assert inputs.logprobs is not None, "the table was read without log-probabilities"
    return voting.soft(inputs.said, inputs.precision, inputs.logprobs)


def fair_weights(inputs: VoteInputs, config: VoteConfig) -> Fitted:
    """For each parity scenario, what a vote for label 1 weighs when cast on group 0 and on group 1,
    one for label 0 weighing 1: the threshold on the share of votes, moved.

    Where the majority is within the limits it stays. Else the most accurate weights that are, and
    if there are none, those closest to it. The groups share one weight unless `vote.by_group`,
    which needs the protected attribute of whoever is judged; so needs it Hardt et al. (2016,
    https://arxiv.org/abs/1610.02413), whose post-processing this is on votes.
    """
    return {
        f"{part.benchmark}/{part.scenario.name}": _fit_part(inputs, part, config)
        for part in inputs.asked.parts
        if part.scenario.metric == "parity"
    }


def cast_fair(inputs: VoteInputs, fitted: Fitted) -> AnswerCodes:
    weights = np.ones(inputs.said.shape)
    for part in inputs.asked.parts:
        given = fitted.get(f"{part.benchmark}/{part.scenario.name}")
        if given is not None:
            of_one = np.array(given)[np.maximum(inputs.asked.group[part.rows], 0)]
            weights[:, part.rows] = np.where(inputs.said[:, part.rows] == 1, of_one, 1.0)
    return voting.weighted(inputs.said, inputs.precision, weights)


def label_weights(members: int) -> list[float]:
    """Every weight of a vote that changes some outcome among `members`, 1 (the majority) first."""
    votes = range(1, members + 1)
    ties = sorted({a / b for a, b in itertools.product(votes, votes)})
    between = [(a * b) ** 0.5 for a, b in itertools.pairwise([ties[0] / 4, *ties, ties[-1] * 4])]
    return [1.0, *sorted(between, key=lambda weight: abs(np.log(weight)))]


def _fit_part(inputs: VoteInputs, part: Part, config: VoteConfig) -> list[float]:
    gold, group = inputs.asked.gold[part.rows], inputs.asked.group[part.rows]
    said, weights = inputs.said[:, part.rows], label_weights(len(inputs.said))
    voted = np.stack(
        [voting.weighted(said, inputs.precision, np.where(said == 1, w, 1.0)) for w in weights]
    )  # (weights, samples)

    def rate(hit: NDArray[np.bool_], among: NDArray[np.bool_]) -> Floats:
        """(weights,) percent; of nobody 0, as in `metrics.parity`."""
        return 100.0 * hit[:, among].sum(axis=1) / max(int(among.sum()), 1)

    def gap(among: NDArray[np.bool_]) -> Floats:
        """(weights of group 0, of group 1)"""
        zero, one = (rate(voted == 1, among & (group == side)) for side in (0, 1))
        return np.abs(zero[:, None] - one)

    dpd = gap(np.ones(gold.shape, dtype=bool))
    eod = np.maximum(gap(gold == 1), gap(gold == 0))
    beyond = np.zeros_like(dpd)
    for found, limit in ((dpd, config.max_dpd), (eod, config.max_eod)):
        beyond = np.maximum(beyond, found - (np.inf if limit is None else limit))
    if not config.by_group:
        beyond[~np.eye(len(weights), dtype=bool)] = np.inf
    right = [((voted == gold) & (group == side)).sum(axis=1) for side in (0, 1)]
    if beyond[0, 0] <= 0:
        return [1.0, 1.0]
    return _closest(beyond, right[0][:, None] + right[1], weights)


def _closest(beyond: Floats, right: NDArray[np.int_], weights: list[float]) -> list[float]:
    """The pair least beyond the limits, then most often right, then nearest to the majority."""
    moved = np.abs(np.log(weights))
    keys = (moved[:, None] + moved, -right, np.maximum(beyond, 0.0).round(voting.DECIMALS))
    best = int(np.lexsort([key.ravel() for key in keys])[0])
    return [weights[best // len(weights)], weights[best % len(weights)]]


def _nothing(_: VoteInputs, __: VoteConfig) -> Fitted:
    return {}


VOTES = {
    "majority": Rule(_nothing, lambda inputs, _: voting.majority(inputs.said, inputs.precision)),
    "weighted": Rule(log_odds, cast_weighted),
    "soft": Rule(_nothing, cast_soft),
    "selective": Rule(
        lambda _, config: {"margin": [config.margin]},
        lambda inputs, fitted: voting.selective(inputs.said, inputs.precision, fitted["margin"][0]),
    ),
    "fair": Rule(fair_weights, cast_fair),
}
