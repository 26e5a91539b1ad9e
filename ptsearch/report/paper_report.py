"""The paper's experiments for people: tables, a chart, a CSV, MLflow, the published figures."""

import csv
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from ptsearch.config import CONF, Config, ModelConfig
from ptsearch.report import plots, rows, terminal, tracking
from ptsearch.report.paper import ENSEMBLES, Outcome, over_best
from ptsearch.report.plots import BarPanel
from ptsearch.report.rows import BEST_SINGLE, Row, run_params, shown_benchmarks
from ptsearch.report.terminal import gain_cell, number, starred
from ptsearch.report.tracking import RunRecord, Tracker
from ptsearch.scoring.scores import Scores
from ptsearch.search.study import study_config

PUBLISHED = CONF / "published/published.csv"
IN_SCENARIOS = 2  # ensembles or single variants in the table of scenarios; the CSV has all
BLOCKS = (  # of the tables
    ("precisions",),
    ("seeds",),
    ("dense", "baseline", "best_all", "best_search"),
    ("single",),
)


def log(tracker: Tracker, config: Config, outcome: Outcome) -> str:
    """A nested run per row; on the parent run the CSV, the chart and the config. Returns the link
    to MLflow's page that compares the rows.
    """
    study = study_config(config)
    logged = [replace(row, run_id=_log_row(tracker, row)) for row in outcome.rows]
    title = f"{study.name}: {config.model.name}, {config.benchmarks.name} benchmarks, "
    title += f"rules {config.benchmarks.rules}"
    names = (f"{study.kind}.html", f"{study.kind}.csv", "scenarios.csv", "config.json", "data.json")
    with tempfile.TemporaryDirectory() as folder:
        chart, table, scenarios, resolved, data = files = [Path(folder, name) for name in names]
        groups = [_head(study.kind, name) for name in _benchmarks(study.kind, outcome)]
        plots.draw_bars(panels(study.kind, outcome), groups, chart, title)
        write_csv(outcome._replace(rows=logged), table)
        rows.write_scenarios(outcome.scenarios, scenarios)
        resolved.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
        data.write_text(json.dumps(outcome.data, indent=2), encoding="utf-8")
        tracking.finish(
            tracker,
            params=run_params(config),
            metrics={"lines": len(outcome.rows)},
            files=files,
            note="\n\n".join(notes(config, outcome)),
        )
    return tracking.compare_link(tracker, [row.run_id for row in logged])


def _log_row(tracker: Tracker, row: Row) -> str:
    params: dict[str, str | int] = {"members": " + ".join(row.members), "size": len(row.members)}
    record = RunRecord(row.name, params, rows.number_columns(row), {"kind": row.kind})
    return tracking.log_run(tracker, record)


def write_csv(outcome: Outcome, path: Path) -> None:
    """Every number of every row, and the differences to the best single variant as published."""
    (dense,) = outcome.of("dense")
    lines = [rows.csv_row(row, dense.search["memory_gb"]) for row in outcome.rows]
    for best in outcome.of("best_all"):
        for line, row in zip(lines, outcome.rows, strict=True):
            if row.kind in ENSEMBLES:
                over = over_best(row, best).items()
                line |= {f"all.gain.{BEST_SINGLE}.{key}": value for key, value in over}
    rows.write_rows(lines, path)


def show(screen: Console, link: str, config: Config, outcome: Outcome) -> None:
    """Tables of scores and gains, published figures of the model, and where to look further."""
    kind = study_config(config).kind
    benchmarks = _benchmarks(kind, outcome)
    heads = ["", "trust", *(_head(kind, name) for name in benchmarks)]
    blocks = [block for kinds in BLOCKS if (block := outcome.of(*kinds))]
    terminal.show_grid(
        screen, "All data: score (refusal rate)", [*heads, "fair\nacc.", "weights,\n% of dense"],
        [[_all_cells(row, benchmarks) for row in block if row.all] for block in blocks],
    )  # fmt: skip
    terminal.show_grid(
        screen, "Search half | held-out half", [*heads, "GB", "ms"],
        [[_half_cells(row, benchmarks) for row in block if row.search] for block in blocks],
    )  # fmt: skip
    if gained := _gain_blocks(outcome, ("trust", *benchmarks)):
        title = "Gains in points, with simultaneous 95 % intervals on the held-out half"
        terminal.show_grid(screen, title, heads, gained)
    models = [row.name for row in outcome.of("dense", "baseline")]
    others = outcome.of(*ENSEMBLES) or outcome.of("single")
    models += [row.name for row in others][:IN_SCENARIOS]
    terminal.show_scenarios(screen, "all data", outcome.scenarios, models)
    if printed := published(config.model):
        terminal.show_grid(
            screen, f"Published for {config.model.name}: score (refusal rate)",
            ["", "rules", "runs", *heads[2:]],
            [[_published_cells(row, benchmarks) for row in printed]],
        )  # fmt: skip
    for note in notes(config, outcome):
        screen.print(note, style="dim")
    screen.print("\nmake ui, then compare:", soft_wrap=True)
    screen.print(link, soft_wrap=True, style="bold")


def panels(kind: str, outcome: Outcome) -> list[BarPanel]:
    """The chart: scores on all data; below it refusals, or scores on the held-out half."""
    benchmarks = _benchmarks(kind, outcome)

    def bars(shown: Iterable[Row], part: str, end: str = "") -> dict[str, dict[str, float]]:
        return {
            row.name: {
                _head(kind, name): row.scores[part][name + end]
                for name in benchmarks
                if name + end in row.scores[part]
            }
            for row in shown
            if part in row.scores
        }

    if kind == "benchmark":
        refused = bars(outcome.rows, "all", ".refusal_rate")
        most = max((rate for rates in refused.values() for rate in rates.values()), default=0)
        return [
            BarPanel("score, all data (%)", bars(outcome.rows, "all")),
            BarPanel("refusal rate, all data (%)", refused, top=max(10, min(100, 1.2 * most))),
        ]
    compared = [row for row in outcome.rows if row.kind != "single"]
    return [
        BarPanel("score, all data (%)", bars(compared, "all")),
        BarPanel("score, held-out half (%)", bars(compared, "holdout")),
    ]


