"""A finished study for people: what goes to MLflow, then what is printed."""

import json
import tempfile
from collections.abc import Sequence
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
from ptsearch.report.answer import AS_GOOD, KNEE
from ptsearch.report.rows import Row
from ptsearch.report.study import Result
from ptsearch.report.tracking import Tracker
from ptsearch.search import limits
from ptsearch.search.limits import Answer, Relaxation
from ptsearch.search.study import study_config
from ptsearch.shared import CsvRow

HEADINGS = {  # by kind of study
    "pareto": "Pareto front",
    "slo": "Within the limits",
    "benchmark": "Single variants",
    "paper": "Ensembles of precisions and of seeds",
}

MOST_SHOWN = 12  # rows of a front in the terminal
PLACES = ("runs_dir=", "cache_dir=", "optuna_db=", "mlflow_db=")  # overrides that an export needs


def log_result(tracker: Tracker, table: Table, result: Result) -> None:
    """Runs of what is reported, figures and tables to MLflow."""
    runs = _log_rows(tracker, table, result)
    picks = run_records.picks(result)
    config, search = table.config, study_config(table.config)
    if result.exact:  # a tag: a study may go on with another, and MLflow's params stay
        tracking.add(tracker, tracker.run_id, {}, {"sampler": search.sampler})
    with tempfile.TemporaryDirectory() as folder:
        tracking.finish(
            tracker,
            params=results.run_params(config),
            metrics={
                **run_records.of_picks(picks),
                "front_size": len(result.front),
                "trials": len(result.trials),
                "holdout_reads": result.holdout_reads,
                **({"sampler_hypervolume_pct": result.shares[-1]} if result.shares else {}),
            },
            files=_write_files(table, result, Path(folder)),
            note=run_records.parent_note(tracker, table, runs, picks, result.answer.sentences),
        )


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
            tags = run_records.tags(row, run_id, name)
            tracking.add(tracker, run_id, run_records.metrics(row, dense_gb), tags)
        runs[members] = run_id
        if row.certificate:
            text = certificate.to_json(asdict(row.certificate))
            tracking.log_text(tracker, run_id, "certificate.json", text)
    for run_id in before.keys() - set(runs.values()):
        tracking.add(tracker, run_id, {}, run_records.UNREPORTED)
    tracking.show_columns(tracker, ("kind", "picks"), run_records.table_columns(rows, dense_gb))
    return runs


def _write_files(table: Table, result: Result, folder: Path) -> list[Path]:
    """The artifacts of the study's run."""
    config, name = table.config, study_config(table.config).name
    title = f"{name}: {len(result.front)} of {len(result.trials)} trials on the front"
    title += "".join(f"\n{line}" for line in result.answer.sentences)
    names = ("pareto.png", "front.csv", "scenarios.csv", "config.json", "data.json")
    png, front, scenarios, resolved, data = files = [folder / name for name in names]
    scores = [each for _, each in result.trials]
    plots.draw_front_png(scores, result.rows, png, title)
    results.write_csv(result.rows, front)
    results.write_scenarios(result.scenarios, scenarios)
    resolved.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
    data.write_text(json.dumps(results.data_hashes(table), indent=2), encoding="utf-8")
    pages = page.write(table, result, report_folder(config))
    return [*pages, *files, *explain.write(result.explained, folder)]


def report_folder(config: Config) -> Path:
    """Where the page of a study is kept, beside the artifact of its run."""
    return Path(config.runs_dir) / "reports" / study_config(config).name


def show_result(screen: Console, tracker: Tracker, config: Config, result: Result) -> None:
    """The answer, the front as a table, what it is compared with, and what to do next."""
    name, kind = study_config(config).name, study_config(config).kind
    dense_gb, as_published = result.compared[0].search["memory_gb"], bool(result.front[0].all)
    for sentence in result.answer.sentences:
        screen.print(sentence)
    title = f"{HEADINGS[kind]} of {name}"
    if result.exact:
        title += f": {len(result.front)} of {result.exact.ensembles:,} ensembles"
    shown = result.front if as_published else _some(result.front)
    terminal.show_rows(screen, title, shown, dense_gb, result.compared)
    if len(shown) < len(result.front):
        screen.print(f"and {len(result.front) - len(shown)} more in the report", style="dim")
    beside = [*result.singles, *result.constants] if as_published else []
    terminal.show_rows(screen, "For comparison", [*result.compared, *beside], dense_gb)
    if as_published:
        paper.show(screen, config.model, result.rows)
        terminal.show_scenarios(screen, result.scenarios)
    screen.print()
    for line in _footnotes(config, result):
        screen.print(line, style="dim")
    screen.print("\nNext", style="bold")
    for step, command in _next(tracker, config, result).items():
        screen.print(f"{step:7} {command}", soft_wrap=True)


def _some(front: Sequence[Row]) -> list[Row]:
    """The picks, and as many others as the screen has room for, evenly from the smallest on."""
    picks = [i for i, row in enumerate(front) if row.picks]
    spread = np.linspace(0, len(front) - 1, max(MOST_SHOWN - len(picks), 1)).round().astype(int)
    places = range(len(front)) if len(front) <= MOST_SHOWN else {*picks, *spread.tolist()}
    return [front[place] for place in sorted(places)]


def _next(tracker: Tracker, config: Config, result: Result) -> dict[str, str]:
    """What to do with the result: at most four commands or places."""
    search = study_config(config)
    ui = "make ui, then " if tracker.page == tracking.LOCAL_PAGE else ""
    steps = {
        "report": str(report_folder(config) / page.PAGE),
        "runs": ui + tracking.link(tracker, page.PAGE),
    }
    if result.exact is None:
        return steps
    where = [o for o in config.overrides if o.startswith(PLACES)]
    pick = AS_GOOD if AS_GOOD in result.answer.picks else KNEE
    export = ["+export=ensemble", f"export.study={search.name}", f"export.pick={pick}",
              "export.out=chosen", *where]  # fmt: skip
    half = result.compared[0].search["memory_gb"] / 2
    limited = ["+study=slo", f"study.max.memory_gb={half:.2g}", *page.given_again(config, True)]
    return steps | {"export": page.command(*export), "limits": page.command(*limited)}


def _footnotes(config: Config, result: Result) -> list[str]:
    """How to read the tables, and what is missing."""
    notes = [
        f"Percent; memory and latency on {config.cost.target}, mem % of the dense model's. The "
        "search half made every choice; held is the held-out half, read "
        f"{result.holdout_reads} time(s). gain: held-out trust over the best single variant, "
        "95 % interval."
    ]
    if any(row.unskilled for row in result.rows):
        notes.append("* shows no skill in some benchmark or scenario (a constant answer does)")
    for reason in dict.fromkeys(result.left_out.values()):
        labels = [label for label, why in result.left_out.items() if why == reason]
        notes.append(f"{reason}: {', '.join(labels)}")
    if result.degenerate:
        notes.append(f"degenerate, may not vote: {', '.join(result.degenerate)}")
    if result.exact is not None and result.exact.approximate:
        why = result.exact.approximate
        notes.append(f"approximate front (greedy and NSGA-II, because {why})")
    if result.front[0].all:
        notes += paper.notes(config, result.rows, result.remarks) + result.explained.lines
    return notes + result.remarks


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


def _relaxation_row(relaxed: Relaxation) -> CsvRow:
    return {
        "kind": "alone" if len(relaxed.limits) == 1 else "joint",
        "members": " + ".join(relaxed.members), "trust": relaxed.trust, **relaxed.limits,
    }  # fmt: skip
