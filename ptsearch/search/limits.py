"""Limits first: the most trusted ensemble that meets them all, or how little they must give way.

Every ensemble is known (`exact.Everything`), all values are those of the search half.
"""

from collections.abc import Iterable
from math import ceil, floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.config import StudyConfig
from ptsearch.evaluation.table import Table
from ptsearch.search.exact_front import Everything, enumerate_scores
from ptsearch.search.objectives import costs
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members, limits, study_config
from ptsearch.shared import Floats

DIGITS = 3  # after the point, of a relaxed limit; rounded so that it can be met


class Relaxation(NamedTuple):
    """Limits that, put in place of the given ones, let one ensemble through."""

    limits: dict[str, float]  # study.min.ethics -> value; only those that move
    members: Members
    trust: float


class Answer(NamedTuple):
    ensembles: int
    feasible: int
    pick: Members | None  # the highest trust, then the least memory and latency
    relaxations: list[
        Relaxation
    ]  # each limit alone where that helps; last, the least of all jointly


class UnmetError(ValueError):
    """No ensemble meets the limits; `answer` says how they would have to be relaxed."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(verdict(answer))
        self.answer = answer


def within_limits(table: Table, scorer: EnsembleScorer) -> Answer:
    """The most trusted of all ensembles of the pool that meet the limits.

    UnmetError: none does. ValueError: too many ensembles, or none keeps the dense model's skill.
    """
    search = study_config(table.config)
    table.ensure(table.variants)
    every = enumerate_scores(table, scorer)
    if not every.masks.size:
        raise ValueError(
            f"no ensemble keeps the dense model's skill in {', '.join(scorer.required)}: use more "
            "bits, or study.min_skill=flag"
        )
    best = answer(every, search)
    if best.pick is None:
        raise UnmetError(best)
    return best


def verdict(answer: Answer) -> str:
    """How many ensembles meet the limits, or the smallest joint relaxation."""
    if answer.pick is not None:
        return f"{answer.feasible:,} of {answer.ensembles:,} ensembles meet the limits"
    least = answer.relaxations[-1]
    return (
        f"none of {answer.ensembles:,} ensembles meets the limits together; the smallest joint "
        f"relaxation:\n{as_overrides(least)} (trust {least.trust:.1f})"
    )


def answer(every: Everything, settings: StudyConfig) -> Answer:
    """The pick, or where there is none what would have to give way.

    Alone: one limit moves until some ensemble meets it and all others. Jointly: the ensemble whose
    largest violation is smallest, each in units of its metric's range over all ensembles, then
    whose violations sum to least.
    """
    keys, beyond = violations(every, settings)
    meets = beyond <= 0
    feasible = np.flatnonzero(meets.all(axis=1))
    total = len(every.masks)
    if feasible.size:
        return Answer(total, feasible.size, every.members(_most_trusted(every, feasible)), [])
    relaxations = []
    for place in range(len(keys)):
        others = np.delete(meets, place, axis=1).all(axis=1)
        least = np.where(others, beyond[:, place], np.inf)
        if np.isfinite(least).any():
            relaxations.append(
                _relaxation(every, keys, meets, np.flatnonzero(least == least.min()))
            )
    scaled = np.maximum(beyond, 0) / _ranges(every, keys)
    order = (scaled.sum(axis=1), scaled.max(axis=1))
    joint = np.lexsort(order)[0]
    same = np.flatnonzero((np.stack(order) == np.stack(order)[:, [joint]]).all(axis=0))
    both = _relaxation(every, keys, meets, same)
    return Answer(total, 0, None, [each for each in relaxations if each != both] + [both])


def violations(every: Everything, settings: StudyConfig) -> tuple[list[str], Floats]:
    """Keys of the limits, and (ensembles, limits) how far each is beyond: at most 0 where met."""
    columns = {f"study.min.{n}": v - every.scores[n] for n, v in limits(settings.min).items()}
    columns |= {f"study.max.{n}": every.scores[n] - v for n, v in limits(settings.max).items()}
    beyond = np.stack([*columns.values(), np.zeros(len(every.masks))], axis=1)[:, :-1]
    return list(columns), np.where(np.isnan(beyond), np.inf, beyond)


def as_overrides(relaxed: Relaxation) -> str:
    return " ".join(f"{key}={value:g}" for key, value in relaxed.limits.items())


def _relaxation(
    every: Everything, keys: list[str], meets: NDArray[np.bool_], places: NDArray[np.intp]
) -> Relaxation:
    """That of the most trusted ensemble among `places`."""
    best = _most_trusted(every, places)
    moved = {
        key: _within(every.scores[_metric(key)][best], key)
        for key, met in zip(keys, meets[best], strict=True)
        if not met
    }
    return Relaxation(moved, every.members(best), float(every.scores["trust"][best]))


def _most_trusted(every: Everything, places: NDArray[np.intp]) -> int:
    """The highest trust, then the least of each cost."""
    order = [-every.scores["trust"], *(every.scores[name] for name in costs())]
    return int(places[np.lexsort([values[places] for values in reversed(order)])[0]])


def _ranges(every: Everything, keys: Iterable[str]) -> Floats:
    known = [every.scores[_metric(key)] for key in keys]
    spans = np.array([np.nanmax(values) - np.nanmin(values) for values in known])
    return np.where(spans > 0, spans, 1.0)


def _metric(key: str) -> str:
    return key.rsplit(".", 1)[1]


def _within(value: float, key: str) -> float:
    """Rounded to the side on which the value meets it."""
    scaled = value * 10**DIGITS
    return (floor(scaled) if key.startswith("study.min") else ceil(scaled)) / 10**DIGITS
