"""What MLflow shows of a study: names, metrics, tags and descriptions of its runs.

A metric's name ends in its unit (`_pct`, `_points` between two percentages, `_gb`, `_ms`), then in
the samples that it is of, if these are not the search half.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import tracking
from ptsearch.report.answer import PICKS
from ptsearch.report.page import PAGE
from ptsearch.report.rows import (
    BEST_SINGLE,
    DENSE_MODEL,
    Row,
    best_single,
    dense_name,
    shown_benchmarks,
)
from ptsearch.report.study import Result
from ptsearch.report.tracking import RunRecord, Tracker
from ptsearch.scoring.scores import Scores
from ptsearch.search.objectives import OBJECTIVES
from ptsearch.search.study import CompletedTrial, Members
from ptsearch.variant import short_labels

MOST = 25  # metrics of a run, the first ones
UNREPORTED = {"reported": "false", "pareto": "false", "picks": ""}
UNITS = (
    "Metrics: `_pct` is percent on the search half of the samples, which made every choice; "
    "`_pct_held_out` on the half that made none; `_points` a difference of percentages on the "
    "held-out half, `_low` and `_high` the ends of its simultaneous 95 % interval."
)


def of_trial(table: Table, trial: CompletedTrial, scores: Scores, feasible: bool) -> RunRecord:
    """The nested run of a trial."""
    tags = {
        "trial": str(trial.number),
        "proposed_by": "sampler" if trial.by_sampler else "enumeration",
        "feasible": str(feasible).lower(),
    }
    return of_members(table, trial.members, scores, tags)


def of_members(
    table: Table, members: Members, scores: Scores, tags: Mapping[str, str]
) -> RunRecord:
    """The nested run of an ensemble or of a single model."""
    variants = [table.variant(label) for label in members]
    kind = "ensemble" if len(members) > 1 else "dense" if members == (DENSE,) else "single"
    about = {"kind": kind, tracking.NOTE: UNITS}
    return RunRecord(
        name=name(table, members),
        params={
            "members": joined(members),
            "size": len(members),
            "methods": " ".join(sorted({variant.method for variant in variants})),
            "bits": " ".join(str(b) for b in sorted(variant.bits for variant in variants)),
        },
        metrics=_known(_percent(scores, "pct") | _others(scores)),
        tags={**UNREPORTED, **about, **tags},
    )


def name(table: Table, members: Members) -> str:
    """For people."""
    short = short_labels(table.variants) | {DENSE: dense_name(table)}
    return " + ".join(short[label] for label in members)


def joined(members: Members) -> str:
    return " + ".join(members)


def metrics(row: Row, dense_gb: float) -> Scores:
    """At most `MOST` metrics of a row of the report."""
    columns = _percent(row.search, "pct") | _others(row.search)
    columns["memory_pct_of_dense"] = 100 * row.search["memory_gb"] / dense_gb
    for baseline in (DENSE_MODEL, BEST_SINGLE):
        if gain := row.gains.get(baseline, {}).get("trust"):
            key = f"trust_vs_{baseline}_points"
            columns |= {key: gain.estimate, f"{key}_low": gain.low, f"{key}_high": gain.high}
    columns |= _percent(row.holdout or {}, "pct_held_out") | _percent(row.all or {}, "pct_all_data")
    return _known(columns)


def _percent(scores: Scores, ending: str) -> Scores:
    keys = {name: name for name in ("trust", *reversed(shown_benchmarks(scores)))}
    keys["refused"] = "refusal_rate"
    return {f"{name}_{ending}": scores[key] for name, key in keys.items() if key in scores}


def _others(scores: Scores) -> Scores:
    """Costs, and further objectives, whose names end with their unit."""
    taken = {"trust", *shown_benchmarks(scores)}
    units = {"%": "_pct", "nats": "_nats"}
    return {
        name + units.get(each.unit, ""): scores[name]
        for name, each in OBJECTIVES.items()
        if name in scores and name not in taken
    }


def _known(columns: Scores) -> Scores:
    """The first `MOST` that are numbers, with as many digits as a person reads."""
    known = {
        name: round(value, 4 if name.endswith("_gb") else 2)
        for name, value in columns.items()
        if not math.isnan(value)
    }
    return dict(islice(known.items(), MOST))


def picks(result: Result) -> dict[str, Row]:
    """The rows to look at first: what is compared with, then the picks of the front."""
    best = best_single(result.compared)
    singles = {BEST_SINGLE: best} if best else {}
    return {DENSE_MODEL: result.compared[0], **singles, **result.answer.picks}


def of_picks(rows: Mapping[str, Row]) -> Scores:
    """The parent run's metrics: trust and costs of the picks."""
    return {
        f"{pick}/{name}": value
        for pick, row in rows.items()
        for name, value in metrics(row, row.search["memory_gb"]).items()
        if name in ("trust_pct", "trust_pct_held_out", *_others(row.search))
    }


