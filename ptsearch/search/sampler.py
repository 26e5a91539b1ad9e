"""An Optuna sampler for member sets: a Gaussian process over the sets tried so far proposes, among
the neighbours of the front, what promises the largest hypervolume.

All parameters are switches. A set is x in {0, 1}^variants; its kernel has a linear part, in which
memory, latency and sizes are exact, one in the mean over members, and one that falls with the
number of members in which two sets differ (as categorical kernels do: Ru et al. 2020,
https://arxiv.org/abs/1906.08878). The improvement is that of the optimistic values (mean +
deviation), by Monte Carlo.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ptsearch.aliases import Floats

Sets = NDArray[np.bool_]

LENGTH = 3.0  # members in which sets differ, per e-fold of the kernel
NOISE = 1e-4
OPTIMISM = 0.3  # deviations
POINTS = 8000  # Monte Carlo points of the hypervolume
MARGIN = 0.1  # of the front's range, beyond its ideal and its nadir
STRAY = 300  # random sets beside the neighbours


class SetSampler(BaseSampler):
    """Proposes sets of switches; a set that was asked for before never comes again."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return intersection_search_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        names = list(search_space)
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        done = [each for each in done if each.params.keys() >= search_space.keys()]
        best = {each.number for each in study.best_trials} if done else set()
        if not best or not names:
            return {}
        sets = _switches(done, names)
        on_front = np.array([each.number in best for each in done])
        asked = _switches(study.get_trials(deepcopy=False), names)
        candidates = _unseen(neighbours(sets[on_front], self._rng), asked)
        if not len(candidates):
            return {}
        signs = [-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in study.directions]
        values = np.array([each.values for each in done]) * signs
        limits = sorted({key for each in done for key in each.constraints})
        violations = np.array([[each.constraints.get(k, 0.0) for k in limits] for each in done])
        told = predict(sets, np.concatenate([values, violations], axis=1), candidates)
        losses, broken = told.mean[:, : len(signs)], told.mean[:, len(signs) :]
        gain = improvement(
            values[on_front], losses - OPTIMISM * told.deviation[:, : len(signs)], self._rng
        )
        allowed = (broken <= 0.05 * violations.std(axis=0)).all(axis=1)
        order = np.lexsort([self._rng.random(len(gain)), gain, allowed])
        return dict(zip(names, candidates[order[-1]].tolist(), strict=True))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)


class Told(NamedTuple):
    """What the process says of candidates: both (candidates, outputs)."""

    mean: Floats
    deviation: Floats


def neighbours(front: Sets, rng: np.random.Generator) -> Sets:
    """Sets that differ from one of `front` (n, variants) by one member more, less or exchanged, and
    some random unions of scorers of two of them.
    """
    v = front.shape[1]
    flips = np.eye(v, dtype=bool)
    swaps = (flips[:, None] ^ flips[None, :])[np.triu_indices(v, 1)]
    near = front[:, None] ^ np.concatenate([flips, swaps])[None]
    changes_size = near.sum(axis=2) - front.sum(axis=1)[:, None]
    near = near[np.abs(changes_size) <= 1]
    mothers, fathers = front[rng.integers(0, len(front), (2, STRAY))]
    crossed = np.where(rng.random((STRAY, v)) < 0.5, mothers, fathers)
    found = np.unique(np.concatenate([near, crossed]), axis=0)
    return found[found.any(axis=1)]


def predict(sets: Sets, values: Floats, candidates: Sets) -> Told:
    """Posterior of each output (columns of `values`), each with a scale of its own."""
    centre, spread = values.mean(axis=0), values.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    y = (values - centre) / spread
    factor = np.linalg.cholesky(kernel(sets, sets) + NOISE * np.eye(len(sets)))
    cross = kernel(sets, candidates)
    reduced = np.linalg.solve(factor, cross)
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, y))
    scale = np.sqrt((y * weights).sum(axis=0) / len(sets))  # maximum likelihood
    rest = np.maximum(_self_kernel(candidates) - (reduced**2).sum(axis=0), 0)
    deviation = np.sqrt(rest)[:, None] * scale * spread
    return Told(cross.T @ weights * spread + centre, deviation)


def kernel(a: Sets, b: Sets) -> Floats:
    """(a, b): linear in members, linear in their mean, and falling with the Hamming distance."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    common, left, right = x @ y.T, x.sum(axis=1), y.sum(axis=1)
    apart = left[:, None] + right - 2 * common
    return 1.0 + common + common / np.outer(left, right) + np.exp(-apart / LENGTH)


def _self_kernel(a: Sets) -> Floats:
    size = a.sum(axis=1).astype(np.float64)
    return 2.0 + size + 1.0 / size


def improvement(front: Floats, losses: Floats, rng: np.random.Generator) -> Floats:
    """(candidates,): share of random points around the front that only the candidate dominates.

    `front` (n, k) and `losses` (candidates, k) are minimized.
    """
    low, high = front.min(axis=0), front.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    points = low + span * rng.uniform(-MARGIN, 1 + MARGIN, (POINTS, front.shape[1]))
    points = points[~_dominated(front, points).any(axis=0)]
    found = np.zeros(len(losses))
    useful = ~_dominated(front, losses).any(axis=0)
    if len(points):
        found[useful] = _dominated(losses[useful], points).mean(axis=1)
    return found


def _dominated(by: Floats, points: Floats) -> Sets:
    """(by, points): is the point at least as bad in every objective?"""
    found = np.ones((len(by), len(points)), dtype=bool)
    for mine, theirs in zip(by.T, points.T, strict=True):
        found &= mine[:, None] <= theirs
    return found


def _switches(trials: Sequence[FrozenTrial], names: Sequence[str]) -> Sets:
    def row(params: Mapping[str, Any]) -> list[bool]:
        return [bool(params.get(name)) for name in names]

    return np.array([row(each.params) for each in trials], dtype=bool)


def _unseen(candidates: Sets, asked: Sets) -> Sets:
    known = {row.tobytes() for row in asked}
    return candidates[[row.tobytes() not in known for row in candidates]]
