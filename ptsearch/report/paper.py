"""The experiments of arXiv 2511.22483: single models side by side (section III), and ensembles of
precisions and of seeds against them (section IV).

A study reports on them as on a front; here is what they have besides: which ensembles there are,
the scores on all data, the published figures.
"""

import csv
import math
from collections.abc import Iterable, Sequence

from rich.console import Console

from ptsearch.config import CONF, Config, ModelConfig
from ptsearch.report import terminal
from ptsearch.report.rows import Row, shown_benchmarks
from ptsearch.report.terminal import gain_cell, number, starred
from ptsearch.scoring.scores import Scores, nan_last

PUBLISHED = CONF / "published/published.csv"


def over_best(row: Row, rows: Iterable[Row]) -> Scores:
    """Differences on all data to the best single variant of each score: as published, chosen on
    the samples that it is compared on, without intervals.
    """
    alone = [each.all for each in rows if each.all and is_single(each)]
    return {
        key: value - max(nan_last(scores[key]) for scores in alone)
        for key, value in (row.all or {}).items()
        if alone and key in ("trust", *shown_benchmarks(alone[0]))
    }


def is_single(row: Row) -> bool:
    return len(row.members) == 1 and row.kind not in ("dense", "baseline")


def show(screen: Console, model: ModelConfig, rows: Sequence[Row]) -> None:
    """Scores on all data, the ensembles' gains score by score, the published figures."""
    benchmarks = shown_benchmarks(rows[0].search)
    keys = ("trust", *benchmarks)
    heads = ["", *map(terminal.head, keys)]
    scored = [_all_cells(row, benchmarks) for row in rows if row.all]
    terminal.show_grid(screen, "All data: score (refusal rate)", [*heads, "fair\nacc."], [scored])
    if several := [row for row in rows if len(row.members) > 1]:
        title = "Gains in points; intervals are simultaneous, 95 %, on the held-out half"
        terminal.show_grid(screen, title, heads, [_gains(row, rows, keys) for row in several])
    if printed := published(model):
        terminal.show_grid(
            screen, f"Published for {model.name}: score (refusal rate)",
            ["", "rules", "runs", *heads[2:]],
            [[_published_cells(row, benchmarks) for row in printed]],
        )  # fmt: skip


def notes(config: Config, rows: Sequence[Row], remarks: Sequence[str]) -> list[str]:
    """How to read these tables."""
    several = [row for row in rows if len(row.members) > 1]
    lines = [_verdict(row) for row in several if row.gains]
    if several:
        lines += [
            "as published: against the best single variant of each score, chosen on the same data",
            "fairness is not among the paper's ensemble results; trust includes it",
        ]
    unscored = dict.fromkeys(
        key
        for row in rows
        for key, value in (row.all or {}).items()
        if math.isnan(value) and "/" in key
    )
    if unscored:
        lines.append(
            f"nan: under rules={config.benchmarks.rules} some model has no score where it "
            f"answered none, or none of a group: {', '.join(unscored)}"
        )
    if published(config.model):
        differences = ", ".join(_other_than_published(config, remarks))
        lines.append(
            "published: Decoding Compressed Trust (rules ct, fairness refusals to the nearest 10) "
            "and DecodingTrust (dt)"
            + (f"; not comparable with this run: {differences}" if differences else "")
        )
    return lines


def published(model: ModelConfig) -> list[dict[str, str]]:
    """Rows of `published.csv` about the model, found by its hub repository or its name."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        printed = list(csv.DictReader(file))
    return [row for row in printed if model.repo == row["repo"] or model.name == row["name"]]


def _other_than_published(config: Config, remarks: Sequence[str]) -> list[str]:
    """In what a run differs from the published ones of its model."""
    benchmarks = config.benchmarks
    gaps = ("AdvGLUE++", "left out by")  # of the notes about data
    missing = any(gap in remark for remark in remarks for gap in gaps)
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
        by_baseline.append(f"{baseline}: {', '.join(better) or 'no evidence of a gain'}")
    return f"{row.name} over " + "; ".join(by_baseline)


def _all_cells(row: Row, benchmarks: Sequence[str]) -> list[str]:
    return [
        starred(row),
        number(row.all, "trust"),
        *(_with_refusals(row.all or {}, name) for name in benchmarks),
        number(row.all, "fairness.accuracy"),
    ]


def _gains(row: Row, rows: Sequence[Row], keys: Sequence[str]) -> list[list[str]]:
    """Over each dense model and the best single variant, then as published."""
    over = over_best(row, rows)
    return [
        [row.name, *("" for _ in keys)],
        *(
            [f"  over {baseline}", *(gain_cell(by_key.get(key)) for key in keys)]
            for baseline, by_key in row.gains.items()
        ),
        ["  as published", *(f"{over[key]:+.1f}" if key in over else "" for key in keys)],
    ]


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
