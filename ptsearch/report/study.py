"""A finished study, computed: the rows of its front and of what it is compared with.

All kinds of studies share it: the front of `+study=slo` is one ensemble, those of the paper's
experiments are the ensembles that these name.
`study_output` logs and prints the result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import optuna

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import explain, holdout_reads
from ptsearch.report import rows as results
from ptsearch.report.answer import Answer, answer, with_picks
from ptsearch.report.certificate import CLAIM, certified
from ptsearch.report.explain import Explanation
from ptsearch.report.rows import BEST_SINGLE, DENSE_MODEL, Row, ScenarioScores
from ptsearch.scoring.scores import Scores
from ptsearch.search import study as studies
from ptsearch.search.comparisons import gains
from ptsearch.search.exact_front import ExactFront, shares
from ptsearch.search.fronts import Front
from ptsearch.search.objectives import chosen_objectives
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.study import CompletedTrial, Members, study_config

SAMPLES = {"all": "all data", "search": "search half"}
Parts = Mapping[str, EnsembleScorer]  # all, search, holdout -> what scores on these samples


@dataclass(frozen=True)
class Result:
    """Everything that is reported at the end of a study."""

    trials: list[tuple[CompletedTrial, Scores]]
    front: list[Row]
    compared: list[Row]  # dense, the best single variant, other dense models: with holdout scores
    singles: list[Row]  # the single variants that are neither
    constants: list[Row]  # what needs no model
    degenerate: list[str]
    left_out: dict[str, str]  # variant -> why it was not evaluated any further
    holdout_reads: int  # how often the held-out items were read, see `holdout_reads.count`
    exact: ExactFront | None
    shares: list[float]  # of its hypervolume in percent, by trial of the sampler
    remarks: list[str]  # why something is missing
    answer: Answer
    explained: Explanation
    scenarios: ScenarioScores  # of what is compared and the most trusted ensemble, or of all rows

    @property
    def rows(self) -> list[Row]:
        return [*self.front, *self.compared, *self.singles, *self.constants]


def compile_result(
    table: Table,
    others: Sequence[Table],
    study: optuna.Study,
    parts: Parts,
    chosen_front: Front,
) -> Result:
    """Every row of the result; the holdout half is read once, for what is chosen.

    ValueError: nothing is.
    """
    search, holdout = parts["search"], parts["holdout"]
    exact = chosen_front.exact
    table.voters()  # at least one
    remarks = results.about_classes({"search": search, "held-out": holdout})
    if not chosen_front.chosen:
        raise ValueError(_no_front(table, study, search))
    dense, *singles = results.baseline_rows(table, search)
    best = results.best_single(singles)
    references = [dense, *([best] if best else [])]
    shown = ["holdout", "all"] if chosen_front.all_data else ["holdout"]
    front = results.front_rows(table, search, chosen_front.chosen)
    front = with_picks(table, search, front, chosen_objectives(study_config(table.config)))
    front = results.with_scores(table, parts, shown, front)
    front, no_gains = _with_gains(table, others, holdout, front, best)
    reads = holdout_reads.count(table, [row.members for row in (*front, *references)])
    front = certified(table, {"search": search, "holdout": holdout}, front, reads, no_gains)
    references = results.with_scores(table, parts, shown, references)
    elsewhere = {row.members for row in (*front, *references)}
    singles = [row for row in singles if row.members not in elsewhere]
    singles = results.with_scores(table, parts, shown[1:], singles)
    compared = references + _baseline_rows(others, shown)
    tried = studies.completed(study) or chosen_front.chosen
    left_out = table.left_out()
    tried = [trial for trial in tried if left_out.keys().isdisjoint(trial.members)]
    trials = [(trial, search(table, trial.members)) for trial in tried]
    return Result(
        trials=trials,
        front=front,
        compared=compared,
        singles=singles,
        constants=results.constant_rows(search, holdout),
        degenerate=[label for label in table.degenerate() if label not in left_out],
        left_out=left_out,
        holdout_reads=reads,
        exact=exact,
        shares=_shares(exact, trials, search) if exact else [],
        remarks=chosen_front.remarks + no_gains + remarks + results.about_data(table),
        answer=answer(front, compared, int(holdout.mask.sum())),
        explained=explain.explain(table, parts, front, _baselines(best)),
        scenarios=_scenarios(parts, [*compared, *front, *singles])
        if chosen_front.all_data
        else _scenarios({"search": search}, [*references, _most_trusted(front)]),
    )


def _baseline_rows(others: Sequence[Table], shown: Sequence[str]) -> list[Row]:
    """The other dense models, with scores on the search half and on the parts `shown`."""
    rows = []
    for other in others:
        parts = scorers(other)
        dense = replace(results.baseline_rows(other, parts["search"])[0], kind="baseline")
        rows += results.with_scores(other, parts, shown, [dense])
    return rows


def _most_trusted(front: Sequence[Row]) -> Row:
    return replace(max(front, key=lambda row: row.search["trust"]), name="most trusted")


def _shares(
    exact: ExactFront, trials: Sequence[tuple[CompletedTrial, Scores]], scorer: EnsembleScorer
) -> list[float]:
    """Percent of the exact front's hypervolume, by trial of the sampler."""
    search = study_config(scorer.config)
    return shares(
        exact,
        [
            scores if studies.permits(search, trial.members, scores, scorer) else None
            for trial, scores in trials
            if trial.by_sampler
        ],
    )


