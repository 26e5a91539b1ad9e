"""A finished study, made ready for people: rows, figures, MLflow, the terminal."""

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console

from ptsearch.benchmarks import PERSPECTIVES
from ptsearch.config import Config, StudyConfig
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import certificate, explain, plots, scenarios, terminal, tracking
from ptsearch.report import rows as results
from ptsearch.report.explain import Explanation
from ptsearch.report.paper import about_bytes
from ptsearch.report.rows import BEST_SINGLE, DENSE_MODEL, Row
from ptsearch.report.scenarios import Sheet
from ptsearch.report.tracking import Tracker
from ptsearch.scoring.scores import MMLU, Scores
from ptsearch.search import study as studies
from ptsearch.search.comparisons import gains
from ptsearch.search.exact_front import (
    ExactFront,
    reachable,
    shares,
)
from ptsearch.search.scorer import EnsembleScorer, search_and_holdout
from ptsearch.search.study import CompletedTrial, Members


@dataclass(frozen=True)
class Result:
    """All that the end of a study says."""

    trials: list[tuple[CompletedTrial, Scores]]
    front: list[Row]
    compared: list[Row]  # dense, the best single variant, other dense models: with holdout scores
    singles: list[Row]  # the other single variants
    constants: list[Row]  # what needs no model
    degenerate: list[str]
    left_out: dict[str, str]  # variant -> why nothing more was asked of it
    holdout_reads: int  # how often the holdout half was read, this time included
    exact: ExactFront | None  # the true front, where it can be enumerated
    shares: list[float]  # of its hypervolume in percent, by trial of the sampler
    reachable: list[float]  # the same of all ensembles of the variants evaluated by then
    remarks: list[str]  # why something is missing
    explained: Explanation
    scenarios: Sheet  # of the dense model, the best single variant and the most trusted ensemble

    @property
    def rows(self) -> list[Row]:
        return [*self.front, *self.compared, *self.singles, *self.constants]


def compile_result(
    table: Table,
    others: Sequence[Table],
    study: optuna.Study,
    scorers: tuple[EnsembleScorer, EnsembleScorer],
    exact: ExactFront | None,
    found: Sequence[CompletedTrial] | None = None,
) -> Result:
    """Every row of the result; the holdout half is read once, for what was chosen on search: the
    study's front, or what was `found` otherwise.
    """
    (search, holdout), wanted = scorers, studies.study_config(table.config)
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
        its_search, its_holdout = search_and_holdout(other)
        row = results.baseline_rows(other, its_search)[0]
        baselines += results.with_holdout(other, its_holdout, [replace(row, kind="baseline")])
    front = results.with_holdout(table, holdout, front)
    front, remarks = _with_gains(table, others, holdout, front, best)
    reads = study.user_attrs.get("holdout_reads", 0) + 1
    study.set_user_attr("holdout_reads", reads)
    by_half = {"search": search, "holdout": holdout}
    front = certificate.certified(table, by_half, front, reads, remarks)
    trials = [(trial, search(table, trial.members)) for trial in studies.completed(study)]
    proposed = [(trial.members, scores) for trial, scores in trials if trial.by_sampler]
    allowed = [s if studies.permits(wanted, m, s, search) else None for m, s in proposed]
    return Result(
        trials=trials,
        front=front,
        compared=[*compared, *baselines],
        singles=[row for row in singles if row is not best],
        constants=results.constant_rows(search, holdout),
        degenerate=[label for label in table.degenerate() if label not in table.left_out()],
        left_out=table.left_out(),
        holdout_reads=reads,
        exact=exact,
        shares=shares(exact, allowed) if exact else [],
        reachable=reachable(exact, [members for members, _ in proposed]) if exact else [],
        remarks=[*remarks, *classes, *results.about_data(table), *about_bytes(table)],
        explained=explain.explain(table, scorers, front, _baselines(best)),
        scenarios=scenarios.of_front(search, [dense, *([best] if best else [])], front),
    )


