"""The true Pareto front of the variants at hand, and how much of it a search has found."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch import exact, scores
from ptsearch.config import OBJECTIVES
from ptsearch.judge import Judge
from ptsearch.scores import Scores
from ptsearch.study import Members, constraints, limits, objectives, the_study
from ptsearch.table import Table

REFERENCE = 1.1  # of the hypervolume, in units of the front's range from its ideal point
BUDGET = 2000  # ensembles scored where not all can be
MAX_SLOW = 5000  # ensembles that the published rules, scored one by one, may have

Floats = NDArray[np.float64]


class Truth(NamedTuple):
    """Every ensemble that the limits allow, and those that none of them dominates."""

    ensembles: int
    front: list[Members]
    values: Floats  # (front, objectives), as measured
    names: list[str]  # the objectives that are on
    approximate: str = ""  # why not all ensembles were scored


def true_front(table: Table, judge: Judge) -> Truth:
    """Enumerate all ensembles of the evaluated variants on the judge's half.

    ValueError: too many to enumerate, or a limit that only single ensembles can be tested for.
    """
    wanted, labels = the_study(table.config), voters(table)
    if wanted.min_skill == "require":
        raise ValueError("study.min_skill=require is tested for the trials alone")
    masks, found = everything(table, judge)
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


def approximate_front(table: Table, judge: Judge, why: str) -> Truth:
    """The front of a pool too large to enumerate, as far as `BUDGET` ensembles show it.

    Greedy forward selection by each score, then Pareto local search (Paquete et al. 2004,
    https://doi.org/10.1007/978-3-642-17144-4_7): neighbours of the front, until none is new.
    """
    local, names = _Local(table, judge, voters(table), {}), objectives(the_study(table.config))
    local.score((label,) for label in local.labels)
    for name in names:
        if OBJECTIVES[name] == "maximize":
            local.grow(name)
    explored = set[Members]()
    while unexplored := [members for members in local.front() if members not in explored]:
        explored.add(unexplored[0])
        size = the_study(table.config).max_members
        local.score(_neighbours(local.labels, unexplored[0], size))
    front = local.front()
    values = np.array([[local.known[members][name] for name in names] for members in front])
    return Truth(len(local.permitted()), front, values, names, why)


class _Local(NamedTuple):
    """A local search and what it has scored."""

    table: Table
    judge: Judge
    labels: list[str]
    known: dict[Members, Scores]

    def score(self, ensembles: Iterable[Members]) -> None:
        for members in ensembles:
            if members not in self.known and len(self.known) < BUDGET:
                self.known[members] = self.judge(self.table, members)

    def grow(self, name: str) -> None:
        """Forward selection: at each step the member with which the score is highest."""
        path: Members = ()
        while len(path) < min(the_study(self.table.config).max_members, len(self.labels)):
            added = [label for label in self.labels if label not in path]
            grown = [_ordered(self.labels, {*path, label}) for label in added]
            self.score(grown)
            scored = [members for members in grown if members in self.known]
            if not scored:
                break
            path = max(scored, key=lambda members: self.known[members][name])

    def permitted(self) -> list[Members]:
        wanted = the_study(self.table.config)
        return [
            members
            for members, found in self.known.items()
            if all(value <= 0 for value in constraints(wanted, members, found, self.judge).values())
        ]

    def front(self) -> list[Members]:
        names, allowed = objectives(the_study(self.table.config)), self.permitted()
        if not allowed:
            return []
        values = [[self.known[members][name] for name in names] for members in allowed]
        best = exact.pareto_front(values, [OBJECTIVES[name] for name in names])
        return [allowed[i] for i in best]


def _neighbours(labels: Sequence[str], members: Members, largest: int) -> Iterable[Members]:
    """One member more, less or exchanged."""
    inside, outside = set(members), [label for label in labels if label not in members]
    for out in members:
        if len(members) > 1:
            yield _ordered(labels, inside - {out})
        for label in outside:
            yield _ordered(labels, inside - {out} | {label})
    if len(members) < largest:
        yield from (_ordered(labels, inside | {label}) for label in outside)


def _ordered(labels: Sequence[str], members: set[str]) -> Members:
    return tuple(label for label in labels if label in members)


def voters(table: Table) -> list[str]:
    """The evaluated variants that may vote, in the pool's order: bit v of a mask is the v-th."""
    return [label for label in table.variants if label not in table.degenerate()]


def everything(table: Table, judge: Judge) -> tuple[exact.Masks, dict[str, Floats]]:
    """All permitted ensembles of the voters, and their scores and cost on the judge's half."""
    wanted, labels = the_study(table.config), voters(table)
    masks = exact.enumerate_ensembles(len(labels), wanted.max_members)
    if judge.asked.rules != "clean" and masks.size > MAX_SLOW:
        raise ValueError(f"{masks.size:,} ensembles are too many under rules={judge.asked.rules}")
    masks = masks[np.bitwise_count(masks) >= wanted.min_members]
    entries = [table.entries[label] for label in labels]
    codes = np.stack([entry.codes[judge.mask] for entry in entries])
    precision = np.array([entry.variant.precision for entry in entries])
    found = exact.score_all(judge.asked, codes, precision, table.config.trust.weights, masks)
    metas = [entry.meta for entry in entries]
    cost = exact.cost_all(metas, judge.kv_bytes, table.config.latency.mode, masks)
    return masks, found | dict(zip(scores.Cost._fields, cost, strict=True))


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
