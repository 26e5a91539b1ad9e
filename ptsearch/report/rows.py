"""What a study found, as rows: the front, the dense model, the single variants, other baselines."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ptsearch.benchmarks import PERSPECTIVES
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring.scores import MMLU, Scores, constant_scores, nan_last
from ptsearch.search.comparisons import Gains
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import CompletedTrial, Members
from ptsearch.variant import short_labels
from ptsearch.voting import Fitted

DENSE_MODEL, BEST_SINGLE = "dense", "best_single"  # what gains are over
BOUNDS = ("", ".low", ".high")
SHOWN = ("trust", *PERSPECTIVES, MMLU, "fairness.accuracy", "refusal_rate")
COST = ("memory_gb", "latency_ms")
LAZY = ("calls", "bytes_read")
WAYS = tuple(f"{way}_ms.p{q}" for way in ("sequential", "parallel", "lazy") for q in (50, 95))
CSV_COLUMNS = (
    "kind", "members", "size", *SHOWN, *COST, *LAZY, *WAYS, "of_dense",
    *(f"holdout.{name}" for name in SHOWN),
    *(f"gain.{than}.trust{end}" for than in (DENSE_MODEL, BEST_SINGLE) for end in BOUNDS),
    "unskilled", "run_id",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One ensemble (or a single model) with its scores on the search half, percent."""

    kind: str  # front | dense | single | baseline | constant
    name: str  # for people
    members: Members
    search: Scores
    holdout: Scores | None = None  # only of what was chosen, and of what it is compared with
    gains: Gains = field(default_factory=dict)  # on the holdout half, over each baseline
    latency: dict[str, dict[str, float]] = field(default_factory=dict)  # `EnsembleScorer.latencies`
    unskilled: tuple[str, ...] = ()  # benchmarks where it is no better than one constant answer
    fitted: Fitted = field(default_factory=dict)  # by the vote rule, in the order of the members
    run_id: str = ""
    certificate: dict[str, Any] = field(default_factory=dict)  # of the front


def front_rows(table: Table, scorer: EnsembleScorer, front: Iterable[CompletedTrial]) -> list[Row]:
    """The front, smallest memory first."""
    rows, short = [], short_labels(table.variants)
    for found in front:
        scores = scorer(table, found.members)
        skill = tuple(scorer.unskilled(scores))
        name = " + ".join(short[label] for label in found.members)
        fitted = scorer.fitted(table, found.members) if len(found.members) > 1 else {}
        rows.append(
            Row(
                "front",
                name,
                found.members,
                scores,
                latency=scorer.latencies(table, found.members),
                unskilled=skill,
                fitted=fitted,
                run_id=found.run_id,
            )
        )
    return sorted(rows, key=lambda row: (row.search["memory_gb"], -row.search["trust"]))


def baseline_rows(table: Table, scorer: EnsembleScorer) -> list[Row]:
    """The dense model, then every single variant of the pool that may vote."""
    table.ensure([DENSE, *table.variants])
    singles = [label for label in table.variants if label not in table.degenerate()]
    rows = []
    for label in [DENSE, *singles]:
        scores = scorer(table, (label,))
        kind = "dense" if label == DENSE else "single"
        name = f"{table.base.name} dense" if label == DENSE else label
        times = scorer.latencies(table, (label,))
        skill = tuple(scorer.unskilled(scores))
        rows.append(Row(kind, name, (label,), scores, latency=times, unskilled=skill))
    return rows


def with_holdout(table: Table, scorer: EnsembleScorer, rows: Iterable[Row]) -> list[Row]:
    """The rows with their holdout scores: one reading of the holdout half."""
    return [replace(row, holdout=scorer(table, row.members)) for row in rows]


def constant_rows(search: EnsembleScorer, holdout: EnsembleScorer) -> list[Row]:
    """What scores without a model: each scenario's most frequent label, or always the same one."""
    weights, free = search.config.trust.weights, dict.fromkeys(COST, 0.0)
    found, held = (constant_scores(scorer.asked, weights) for scorer in (search, holdout))
    return [Row("constant", name, (), found[name] | free, held[name] | free) for name in found]


def about_data(table: Table) -> list[str]:
    """What is missing from the benchmarks, stands in for something, or was left out of prompts;
    why variants may not vote.
    """
    found = [
        f"{benchmark.name}: {note}" for benchmark in table.benchmarks for note in benchmark.notes
    ]
    dropped = {} if DENSE in table.degenerate() else table.dropped(DENSE)
    found += [
        f"{label} may not vote: {table.entries[label].meta['reason']}"
        for label in table.degenerate()
        if table.entries[label].meta.get("reason")
    ]
    return found + [
        f"{name}: {count} demonstrations left out of prompts beyond the model's context"
        for name, count in dropped.items()
        if count
    ]


def data_hashes(table: Table) -> dict[str, dict[str, str]]:
    """Benchmark -> file it was read from -> SHA-256."""
    return {benchmark.name: dict(benchmark.data) for benchmark in table.benchmarks}


def about_classes(scorers: Mapping[str, EnsembleScorer]) -> list[str]:
    """Benchmarks in which one constant answer is always right: they tell no skill."""
    return [
        f"{name}: one class only on the {half} half, where always giving it has accuracy 100"
        for half, scorer in scorers.items()
        for name, rows in scorer.asked.scored().items()
        if np.unique(scorer.asked.gold[rows]).size == 1
    ]


def best_single(rows: Sequence[Row]) -> Row | None:
    """The single variant with the highest trust on the search half."""
    singles = [row for row in rows if row.kind == "single"]
    return max(singles, key=lambda row: nan_last(row.search["trust"]), default=None)


def knee(front: Sequence[Scores], objectives: Sequence[str]) -> int:
    """Which point is closest to the ideal one, each objective scaled to the front's own range."""
    loss = [0.0] * len(front)
    for name in objectives:
        sign = -1.0 if name in COST else 1.0
        values = [sign * scores[name] for scores in front]
        span = max(values) - min(values)
        if span:
            loss = [
                sum_ + ((max(values) - v) / span) ** 2 for sum_, v in zip(loss, values, strict=True)
            ]
    return loss.index(min(loss))


def gain_columns(row: Row) -> Scores:
    """Gains in trust over the baselines, on the holdout half, with the ends of their intervals."""
    return {
        f"gain.{baseline}.trust{end}": value
        for baseline, found in row.gains.items()
        for end, value in zip(BOUNDS, found["trust"], strict=True)
    }


def write_rows(rows: Sequence[Mapping[str, str | int | float]], path: Path) -> None:
    """A CSV of all columns that any row has; NaN is empty."""
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(names), restval="")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    dense_gb = next((row.search["memory_gb"] for row in rows if row.kind == "dense"), math.nan)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            scores = {name: row.search[name] for name in (*SHOWN, *COST)}
            scores |= {name: row.search[name] for name in LAZY if name in row.search}
            for way, times in row.latency.items():
                scores |= {f"{way}_ms.{p}": value for p, value in times.items()}
            scores["of_dense"] = 100 * row.search["memory_gb"] / dense_gb
            held = {f"holdout.{name}": row.holdout[name] for name in SHOWN} if row.holdout else {}
            writer.writerow(
                {
                    "kind": row.kind,
                    "members": " + ".join(row.members)
                    if row.members and row.kind != "baseline"
                    else row.name,
                    "size": len(row.members),
                    "unskilled": " ".join(row.unskilled),
                    "run_id": row.run_id,
                    **{
                        name: f"{value:.4f}"
                        for name, value in (scores | held | gain_columns(row)).items()
                    },
                }
            )
