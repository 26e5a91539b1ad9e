"""The true Pareto front of the variants at hand, and how much of it a search has found."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.evaluation.table import Table
from ptsearch.scoring.scores import Scores, nan_last
from ptsearch.search import enumeration, pareto
from ptsearch.search.objectives import (
    OBJECTIVES,
    chosen_objectives,
    directions,
    losses,
    with_objectives,
)
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import (
    CompletedTrial,
    Members,
    completed,
    limits,
    study_config,
    unsaved,
)  # fmt: skip
from ptsearch.search.trials import Search, add_trials, search
from ptsearch.shared import Floats

REFERENCE = 1.1  # of the hypervolume, in units of the front's range from its ideal point
BUDGET = 2000  # trials of NSGA-II where not all ensembles can be scored
MAX_SLOW = 5000  # ensembles that the published rules, scored one by one, may have


class Everything(NamedTuple):
    """Every ensemble of the variants that may vote, and its scores and cost."""

    labels: list[str]
    masks: enumeration.WideMasks  # (ensembles,) over the labels
    scores: dict[str, Floats]  # score -> (ensembles,)

    def members(self, place: int) -> Members:
        return tuple(self.labels[v] for v in enumeration.members(self.masks[place]))

    def where(self, kept: NDArray[np.bool_]) -> "Everything":
        return Everything(
            self.labels, self.masks[kept], {n: v[kept] for n, v in self.scores.items()}
        )


class ExactFront(NamedTuple):
    """Every ensemble that the limits allow, and those that none of them dominates."""

    ensembles: int
    front: list[Members]
    values: Floats  # (front, objectives), as measured
    names: list[str]  # the objectives that are on
    everything: Everything | None = None  # all that the limits allow; None = not all were scored
    approximate: str = ""  # why not


def complete(run: Search) -> ExactFront:
    """The exact front, or an approximation where there are too many ensembles; those of its
    ensembles that no trial has tried are added to the study.

    `pool.build=named`: variants that no trial has needed are not built but left out, with a reason.
    """
    table, scorer = run.table, run.scorer
    needed = [label for trial in completed(run.study) for label in trial.members]
    table.ensure(table.variants if table.config.pool.build == "all" else needed)
    for label in table.variants:
        if label not in table.entries:
            table.leave_out(label, "not built (pool.build=named), because no trial contains it")
    try:
        exact = find_exact_front(table, scorer)
    except ValueError as error:
        exact = approximate_front(table, scorer, str(error))
    add_trials(run, exact.front)
    return exact


def find_exact_front(table: Table, scorer: EnsembleScorer) -> ExactFront:
    """Enumerate all ensembles of the evaluated variants on the scorer's half.

    ValueError: too many to enumerate.
    """
    settings = study_config(table.config)
    everything, names = enumerate_scores(table, scorer), chosen_objectives(settings)
    scores = everything.scores
    allowed = np.asarray(np.isfinite([scores[name] for name in names]).all(axis=0))
    for name, limit in limits(settings.min).items():
        allowed &= scores[name] >= limit
    for name, limit in limits(settings.max).items():
        allowed &= scores[name] <= limit
    everything = everything._replace(scores={name: scores[name] for name in names}).where(allowed)
    values = np.stack([everything.scores[name] for name in names], axis=1)
    best = pareto.pareto_front(values, directions(names))
    front = [everything.members(place) for place in best]
    return ExactFront(everything.masks.size, front, values[best], names, everything)


def enumerate_scores(table: Table, scorer: EnsembleScorer) -> Everything:
    """All ensembles of permitted size and skill under the study's vote on the scorer's half, as
    `scorer` scores each.

    ValueError: there are none, or too many; one by one under the published rules and under other
    votes than the majority.
    """
    settings, rule = study_config(table.config), scorer.rule
    labels = table.voters()
    masks = enumeration.enumerate_ensembles(len(labels), settings.max_members)
    slow = f"rules={scorer.asked.rules}" if scorer.asked.rules != "clean" else ""
    slow = slow if rule.enumerable else f"vote={rule.name}"
    if slow and masks.size > MAX_SLOW:
        raise ValueError(
            f"{masks.size:,} ensembles are too many under {slow}, where they are scored one by one "
            f"(at most {MAX_SLOW:,}): lower study.max_members or the pool"
        )
    masks = masks[np.bitwise_count(masks) >= settings.min_members]
    everything = Everything(labels, masks, {})
    if not rule.enumerable:
        each = [scorer(table, everything.members(place)) for place in range(masks.size)]
        keys = [key for key in each[0] if all(key in scores for scores in each)]
        columns = {key: np.array([scores[key] for scores in each]) for key in keys}
        return _skilled(everything._replace(scores=columns), scorer)
    codes, precision = scorer.answers(table, labels)
    scores = enumeration.score_all(
        scorer.asked, codes, precision, table.config.trust.weights, masks
    )
    costs, mode = [table.entries[label].cost for label in labels], table.config.latency.mode
    memory, ms = enumeration.cost_all(costs, mode, masks, (scorer.asked, codes, precision))
    scores |= {"memory_gb": memory, "latency_ms": ms}
    inside = (masks[:, None] >> np.arange(len(labels), dtype=np.uint32)) & 1
    for name, near in scorer.closeness(table, labels).items():
        scores[name] = inside @ near / inside.sum(axis=1)
    return _skilled(everything._replace(scores=with_objectives(scores)), scorer)


def _skilled(everything: Everything, scorer: EnsembleScorer) -> Everything:
    """Those that `study.min_skill` permits."""
    if study_config(scorer.config).min_skill != "require":
        return everything
    return everything.where(scorer.keep_skill(everything.scores))


def approximate_front(table: Table, scorer: EnsembleScorer, why: str) -> ExactFront:
    """The front of a pool too large to enumerate, as far as it shows in what greedy forward
    selection by each score looks at and in `BUDGET` trials of NSGA-II.
    """
    settings = study_config(table.config)
    names, allowed = chosen_objectives(settings), dict[Members, Scores]()

    def seen(trial: CompletedTrial, scores: Scores, feasible: bool) -> str:
        if feasible:
            allowed[trial.members] = scores
        return ""

    trials = replace(settings, trials=BUDGET, sampler="nsga2")
    copy = replace(table, config=replace(table.config, study=trials))
    run = Search(unsaved(trials), copy, scorer, seen)
    add_trials(run, looked_at(table, scorer))
    search(run)
    values = np.array([[scores[name] for name in names] for scores in allowed.values()])
    values = values.reshape(-1, len(names))
    best = pareto.pareto_front(values, directions(names))
    front = [list(allowed)[i] for i in best]
    return ExactFront(len(allowed), front, values[best], names, approximate=why)


def looked_at(table: Table, scorer: EnsembleScorer) -> list[Members]:
    """Whatever greedy forward selection, by each score that is maximized in turn, looks at."""
    settings, labels = study_config(table.config), table.voters()
    looked = dict[Members, None]()
    maximized = [n for n in chosen_objectives(settings) if OBJECTIVES[n].direction == "maximize"]
    for name in maximized:

        def value(masks: enumeration.WideMasks, name: str = name) -> Floats:
            grown = [tuple(labels[v] for v in enumeration.members(int(mask))) for mask in masks]
            looked.update(dict.fromkeys(grown))
            return np.array([[nan_last(scorer(table, members)[name])] for members in grown])

        enumeration.greedy(value, len(labels), settings.max_members)
    return list(looked)


def shares(exact: ExactFront, tried: Iterable[Scores | None]) -> list[float]:
    """Percent of the true front's hypervolume that the trials so far dominate, trial by trial; a
    trial that the limits do not allow (None) adds nothing.
    """
    whole = volume(scaled(exact, exact.values))
    percent: list[float] = []
    best = np.empty((0, len(exact.names)))
    for scores in tried:
        if scores is None:
            percent.append(percent[-1] if percent else 0.0)
            continue
        point = scaled(exact, np.array([[scores[name] for name in exact.names]]))
        if (best <= point).all(axis=1).any():
            percent.append(percent[-1])
            continue
        best = np.concatenate([best[~(point <= best).all(axis=1)], point])
        percent.append(100 * volume(best) / whole)
    return percent


def scaled(exact: ExactFront, values: Floats) -> Floats:
    """Losses (n, objectives) of values, from the true front's ideal point (0) to its nadir (1)."""
    front = losses(exact.values, exact.names)
    ideal, span = front.min(axis=0), np.ptp(front, axis=0)
    return (losses(values, exact.names) - ideal) / np.where(span > 0, span, 1.0)


def volume(points: Floats) -> float:
    """Hypervolume of scaled losses (n, objectives)."""
    return pareto.hypervolume(points, np.full(points.shape[1], REFERENCE))
