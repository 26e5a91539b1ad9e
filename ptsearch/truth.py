"""The true Pareto front of the variants at hand, and how much of it a search has found."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch import exact, scores
from ptsearch.config import OBJECTIVES
from ptsearch.judge import Judge
from ptsearch.scores import Scores
from ptsearch.study import Members, limits, objectives, the_study
from ptsearch.table import Table

REFERENCE = 1.1  # of the hypervolume, in units of the front's range from its ideal point
MAX_SLOW = 5000  # ensembles that the published rules, scored one by one, may have

Floats = NDArray[np.float64]


class Truth(NamedTuple):
    """Every ensemble that the limits allow, and those that none of them dominates."""

    ensembles: int
    front: list[Members]
    values: Floats  # (front, objectives), as measured
    names: list[str]  # the objectives that are on


def true_front(table: Table, judge: Judge) -> Truth:
    """Enumerate all ensembles of the evaluated variants on the judge's half.

    ValueError: too many to enumerate, or a limit that only single ensembles can be tested for.
    """
    wanted = the_study(table.config)
    labels = [label for label in table.variants if label not in table.degenerate()]
    masks = exact.enumerate_ensembles(len(labels), wanted.max_members)
    if judge.asked.rules != "clean" and masks.size > MAX_SLOW:
        raise ValueError(f"{masks.size:,} ensembles are too many under rules={judge.asked.rules}")
    if wanted.min_skill == "require":
        raise ValueError("study.min_skill=require is tested for the trials alone")
    masks = masks[np.bitwise_count(masks) >= wanted.min_members]
    entries = [table.entries[label] for label in labels]
    codes = np.stack([entry.codes[judge.mask] for entry in entries])
    precision = np.array([entry.variant.precision for entry in entries])
    found = exact.score_all(judge.asked, codes, precision, table.config.trust.weights, masks)
    metas = [entry.meta for entry in entries]
    cost = exact.cost_all(metas, table.config.latency.mode, masks)
    found |= dict(zip(scores.Cost._fields, cost, strict=True))
    allowed = np.ones(masks.size, dtype=bool)
    for name, limit in limits(wanted.min).items():
        allowed &= found[name] >= limit
    for name, limit in limits(wanted.max).items():
        allowed &= found[name] <= limit
    names = objectives(wanted)
    values = np.stack([found[name][allowed] for name in names], axis=1)
    best = exact.pareto_front(values, [OBJECTIVES[name] for name in names])
    front = [tuple(labels[v] for v in exact.members(mask)) for mask in masks[allowed][best]]
    return Truth(int(allowed.sum()), front, values[best], names)


def shares(truth: Truth, tried: Iterable[Scores]) -> list[float]:
    """Percent of the true front's hypervolume that the trials so far dominate, trial by trial.

    Objectives run from the front's ideal point (0) to its nadir (1); the reference is 1.1.
    """
    losses = _losses(truth, truth.values)
    ideal, nadir = losses.min(axis=0), losses.max(axis=0)
    span = np.where(nadir > ideal, nadir - ideal, 1.0)
    reference = np.full(len(truth.names), REFERENCE)
    whole = exact.hypervolume((losses - ideal) / span, reference)
    found: list[float] = []
    best = np.empty((0, len(truth.names)))
    for one in tried:
        point = (_losses(truth, np.array([[one[name] for name in truth.names]])) - ideal) / span
        if (best <= point).all(axis=1).any():
            found.append(found[-1])
            continue
        best = np.concatenate([best[~(point <= best).all(axis=1)], point])
        found.append(100 * exact.hypervolume(best, reference) / whole)
    return found


def _losses(truth: Truth, values: Floats) -> Floats:
    """All objectives minimized."""
    signs = [-1.0 if OBJECTIVES[name] == "maximize" else 1.0 for name in truth.names]
    return values * np.array(signs)


def untried(truth: Truth, tried: Sequence[Members]) -> list[Members]:
    """What of the front no trial has named."""
    known = set(tried)
    return [members for members in truth.front if members not in known]
