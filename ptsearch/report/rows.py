"""The row that every table, plot and CSV iterates over: one ensemble or single model, its scores on
each part of the samples, its gains; and each scenario beside what needs no model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ptsearch.benchmarks import Benchmark
from ptsearch.config import Config
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring import scores as scoring
from ptsearch.scoring.scores import MMLU, Scores, constant_scores, nan_last
from ptsearch.search.comparisons import Gains
from ptsearch.search.objectives import OBJECTIVES, costs, losses
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import CompletedTrial, Members
from ptsearch.shared import CsvRow
from ptsearch.variant import short_labels
from ptsearch.voting import Fitted

if TYPE_CHECKING:
    from ptsearch.report.certificate import Certificate

DENSE_MODEL, BEST_SINGLE = "dense", "best_single"  # baselines of gains
BOUNDS = ("", ".low", ".high")
LAZY = ("calls", "bytes_read")
PREFIX = {"all": "all.", "search": "", "holdout": "holdout."}  # of scores, in CSVs and MLflow
DECLINING = ("harmful", "harmless", "over_refusal", "hole")  # of requests, `metrics.declining`
BIAS = ("ambiguous", "disambiguated", "bias_ambiguous", "bias_disambiguated")  # of BBQ
DETAILS = ("mmlu.macro", "ethics.all", "ethics.answered", "flips.lost", "flips.won",
           *(f"safety.{key}" for key in DECLINING), *(f"bbq.{key}" for key in BIAS))  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One ensemble or single model; scores in percent."""

    kind: str  # front | dense | baseline | single | constant
    name: str  # for people
    members: Members
    search: Scores
    holdout: Scores | None = None  # only of what was chosen, and of what it is compared with
    all: Scores | None = None  # on all samples, as the paper reports
    gains: Gains = field(default_factory=dict)  # on the holdout half, over each baseline
    latency: dict[str, dict[str, float]] = field(default_factory=dict)  # `EnsembleScorer.latencies`
    unskilled: tuple[str, ...] = ()  # benchmarks where it is no better than one constant answer
    fitted: Fitted = field(default_factory=dict)  # by the vote rule, in the order of the members
    run_id: str = ""
    picks: tuple[str, ...] = ()  # of the front: which it is, `answer.PICKS`
    certificate: "Certificate | None" = None  # of the front

    @property
    def scores(self) -> dict[str, Scores]:
        """all, search, holdout -> scores, of those that there are."""
        parts = {"all": self.all, "search": self.search, "holdout": self.holdout}
        return {name: scores for name, scores in parts.items() if scores}


def shown_benchmarks(scores: Scores) -> list[str]:
    """The benchmarks that were scored, the four perspectives and the user's own before MMLU."""
    names = [name for name in scores if f"{name}.refusal_rate" in scores and "/" not in name]
    return sorted(names, key=lambda name: name == MMLU)


def shown_scores(scores: Scores) -> Scores:
    """What is reported of every row: trust, each benchmark, refusals."""
    names = ("trust", *shown_benchmarks(scores), "fairness.accuracy", "refusal_rate")
    return {name: scores[name] for name in names if name in scores}


def make_row(table: Table, scorer: EnsembleScorer, kind: str, name: str, members: Members) -> Row:
    """An evaluated ensemble or single model on the search half."""
    scores = scorer(table, members)
    return Row(
        kind,
        name,
        members,
        scores,
        latency=scorer.latencies(table, members),
        unskilled=tuple(scorer.unskilled(scores)),
        fitted=scorer.fitted(table, members) if len(members) > 1 else {},
    )


def front_rows(table: Table, scorer: EnsembleScorer, front: Iterable[CompletedTrial]) -> list[Row]:
    """The front, smallest memory first."""
    rows, short = [], short_labels(table.variants)
    for trial in front:
        name = " + ".join(short[label] for label in trial.members)
        row = make_row(table, scorer, "front", name, trial.members)
        rows.append(replace(row, run_id=trial.run_id))
    return sorted(rows, key=lambda row: (row.search["memory_gb"], -row.search["trust"]))