def tags(row: Row, run_id: str, study: str) -> dict[str, str]:
    """Of a run of the report, its description included."""
    lines = [f"**{row.name}**" + "".join(f", {pick}: {PICKS[pick]}" for pick in row.picks)]
    if row.certificate:
        lines += [
            f"On held-out samples: {row.certificate.verdict} (`certificate.json` among the "
            "artifacts).",
            f"`python -m ptsearch +export=ensemble export.study={study} export.pick={run_id[:8]} "
            "export.out=chosen`",
        ]
    if row.unskilled:
        lines.append(f"No better than one constant answer in: {', '.join(row.unskilled)}.")
    return {
        "reported": "true",
        "pareto": str(row.kind == "front").lower(),
        "picks": ", ".join(row.picks),
        tracking.NOTE: "\n\n".join([*lines, UNITS]),
    }


def parent_note(
    tracker: Tracker, table: Table, runs: Mapping[str, str], rows: Mapping[str, Row],
    answer: Sequence[str],
) -> str:  # fmt: skip
    """The study's description: its answer, where to look, its picks with their certificates."""

    def link(text: str, path: str) -> str:
        query = f"{'&' if '?' in path else '?'}{tracking.RUNS}"
        return f"[{text}](#/experiments/{tracker.experiment_id}/{path}{query})"

    files = f"runs/{tracker.run_id}/artifacts"
    places = (
        f"**{link(PAGE, f'{files}/{PAGE}')}**: the result, to be chosen from. "
        f"{link('All models side by side', tracking.table_of_runs(tracker))}, "
        f"{link('front.csv', f'{files}/front.csv')}: their scores, gains and costs."
    )
    lines = ["| | model | trust | held out | GB | claims |", "|---|---|---|---|---|---|"]
    for pick, row in rows.items():
        run = f"runs/{runs[joined(row.members)]}"
        cells = [
            pick, link(name(table, row.members), run), f"{row.search['trust']:.1f} %",
            f"{row.holdout['trust']:.1f} %" if row.holdout else "",
            f"{row.search['memory_gb']:.3f}",
            link("certificate", f"{run}/artifacts/certificate.json") if row.certificate else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    meaning = "; ".join(f"`{pick}`: {PICKS[pick]}" for pick in rows if pick in PICKS)
    return "\n\n".join([places, *answer, "\n".join(lines), f"{meaning}.", UNITS])


def table_columns(rows: Sequence[Row], dense_gb: float) -> list[str]:
    """Metrics of the table of runs, in its order."""
    front = metrics(rows[0], dense_gb)
    first = ("trust_pct", "trust_pct_held_out", "trust_vs_dense_points",
             "trust_vs_best_single_points", *_others(rows[0].search),
             "memory_pct_of_dense", "mmlu_pct", "mmlu_pct_held_out")  # fmt: skip
    rest = [name for name in front if not name.endswith(("_low", "_high", "_held_out"))]
    return [name for name in dict.fromkeys((*first, *rest)) if name in front]
