"""A finished study for people: what goes to MLflow, then what is printed."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
from rich.console import Console

from ptsearch.config import Config
from ptsearch.evaluation.table import Table
from ptsearch.report import certificate, explain, page, paper, plots, terminal, tracking
from ptsearch.report import rows as results
from ptsearch.report.certificate import NO_EVIDENCE
from ptsearch.report.rows import BEST_SINGLE
from ptsearch.report.study import Result
from ptsearch.report.tracking import RunRecord, Tracker
from ptsearch.scoring.scores import Scores
from ptsearch.search import limits
from ptsearch.search.exact_front import ExactFront
from ptsearch.search.limits import Answer, Relaxation
from ptsearch.search.objectives import chosen_objectives
from ptsearch.search.study import CompletedTrial, study_config

HEADINGS = {  # by kind of study
    "pareto": "Pareto front",
    "slo": "Within the limits",
    "benchmark": "Single variants",
    "paper": "Ensembles of precisions and of seeds",
}


def trial_record(table: Table, trial: CompletedTrial, scores: Scores, feasible: bool) -> RunRecord:
    """What MLflow keeps of a trial."""
    variants = [table.variants[label] for label in trial.members]
    members = " + ".join(trial.members)
    return RunRecord(
        name=f"trial {trial.number}: {members}",
        params={
            "members": members,
            "size": len(trial.members),
            "methods": " ".join(sorted({variant.method for variant in variants})),
            "bits": " ".join(str(b) for b in sorted(variant.bits for variant in variants)),
        },
        metrics={key: value for key, value in scores.items() if "/" not in key},
        tags={
            "kind": "trial",
            "trial": str(trial.number),
            "proposed_by": "sampler" if trial.by_sampler else "enumeration",
            "feasible": str(feasible).lower(),
            "pareto": "false",
        },
    )


def log_result(tracker: Tracker, table: Table, study: optuna.Study, result: Result) -> None:
    """Tags, holdout scores, figures and tables to MLflow."""
    _log_front(tracker, study, result)
    tracking.log_steps(tracker, "hypervolume_share", enumerate(result.shares))
    config, search = table.config, study_config(table.config)
    with tempfile.TemporaryDirectory() as folder:
        sampler = {"sampler": search.sampler} if result.exact else {}
        tracking.finish(
            tracker,
            params=results.run_params(config) | sampler,
            metrics={
                "front_size": len(result.front),
                "trials": len(result.trials),
                "holdout_reads": result.holdout_reads,
                **({"regret": 100 - result.shares[-1]} if result.shares else {}),
            },
            files=_write_files(table, result, Path(folder)),
            note=_note(result),
        )


def _log_front(tracker: Tracker, study: optuna.Study, result: Result) -> None:
    """Tag exactly the runs of the present front, with holdout scores, gains and certificate."""
    before = set(study.user_attrs.get("front_runs", []))
    study.set_user_attr("front_runs", [row.run_id for row in result.front])
    for run_id in before - {row.run_id for row in result.front}:
        tracking.add(tracker, run_id, {}, {"pareto": "false"})
    for row in result.front:
        numbers = results.number_columns(row).items()
        metrics = {key: value for key, value in numbers if key.startswith(("holdout.", "all."))}
        metrics |= results.gain_columns(row, [certificate.CLAIM])
        tracking.add(tracker, row.run_id, metrics, {"pareto": "true"})
        if row.certificate:
            text = certificate.to_json(asdict(row.certificate))
            tracking.log_text(tracker, row.run_id, "certificate.json", text)


def _write_files(table: Table, result: Result, folder: Path) -> list[Path]:
    """The artifacts of the study's run."""
    config, name = table.config, study_config(table.config).name
    title = f"{name}: {len(result.front)} of {len(result.trials)} trials on the front"
    title += "".join(f"\n{line}" for line in _gain_line(result))
    names = ("pareto.png", "front.csv", "scenarios.csv", "config.json", "data.json")
    png, front, scenarios, resolved, data = files = [folder / name for name in names]
    scores = [each for _, each in result.trials]
    plots.draw_front_png(scores, result.rows, png, title)
    results.write_csv(result.rows, front)
    results.write_scenarios(result.scenarios, scenarios)
    resolved.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
    data.write_text(json.dumps(results.data_hashes(table), indent=2), encoding="utf-8")
    pages = page.write(table, result, *answer_of(table, result), report_folder(config))
    return [*pages, *files, *explain.write(result.explained, folder)]


def report_folder(config: Config) -> Path:
    """Where the page of a study is kept, beside the artifact of its run."""
    return Path(config.runs_dir) / "reports" / study_config(config).name


