"""A finished study for people: what goes to MLflow, then what is printed."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console

from ptsearch.config import Config
from ptsearch.evaluation.table import Table
from ptsearch.report import (
    certificate,
    explain,
    page,
    paper,
    plots,
    run_records,
    terminal,
    tracking,
)
from ptsearch.report import rows as results
from ptsearch.report.certificate import NO_EVIDENCE
from ptsearch.report.rows import BEST_SINGLE
from ptsearch.report.study import Result
from ptsearch.report.tracking import Tracker
from ptsearch.search import limits
from ptsearch.search.exact_front import ExactFront
from ptsearch.search.limits import Answer, Relaxation
from ptsearch.search.objectives import chosen_objectives
from ptsearch.search.study import study_config

HEADINGS = {  # by kind of study
    "pareto": "Pareto front",
    "slo": "Within the limits",
    "benchmark": "Single variants",
    "paper": "Ensembles of precisions and of seeds",
}


def log_result(tracker: Tracker, table: Table, result: Result) -> None:
    """Runs of what is reported, figures and tables to MLflow."""
    runs, (answer, chosen) = _log_rows(tracker, table, result), answer_of(table, result)
    picks = run_records.picks(result, chosen)
    config, search = table.config, study_config(table.config)
    with tempfile.TemporaryDirectory() as folder:
        sampler = {"sampler": search.sampler} if result.exact else {}
        tracking.finish(
            tracker,
            params=results.run_params(config) | sampler,
            metrics={
                **run_records.of_picks(picks),
                "front_size": len(result.front),
                "trials": len(result.trials),
                "holdout_reads": result.holdout_reads,
            },
            files=_write_files(table, result, Path(folder)),
            note=run_records.parent_note(tracker, runs, picks, answer),
        )
    tracking.log_steps(tracker, "sampler_hypervolume_pct", enumerate(result.shares))


def _log_rows(tracker: Tracker, table: Table, result: Result) -> dict[str, str]:
    """A run for each ensemble of the front, single variant and the dense model, with its scores,
    gains and certificate, tagged as reported: members -> id.
    """
    tried = {run_records.joined(trial.members): trial.run_id for trial, _ in result.trials}
    before = tracking.with_tag(tracker, "reported")
    tried |= {members: run_id for run_id, members in before.items()}
    name, dense_gb = study_config(table.config).name, result.compared[0].search["memory_gb"]
    runs: dict[str, str] = {}
    rows = [row for row in result.rows if row.kind in ("front", "dense", "single")]
    for row in rows:
        members = run_records.joined(row.members)
        run_id = row.run_id or runs.get(members) or tried.get(members)
        if not run_id:
            record = run_records.of_members(table, row.members, row.search, {})
            run_id = tracking.log_run(tracker, record)
        if members not in runs:
            tags = {"pareto": str(row.kind == "front").lower(), "reported": "true"}
            tags[tracking.NOTE] = run_records.note(row, run_id, name)
            tracking.add(tracker, run_id, run_records.metrics(row, dense_gb), tags)
        runs[members] = run_id
        if row.certificate:
            text = certificate.to_json(asdict(row.certificate))
            tracking.log_text(tracker, run_id, "certificate.json", text)
    for run_id in before.keys() - set(runs.values()):
        tracking.add(tracker, run_id, {}, {"pareto": "false", "reported": "false"})
    tracking.show_columns(tracker, run_records.table_columns(rows, dense_gb))
    return runs


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
    how = "make ui, then " if tracker.page == tracking.LOCAL_PAGE else ""
    screen.print(f"{how}{tracking.link(tracker, page.PAGE)}", soft_wrap=True, style="bold")


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
        f"dense: {dense.search['trust']:.1f}, both on the search half of the samples."
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