def notes(config: Config, outcome: Outcome) -> list[str]:
    """How to read the tables."""
    lines = ["all scores in percent; a choice made on the held-out half, as shown here, uses it up"]
    ensembles = outcome.of(*ENSEMBLES)
    if ensembles:
        lines += [
            "best single: the best variant per score; chosen on all data, it is scored on the same "
            "data, as published",
            "fairness is not among the paper's ensemble results; trust includes it",
        ]
        lines += [
            f"{row.name} stores {row.weights_percent:.0f} % of the dense model's bytes"
            for row in outcome.of("precisions")
        ]
    lines += [_verdict(row) for row in ensembles if row.gains]
    if any(row.unskilled for row in outcome.rows):
        lines.append("* in some benchmark no better than one constant answer")
    if published(config.model):
        differences = _other_than_published(config, outcome)
        lines.append(
            "published: Decoding Compressed Trust (rules ct, fairness refusals to the nearest 10) "
            "and DecodingTrust (dt)"
            + (f"; not comparable with this run: {', '.join(differences)}" if differences else "")
        )
    return lines + outcome.remarks


def published(model: ModelConfig) -> list[dict[str, str]]:
    """Rows of `published.csv` about the model, found by its hub repository or its name."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        printed = list(csv.DictReader(file))
    return [row for row in printed if model.repo == row["repo"] or model.name == row["name"]]


def _other_than_published(config: Config, outcome: Outcome) -> list[str]:
    """In what a run differs from the published ones of its model."""
    benchmarks = config.benchmarks
    gaps = ("AdvGLUE++", "left out by")  # of the notes about data
    missing = any(gap in remark for remark in outcome.remarks for gap in gaps)
    return [
        *([f"benchmarks={benchmarks.name}"] if benchmarks.name != "paper" else []),
        *([f"benchmarks.rules={benchmarks.rules}"] if benchmarks.rules == "clean" else []),
        *([f"benchmarks.limit={benchmarks.limit}"] if benchmarks.limit else []),
        *(["scenarios are missing"] if missing else []),
    ]


def _verdict(row: Row) -> str:
    """Over which model an ensemble's gain is evident, and in what."""
    by_baseline = []
    for baseline, by_key in row.gains.items():
        better = [terminal.head(key) for key, gain in by_key.items() if gain.is_evident]
        evidence = ", ".join(better) or "no evidence of a gain"
        by_baseline.append(f"{_over(baseline)}: {evidence}")
    return f"{row.name} over " + "; ".join(by_baseline)


def _benchmarks(kind: str, outcome: Outcome) -> list[str]:
    """The benchmarks in the order of columns; fairness last where the paper does not have it."""
    names = shown_benchmarks(outcome.of("dense")[0].search)
    return sorted(names, key=lambda name: kind == "paper" and name == "fairness")


def _head(kind: str, benchmark: str) -> str:
    outside = kind == "paper" and benchmark == "fairness"
    return terminal.head(benchmark) + ("\nnot in\nthe paper" if outside else "")


def _all_cells(row: Row, benchmarks: Sequence[str]) -> list[str]:
    scores, weights = row.scores["all"], row.weights_percent
    return [
        starred(row),
        number(scores, "trust"),
        *(_with_refusals(scores, name) for name in benchmarks),
        number(scores, "fairness.accuracy"),
        "" if weights is None else f"{weights:.0f}",
    ]


def _half_cells(row: Row, benchmarks: Sequence[str]) -> list[str]:
    search = row.search
    both = [
        f"{number(search, key)} | {number(row.holdout, key)}" if key in search else ""
        for key in ("trust", *benchmarks)
    ]
    cost = [f"{search[key]:{form}}" if key in search else ""
            for key, form in (("memory_gb", ".3f"), ("latency_ms", ".0f"))]  # fmt: skip
    return [row.name, *both, *cost]


def _gain_blocks(outcome: Outcome, keys: Sequence[str]) -> list[list[list[str]]]:
    """A block per ensemble: over each dense model, over the best single, as published."""
    blocks = []
    for row in outcome.of(*ENSEMBLES):
        block = [[row.name, *("" for _ in keys)]]
        block += [
            [f"  over {_over(baseline)}", *(gain_cell(by_key.get(key)) for key in keys)]
            for baseline, by_key in row.gains.items()
        ]
        for best in outcome.of("best_all"):
            over = over_best(row, best)
            cells = [f"{over[key]:+.1f}" if key in over else "" for key in keys]
            block.append(["  as published: best single, all data", *cells])
        blocks.append(block)
    return blocks


def _over(baseline: str) -> str:
    return "best single on search" if baseline == BEST_SINGLE else baseline


def _with_refusals(scores: Scores, key: str) -> str:
    rate = f"{key}.refusal_rate"
    return number(scores, key) + (f" ({number(scores, rate)})" if rate in scores else "")


def _published_cells(row: dict[str, str], benchmarks: Sequence[str]) -> list[str]:
    cells = []
    for name in benchmarks:
        spread = f" \u00b1{row[f'{name}.sd']}" if row.get(f"{name}.sd") else ""
        refused = f" ({row[f'{name}.refusal_rate']})" if row.get(f"{name}.refusal_rate") else ""
        cells.append(row.get(name, "") + spread + refused)
    return [row["variant"], row["rules"], row["runs"], *cells]