def answer_of(table: Table, result: Result) -> tuple[list[str], dict[str, results.Row]]:
    front = [row.search for row in result.front]
    best = max(result.front, key=lambda row: row.search["trust"])
    names = chosen_objectives(study_config(table.config))
    picks = {"knee": result.front[results.knee(front, names)], "best_trust": best}
    return [_note(result), *_gain_line(result)], picks


def show_result(screen: Console, tracker: Tracker, config: Config, result: Result) -> None:
    """The front and what it is compared with, as a table, and where to look further."""
    name = study_config(config).name
    kind = HEADINGS[study_config(config).kind]
    dense_gb = result.compared[0].search["memory_gb"]
    terminal.show_rows(screen, f"{kind} of {name}", result.front, dense_gb)
    compared = [*result.compared, *result.singles, *result.constants]
    terminal.show_rows(screen, "for comparison", compared, dense_gb)
    if result.front[0].all:
        paper.show(screen, config.model, result.rows)
    terminal.show_scenarios(screen, result.scenarios)
    if not study_config(config).baselines:
        screen.print("no smaller dense model configured (study.baselines=[NAME])", style="dim")
    for line in _footnotes(config, result):
        screen.print(line, style="dim")
    screen.print(f"\nreport: {report_folder(config) / page.PAGE}", soft_wrap=True)
    how = "make ui, then all" if tracker.page == tracking.LOCAL_PAGE else "all"
    screen.print(f"{how} runs: {tracking.runs_link(tracker)}", soft_wrap=True)
    screen.print("and the front compared:", soft_wrap=True)
    link = tracking.compare_link(tracker, [row.run_id for row in result.front])
    screen.print(link, soft_wrap=True, style="bold")


def _footnotes(config: Config, result: Result) -> list[str]:
    """How to read the tables."""
    notes = [
        "all scores in percent; choices are made on the search half, the held-out half was read "
        f"{result.holdout_reads} time(s)"
    ]
    notes += _gain_line(result)
    if any(row.unskilled for row in result.rows):
        notes.append("* in some benchmark no better than one constant answer")
    several = [row for row in result.front if len(row.members) > 2]
    if several:
        calls = np.mean([row.search["calls"] / len(row.members) for row in several])
        read = np.mean([row.search["bytes_read"] for row in several])
        notes.append(
            "members queried in turn until the vote is decided (same answers): ensembles of three "
            f"or more need on average {100 * calls:.0f} % of the calls, {read:.0f} % of the bytes"
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
    if result.front[0].all:
        notes += paper.notes(config, result.rows, result.remarks)
    return notes + result.explained.lines + result.remarks


def _gain_line(result: Result) -> list[str]:
    """Whether anything is gained, in words; nothing where there are no intervals."""
    if not any(row.gains for row in result.front):
        return []
    evident = sum(row.gains[BEST_SINGLE]["trust"].is_evident for row in result.front)
    verdict = f"evident for {evident} of {len(result.front)}" if evident else NO_EVIDENCE
    return [
        f"gain: held-out trust over the best single variant, simultaneous 95 % intervals: {verdict}"
    ]


def _kind(exact: ExactFront) -> str:
    why = exact.approximate
    return f"approximate front (greedy and NSGA-II, because {why})" if why else "exact front"


def _note(result: Result) -> str:
    best = max(result.front, key=lambda row: row.search["trust"])
    dense = result.compared[0]
    return (
        f"{len(result.front)} ensembles on the front of {len(result.trials)} trials. "
        f"Highest trust: {best.search['trust']:.1f} ({best.name}); "
        f"dense: {dense.search['trust']:.1f}. Search half of the samples; holdout.* is the rest."
    )


def show_relaxations(screen: Console, answer: Answer) -> None:
    """Each limit whose relaxation alone helps, then the smallest joint relaxation."""
    terminal.show_grid(
        screen, "Relaxations that one ensemble meets",
        ["members", "instead", "trust"],
        [[[" + ".join(each.members), limits.as_overrides(each), f"{each.trust:.1f}"]
          for each in answer.relaxations]],
    )  # fmt: skip


def log_relaxations(tracker: Tracker, config: Config, answer: Answer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "relaxations.csv")
        results.write_rows([_relaxation_row(each) for each in answer.relaxations], path)
        tracking.finish(
            tracker,
            params=results.run_params(config),
            metrics={"ensembles": answer.ensembles, "feasible": 0},
            files=[path],
            note=limits.verdict(answer),
        )


def _relaxation_row(relaxed: Relaxation) -> results.CsvRow:
    return {
        "kind": "alone" if len(relaxed.limits) == 1 else "joint",
        "members": " + ".join(relaxed.members), "trust": relaxed.trust, **relaxed.limits,
    }  # fmt: skip