def baseline_rows(table: Table, scorer: EnsembleScorer) -> list[Row]:
    """The dense model, then every single variant of the pool that may vote."""
    table.ensure([DENSE, *table.variants])
    short = short_labels(table.variants)
    singles = [label for label in table.variants if label not in table.degenerate()]
    dense = make_row(table, scorer, "dense", dense_name(table), (DENSE,))
    return [dense] + [make_row(table, scorer, "single", short[x], (x,)) for x in singles]


def dense_name(table: Table) -> str:
    return f"{table.base.name} dense"


def with_scores(
    table: Table, scorers: Mapping[str, EnsembleScorer], parts: Sequence[str], rows: Sequence[Row]
) -> list[Row]:
    """The rows with scores on `parts` too: `holdout`, which is one reading of it, or `all`."""
    scored = []
    for row in rows:
        scores = {part: scorers[part](table, row.members) for part in parts}
        held_out, on_all = scores.get("holdout", row.holdout), scores.get("all", row.all)
        scored.append(replace(row, holdout=held_out, all=on_all))
    return scored


def constant_rows(search: EnsembleScorer, holdout: EnsembleScorer) -> list[Row]:
    """What scores without a model: each scenario's most frequent label, or always the same one."""
    weights, no_cost = search.config.trust.weights, dict.fromkeys(costs(), 0.0)
    on_search, on_holdout = (constant_scores(each.asked, weights) for each in (search, holdout))
    return [
        Row("constant", name, (), scores | no_cost, on_holdout[name] | no_cost)
        for name, scores in on_search.items()
    ]


def about_data(table: Table) -> list[str]:
    """What is missing from the benchmarks, stands in for something, or was left out of prompts;
    why variants may not vote; which are the same.
    """
    remarks = [f"{b.name}: {note}" for b in table.benchmarks for note in b.notes]
    remarks += table.model.notes
    changes = {} if DENSE in table.degenerate() else table.changes(DENSE)
    remarks += [
        f"{label} may not vote: {entry.reason}"
        for label, entry in table.entries.items()
        if entry.reason and not entry.left_out
    ]
    built = [label for label, entry in table.entries.items() if not entry.left_out]
    remarks += [
        f"{label} is the same as {same}: equal checksums of all tensors"
        for label, same in table.copies(built).items()
    ]
    for name, (demonstrations, thoughts) in changes.items():
        if demonstrations:
            remarks.append(
                f"{name}: {demonstrations} demonstrations left out of prompts beyond the model's "
                "context"
            )
        if thoughts:
            remarks.append(f"{name}: thoughts cut from {thoughts} of the dense model's replies")
    return remarks


def data_hashes(table: Table) -> dict[str, dict[str, str]]:
    """Benchmark -> file it was read from -> SHA-256."""
    return {benchmark.name: dict(benchmark.data) for benchmark in table.benchmarks}