def _how(search: StudyConfig) -> dict[str, str]:
    return {"sampler": search.sampler} if search.kind == "pareto" else {}


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
    are none.
    """
    dense = {f"{each.base.name} dense": each.entries[DENSE] for each in others}
    baselines = _baselines(best) | {name: (name,) for name in dense}
    known = replace(table, entries=table.entries | dense)
    try:
        found = gains(known, holdout, [row.members for row in front], baselines)
    except ValueError as error:
        return front, [f"no intervals: {error}"]
    return [replace(row, gains=each) for row, each in zip(front, found, strict=True)], []


def trial_record(
    table: Table, trial: CompletedTrial, found: Scores, feasible: bool
) -> dict[str, Any]:
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
    before = set(study.user_attrs.get("front_runs", []))
    now = {row.run_id: row for row in result.front}
    study.set_user_attr("front_runs", list(now))
    for run_id in before - now.keys():
        tracking.add(tracker, run_id, {}, {"pareto": "false"})
    for run_id, row in now.items():
        held = {f"holdout.{key}": row.holdout[key] for key in results.SHOWN} if row.holdout else {}
        tracking.add(tracker, run_id, held | results.gain_columns(row), {"pareto": "true"})
        text = certificate.to_json(row.certificate)
        tracking.log_text(tracker, run_id, "certificate.json", text)
    tracking.log_steps(tracker, "hypervolume_share", enumerate(result.shares))
    tracking.log_steps(tracker, "hypervolume_reachable", enumerate(result.reachable))
    config = table.config
    name = studies.study_config(config).name
    title = f"{name}: {len(result.front)} of {len(result.trials)} trials on the front"
    title += "".join(f"\n{line}" for line in _gain_line(result))
    scores = [found for _, found in result.trials]
    with tempfile.TemporaryDirectory() as folder:
        html, png, csv, beside, resolved, data = files = [
            Path(folder, name)
            for name in (
                "pareto.html",
                "pareto.png",
                "front.csv",
                "scenarios.csv",
                "config.json",
                "data.json",
            )
        ]
        plots.draw_html(scores, result.rows, html, title)
        plots.draw_png(scores, result.rows, png, title)
        if result.shares:
            files.append(Path(folder, "regret.png"))
            plots.draw_regret(result.shares, result.reachable, files[-1], f"{name}: regret")
        results.write_csv(result.rows, csv)
        scenarios.write(result.scenarios, beside)
        resolved.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
        data.write_text(json.dumps(results.data_hashes(table), indent=2), encoding="utf-8")
        tracking.finish(
            tracker,
            params=config.choices() | _how(studies.study_config(config)),
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
    name = studies.study_config(config).name
    kind = "Within the limits" if studies.study_config(config).kind == "slo" else "Pareto front"
    dense_gb = result.compared[0].search["memory_gb"]
    terminal.show_rows(screen, f"{kind} of {name}", result.front, dense_gb)
    compared = [*result.compared, *result.singles, *result.constants]
    terminal.show_rows(screen, "for comparison", compared, dense_gb)
    terminal.show_scenarios(screen, "search half", result.scenarios, list(result.scenarios.models))
    if not studies.study_config(config).baselines:
        screen.print("no smaller dense model configured (study.baselines=[NAME])", style="dim")
    for line in _footnotes(result):
        screen.print(line, style="dim")
    screen.print(f"\nmake ui, then all runs: {tracking.runs_link(tracker)}", soft_wrap=True)
    screen.print("and the front compared:", soft_wrap=True)
    link = tracking.compare_link(tracker, [row.run_id for row in result.front])
    screen.print(link, soft_wrap=True, style="bold")


def _footnotes(result: Result) -> list[str]:
    """How to read the tables."""
    notes = [
        "all scores in percent; the search half decides, the held-out half reports "
        f"(read {result.holdout_reads} time(s))"
    ]
    notes += _gain_line(result)
    if any(row.unskilled for row in result.rows):
        notes.append("* in some benchmark no better than one constant answer")
    several = [row for row in result.front if len(row.members) > 2]
    if several:
        calls = np.mean([row.search["calls"] / len(row.members) for row in several])
        read = np.mean([row.search["bytes_read"] for row in several])
        notes.append(
            "asked one by one until the vote is decided (same answers), the front's ensembles of "
            f"three or more need {100 * calls:.0f} % of the calls, {read:.0f} % of the bytes (mean)"
        )
    for reason in dict.fromkeys(result.left_out.values()):
        labels = [label for label, why in result.left_out.items() if why == reason]
        notes.append(f"{reason}: {', '.join(labels)}")
    if result.degenerate:
        notes.append(f"degenerate, may not vote: {', '.join(result.degenerate)}")
    if result.exact is not None and result.shares:
        notes.append(
            f"{_kind(result.exact)} of {result.exact.ensembles:,} ensembles: "
            f"{len(result.exact.front)}; "
            f"the sampler's {len(result.shares)} trials "
            f"reached {result.shares[-1]:.1f} % of its hypervolume"
        )
    return notes + explain.lines(result.explained) + result.remarks


def _gain_line(result: Result) -> list[str]:
    """Whether anything is gained, in words; nothing where there are no intervals."""
    if not any(row.gains for row in result.front):
        return []
    evident = sum(row.gains[BEST_SINGLE]["trust"].is_evident for row in result.front)
    said = f"evident for {evident} of {len(result.front)}" if evident else "no evidence of a gain"
    return [
        f"gain: held-out trust over the best single variant, simultaneous 95 % intervals: {said}"
    ]


def _kind(exact: ExactFront) -> str:
    why = exact.approximate
    return f"approximate front (greedy and NSGA-II, because {why})" if why else "true front"


def _note(result: Result) -> str:
    best = max(result.front, key=lambda row: row.search["trust"])
    dense = result.compared[0]
    return (
        f"{len(result.front)} ensembles on the front of {len(result.trials)} trials. "
        f"Highest trust: {best.search['trust']:.1f} ({best.name}); "
        f"dense: {dense.search['trust']:.1f}. Search half of the samples; holdout.* is the rest."
    )


def _nothing_meets(table: Table, study: optuna.Study, scorer: EnsembleScorer) -> str:
    """Which limits no ensemble meets, and how close one came."""
    wanted = studies.study_config(table.config)
    if set(table.variants) <= set(table.degenerate()):
        return "every variant of the pool is degenerate: take more bits or another calibration"
    tried = [scorer(table, trial.members) for trial in studies.completed(study)]
    if not tried and studies.unscored(study):
        found = scorer(table, (table.voters()[0],))
        where = [name for name in (MMLU, *PERSPECTIVES) if math.isnan(found.get(name, 0.0))]
        return (
            f"no ensemble has a score under rules={scorer.asked.rules}, which divide by the "
            f"answered samples: in {', '.join(where)} a scenario has none; take rules=clean or "
            f"leave it out with trust.weights.{where[0]}=0"
        )
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