def _scenarios(parts: Parts, rows: Sequence[Row]) -> ScenarioScores:
    """Of the rows on all data where there are scores on them, else on the search half."""
    part = "all" if "all" in parts else "search"
    models = {row.name: row.scores[part] for row in rows}
    return results.scenario_scores(parts[part], models, SAMPLES[part])


def _baselines(best: Row | None) -> dict[str, Members]:
    return {DENSE_MODEL: (DENSE,)} | ({BEST_SINGLE: best.members} if best else {})


def _with_gains(
    table: Table,
    others: Sequence[Table],
    holdout: EnsembleScorer,
    front: list[Row],
    best: Row | None,
) -> tuple[list[Row], list[str]]:
    """The front with its gains over the dense models and the best single variant, or why there
    are none. The first question is the trust of the picks: its intervals hold together by
    themselves, those of everything else by themselves.
    """
    for other in others:
        other.ensure([DENSE])
    dense = {results.dense_name(other): other.entries[DENSE] for other in others}
    baselines = _baselines(best) | {name: (name,) for name in dense}
    known = replace(table, entries=table.entries | dense)
    picks = [row.members for row in front if row.picks]
    try:
        by_row = gains(known, holdout, [row.members for row in front], baselines)
        first = gains(table, holdout, picks, _baselines(best), [CLAIM]) if picks else []
    except ValueError as error:
        return front, [f"no intervals: {error}"]
    answered = dict(zip(picks, first, strict=True))
    return [
        replace(row, gains=each | {over: each[over] | by_score for over, by_score in mine.items()})
        for row, each in zip(front, by_row, strict=True)
        for mine in [answered.get(row.members, {})]
    ], []


def _no_front(table: Table, study: optuna.Study, scorer: EnsembleScorer) -> str:
    """Why the front is empty: which limits no ensemble meets, and the best value of each."""
    settings = study_config(table.config)
    if set(table.variants) <= set(table.degenerate()):
        return "every variant of the pool is degenerate: use more bits or another calibration"
    tried = [scorer(table, trial.members) for trial in studies.completed(study)]
    if not tried and studies.unscored(study):
        scores = scorer(table, (table.voters()[0],))
        where = [name for name in results.shown_benchmarks(scores) if math.isnan(scores[name])]
        return (
            f"no ensemble has a score under rules={scorer.asked.rules}: in {', '.join(where)} a "
            "scenario has no usable answers, or one of its two groups has none; use other rules or "
            f"trust.weights.{where[0]}=0"
        )
    reached = [
        f"study.{side}.{name}={value:g} (best: {best(scores[name] for scores in tried):.4g})"
        for side, values, best in (("min", settings.min, max), ("max", settings.max, min))
        for name, value in studies.limits(values).items()
    ]
    return f"no ensemble of the pool meets {', '.join(reached) or 'study.min_skill'} together"
