"""A finished study, made ready for people: rows, figures, MLflow, the terminal."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from ptsearch import explain, figure, results, terminal, tracking
from ptsearch import study as studies
from ptsearch.config import Config, StudyConfig
from ptsearch.explain import Explanation
from ptsearch.gains import gains
from ptsearch.judge import Judge, judges
from ptsearch.results import BEST_SINGLE, DENSE_MODEL, Row
from ptsearch.scores import Scores
from ptsearch.study import Found, Members
from ptsearch.table import DENSE, Table
from ptsearch.tracking import Tracker
from ptsearch.truth import Truth, shares, true_front, untried


@dataclass(frozen=True)
class Result:
    """All that the end of a study says."""

    trials: list[tuple[Found, Scores]]
    front: list[Row]
    compared: list[Row]  # dense, the best single variant, other dense models: with holdout scores
    singles: list[Row]  # the other single variants
    constants: list[Row]  # what needs no model
    degenerate: list[str]
    holdout_reads: int  # how often the holdout half was read, this time included
    truth: Truth | None  # the true front, where it can be enumerated
    shares: list[float]  # of its hypervolume in percent, by trial of the sampler
    remarks: list[str]  # why something is missing
    explained: Explanation

    @property
    def rows(self) -> list[Row]:
        return [*self.front, *self.compared, *self.singles, *self.constants]


def complete(study: optuna.Study, table: Table, judge: Judge, on_trial: studies.Seen) -> Truth:
    """Enumerate the true front and add to the study what of it no trial has named.

    ValueError: it cannot be enumerated, and why.
    """
    table.ensure(table.variants)
    truth = true_front(table, judge)
    tried = [found.members for found in studies.completed(study)]
    studies.add_trials(study, table, judge, on_trial, untried(truth, tried))
    return truth


def compile_result(
    table: Table,
    others: Sequence[Table],
    study: optuna.Study,
    halves: tuple[Judge, Judge],
    truth: Truth | None,
    found: Sequence[Found] | None = None,
) -> Result:
    """Every row of the result; the holdout half is read once, for what was chosen on search: the
    study's front, or what was `found` otherwise.
    """
    search, holdout = halves
    found = studies.front(study) if found is None else found
    table.voters()  # at least one
    classes = results.about_classes({"search": search, "held-out": holdout})
    if not found:
        raise ValueError(_nothing_meets(table, study, search))
    dense, *singles = results.baseline_rows(table, search)
    front = results.front_rows(table, search, found)
    best = results.best_single(singles)
    compared = results.with_holdout(table, holdout, [dense, *([best] if best else [])])
    baselines = []
    for other in others:
        its_search, its_holdout = judges(other)
        row = results.baseline_rows(other, its_search)[0]
        baselines += results.with_holdout(other, its_holdout, [replace(row, kind="baseline")])
    front, remarks = _with_gains(table, holdout, results.with_holdout(table, holdout, front), best)
    study.set_user_attr("holdout_reads", study.user_attrs.get("holdout_reads", 0) + 1)
    trials = [(trial, search(table, trial.members)) for trial in studies.completed(study)]
    proposed = [scores for trial, scores in trials if trial.by_sampler]
    return Result(
        trials=trials,
        front=front,
        compared=[*compared, *baselines],
        singles=[row for row in singles if row is not best],
        constants=results.constant_rows(search, holdout),
        degenerate=table.degenerate(),
        holdout_reads=study.user_attrs["holdout_reads"],
        truth=truth,
        shares=shares(truth, proposed) if truth else [],
        remarks=[*remarks, *classes, *results.about_data(table)],
        explained=explain.explain(table, halves, front, _baselines(best)),
    )


def _how(search: StudyConfig) -> dict[str, str]:
    return {"sampler": search.sampler} if search.kind == "pareto" else {}


def _baselines(best: Row | None) -> dict[str, Members]:
    return {DENSE_MODEL: (DENSE,)} | ({BEST_SINGLE: best.members} if best else {})


def _with_gains(
    table: Table, holdout: Judge, front: list[Row], best: Row | None
) -> tuple[list[Row], list[str]]:
    """The front with its gains over dense and the best single variant, or why there are none."""
    try:
        found = gains(table, holdout, [row.members for row in front], _baselines(best))
    except ValueError as error:
        return front, [f"no intervals: {error}"]
    return [replace(row, gains=each) for row, each in zip(front, found, strict=True)], []


def trial_record(table: Table, trial: Found, found: Scores, feasible: bool) -> dict[str, Any]:
    """What MLflow keeps of a trial."""
    variants = [table.variants[label] for label in trial.members]
    name = " + ".join(trial.members)
    return {
        "name": f"trial {trial.number}: {name}",
        "params": {
            "members": name,
            "size": len(trial.members),
            "methods": " ".join(sorted({variant.method for variant in variants})),
            "bits": " ".join(str(b) for b in sorted(variant.bits for variant in variants)),
        },
        "metrics": {key: value for key, value in found.items() if "/" not in key},
        "tags": {
            "kind": "trial",
            "proposed_by": "sampler" if trial.by_sampler else "enumeration",
            "feasible": str(feasible).lower(),
            "pareto": "false",
        },
    }


def log_result(tracker: Tracker, table: Table, study: optuna.Study, result: Result) -> None:
    """Tags, holdout scores, figures and tables to MLflow; the rows to the study, for the export."""
    before = {row["run_id"] for row in study.user_attrs.get("front", [])}
    now = {row.run_id: row for row in result.front}
    for run_id in before - now.keys():
        tracking.add(tracker, run_id, {}, {"pareto": "false"})
    for run_id, row in now.items():
        held = {f"holdout.{key}": row.holdout[key] for key in results.SHOWN} if row.holdout else {}
        tracking.add(tracker, run_id, held | results.gain_columns(row), {"pareto": "true"})
    tracking.log_steps(tracker, "hypervolume_share", enumerate(result.shares))
    config = table.config
    for name, value in _for_export(table, result).items():
        study.set_user_attr(name, value)
    name = studies.the_study(config).name
    title = f"{name}: {len(result.front)} of {len(result.trials)} trials on the front"
    scores = [found for _, found in result.trials]
    with tempfile.TemporaryDirectory() as folder:
        html, png, csv, resolved = files = [
            Path(folder, file) for file in ("pareto.html", "pareto.png", "front.csv", "config.json")
        ]
        figure.draw_html(scores, result.rows, html, title)
        figure.draw_png(scores, result.rows, png, title)
        results.write_csv(result.rows, csv)
        resolved.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
        tracking.finish(
            tracker,
            params=config.choices() | _how(studies.the_study(config)),
            metrics={
                "front_size": len(result.front),
                "trials": len(result.trials),
                "holdout_reads": result.holdout_reads,
                **({"regret": 100 - result.shares[-1]} if result.shares else {}),
            },
            files=[*files, *explain.write(result.explained, Path(folder), name)],
            note=_note(result),
        )


def show_result(screen: Console, tracker: Tracker, config: Config, result: Result) -> None:
    """The front and what it is compared with, as a table, and where to look further."""
    name = studies.the_study(config).name
    kind = "Within the limits" if studies.the_study(config).kind == "slo" else "Pareto front"
    terminal.show_rows(screen, f"{kind} of {name}", result.front)
    terminal.show_rows(
        screen, "for comparison", [*result.compared, *result.singles, *result.constants]
    )
    if not studies.the_study(config).baselines:
        screen.print("no smaller dense model configured (study.baselines=[NAME])", style="dim")
    for line in _footnotes(result):
        screen.print(line, style="dim")
    screen.print(f"\nmake ui, then all runs: {tracking.runs_link(tracker)}", soft_wrap=True)
    screen.print("and the front compared:", soft_wrap=True)
    link = tracking.compare_link(tracker, [row.run_id for row in result.front])
    screen.print(link, soft_wrap=True, style="bold")


def _for_export(table: Table, result: Result) -> dict[str, Any]:
    """What the study records of itself, enough to export its front later."""
    variants = {}
    for label in table.variants:
        fields = asdict(table.variant(label))
        variants[label] = {"id": table.variant(label).id, "fields": fields}
    return {
        "front": [asdict(row) for row in result.front],
        "objectives": studies.objectives(studies.the_study(table.config)),
        "variants": variants,
    }


def _footnotes(result: Result) -> list[str]:
    """How to read the tables."""
    notes = [
        "all scores in percent; the search half decides, the held-out half reports "
        f"(read {result.holdout_reads} time(s))"
    ]
    if any(row.gains for row in result.front):
        evident = sum(row.gains[BEST_SINGLE]["trust"].is_evident for row in result.front)
        verdict = (
            f"evident for {evident} of {len(result.front)}" if evident else "no evidence of a gain"
        )
        notes.append(
            "gain: held-out trust over the best single variant, simultaneous 95 % intervals: "
            + verdict
        )
    if any(row.unskilled for row in result.rows):
        notes.append("* in some benchmark no better than one constant answer")
    if result.degenerate:
        notes.append(f"degenerate, may not vote: {', '.join(result.degenerate)}")
    if result.truth is not None and result.shares:
        notes.append(
            f"true front of {result.truth.ensembles:,} ensembles: {len(result.truth.front)}; "
            f"the sampler's {len(result.shares)} trials "
            f"reached {result.shares[-1]:.1f} % of its hypervolume"
        )
    return notes + explain.lines(result.explained) + result.remarks


def _note(result: Result) -> str:
    best = max(result.front, key=lambda row: row.search["trust"])
    dense = result.compared[0]
    return (
        f"{len(result.front)} ensembles on the front of {len(result.trials)} trials. "
        f"Highest trust: {best.search['trust']:.1f} ({best.name}); "
        f"dense: {dense.search['trust']:.1f}. Search half of the samples; holdout.* is the rest."
    )


def _nothing_meets(table: Table, study: optuna.Study, judge: Judge) -> str:
    """Which limits no ensemble meets, and how close one came."""
    wanted = studies.the_study(table.config)
    tried = [judge(table, trial.members) for trial in studies.completed(study)]
    given = [
        (f"study.min.{name}", name, value, max)
        for name, value in studies.limits(wanted.min).items()
    ]
    given += [
        (f"study.max.{name}", name, value, min)
        for name, value in studies.limits(wanted.max).items()
    ]
    reached = [
        f"{key}={value:g} (best: {best(found[name] for found in tried):.4g})"
        for key, name, value, best in given
    ]
    return (
        f"no ensemble of the pool meets {', '.join(reached) or 'study.min_skill=require'} together"
    )