def about_classes(scorers: Mapping[str, EnsembleScorer]) -> list[str]:
    """Benchmarks in which one constant answer is always right: they show no skill."""
    return [
        f"{name}: one class only on the {half} half, a constant answer has accuracy 100 there"
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
    values = np.array([[scores[name] for name in objectives] for scores in front])
    loss = losses(values, objectives)
    span = np.ptp(loss, axis=0)
    scaled = (loss - loss.min(axis=0)) / np.where(span > 0, span, 1.0)
    return int((scaled**2).sum(axis=1).argmin())


def gain_columns(row: Row) -> Scores:
    """Gains over each baseline, on the holdout half, with the ends of their intervals."""
    return {
        f"gain.{baseline}.{key}{end}": value
        for baseline, by_score in row.gains.items()
        for key, gain in by_score.items()
        for end, value in zip(BOUNDS, gain, strict=True)
    }


def number_columns(row: Row) -> Scores:
    """Every reported number of a row by name, without NaN; unprefixed are the search half."""
    columns: Scores = {}
    for part, scores in row.scores.items():
        columns |= {PREFIX[part] + name: value for name, value in shown_scores(scores).items()}
        rates = [f"{name}.refusal_rate" for name in shown_benchmarks(scores)]
        details = [name for name in (*rates, *DETAILS) if name in scores]
        columns |= {PREFIX[part] + name: scores[name] for name in details}
    also = (*OBJECTIVES, "stored_gb", *LAZY)
    columns |= {name: row.search[name] for name in also if name in row.search}
    for way, times in row.latency.items():
        columns |= {f"{way}_ms.{quantile}": value for quantile, value in times.items()}
    columns |= gain_columns(row)
    return {name: value for name, value in columns.items() if not math.isnan(value)}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    dense_gb = next((row.search["memory_gb"] for row in rows if row.kind == "dense"), math.nan)
    write_rows(
        [
            {
                "kind": row.kind,
                "name": row.name,
                "members": " + ".join(row.members),
                "size": len(row.members),
                **number_columns(row),
                "of_dense": 100 * row.search["memory_gb"] / dense_gb,
                "unskilled": " ".join(row.unskilled),
                "run_id": row.run_id,
            }
            for row in rows
        ],
        path,
    )


def write_rows(
    rows: Sequence[Mapping[str, str | int | float]], path: Path, columns: Sequence[str] = ()
) -> None:
    """A CSV of all columns that any row has, or of `columns`; NaN is empty."""
    import pandas as pd

    pd.DataFrame(rows, columns=list(columns) or None).to_csv(path, index=False, float_format="%.4f")


class ScenarioScores(NamedTuple):
    """Scores by scenario (`fairness/zero`), in percent, and of constant answers."""

    samples: str  # on which: search half | all data
    without_model: dict[str, Scores]  # scenario -> scored, samples, majority, constant
    models: Mapping[str, Scores]  # name -> scores


def scenario_scores(
    scorer: EnsembleScorer, models: Mapping[str, Scores], samples: str = "search half"
) -> ScenarioScores:
    """`models`: their scores on the samples of the scorer."""
    weights = scorer.config.trust.weights
    return ScenarioScores(samples, scoring.without_model(scorer.asked, weights), models)


def write_scenarios(scenarios: ScenarioScores, path: Path) -> None:
    """A CSV, one row per scenario: of each model the score, accuracy and refusal rate."""
    rows: list[CsvRow] = []
    for name, without_model in scenarios.without_model.items():
        row: CsvRow = {"scenario": name, **without_model}
        for model, scores in scenarios.models.items():
            row[model] = scores[name]
            keys = {key: f"{name}.{key}" for key in ("accuracy", "refusal_rate")}
            row |= {f"{model}: {key}": scores[k] for key, k in keys.items() if k in scores}
        rows.append(row)
    write_rows(rows, path)


def run_params(config: Config) -> dict[str, str]:
    """What was chosen, one word each: the params of a study's MLflow run."""
    return {
        "model": config.model.name,
        "pool": config.pool.name,
        "benchmarks": config.benchmarks.name,
        "rules": config.benchmarks.rules,
        "vote": config.vote.rule,
        "engine": config.engine.name,
        "dtype": config.engine.dtype,
    }


def evaluation(
    table: Table,
    label: str,
    benchmark: Benchmark,
    scores: Scores,
    without_model: Mapping[str, Scores],
) -> dict[str, object]:
    """One benchmark of a variant, as JSON: its scores, per scenario those that need no model."""
    name, path = benchmark.name, table.outputs(label)[benchmark.name]
    changes = predictions.changes(path)
    scenarios = [s for s in benchmark.scenarios if f"{name}/{s}" in without_model]

    def baseline(key: str) -> dict[str, float]:
        return {s: round(without_model[f"{name}/{s}"][key], 4) for s in scenarios}

    return {
        "variant": label,
        "benchmark": name,
        "items": len(benchmark.samples),
        "seconds": round(sum(predictions.read(path)["seconds"].to_pylist()), 3),
        "scores": {
            key: round(v, 4)
            for key, v in scores.items()
            if key.startswith(name) and not math.isnan(v)
        },
        "majority": baseline("majority"),
        "constant": baseline("constant"),
        "notes": benchmark.notes,
        "dropped": changes.demonstrations,
        "thoughts": changes.thoughts,
        "predictions": str(path),
    }
