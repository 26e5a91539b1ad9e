"""The two experiments of arXiv 2511.22483: single models side by side (section III), and ensembles
of precisions against them (section IV).

Pure functions from evaluated tables to rows; `paper_report` shows and logs them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report.rows import (
    BEST_SINGLE,
    DENSE_MODEL,
    Row,
    ScenarioScores,
    about_data,
    baseline_rows,
    data_hashes,
    dense_name,
    make_row,
    scenario_scores,
)
from ptsearch.scoring.cost import total_cost
from ptsearch.scoring.scores import Scores, nan_last
from ptsearch.search.comparisons import KEYS, gains
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.study import Members
from ptsearch.variant import Variant

PRECISIONS = (3, 4, 8)  # bits of the published ensembles
# Bits per weight of 3 + 4 + 8 bits in groups of 64: each with a scale per group of its own, nested.
APART, NESTED = 15.75, 9.5
ENSEMBLES = ("precisions", "seeds")


class Outcome(NamedTuple):
    rows: list[Row]
    remarks: list[str]  # why something is missing
    data: Mapping[str, Mapping[str, str]] = {}  # benchmark -> file -> SHA-256
    scenarios: ScenarioScores = ScenarioScores({}, {})  # on all samples

    def of(self, *kinds: str) -> list[Row]:
        return [row for row in self.rows if row.kind in kinds]


def benchmark(table: Table, others: Sequence[Table]) -> Outcome:
    """Section III: the dense models, then every single variant of the pool that may vote."""
    by_part = scorers(table)
    dense, *singles = _on_all_parts(table, by_part, baseline_rows(table, by_part["search"]))
    return _outcome(table, others, by_part, [dense, *_baselines(table, others), *singles])


def paper(table: Table, others: Sequence[Table]) -> Outcome:
    """Section IV: ensembles of precisions and of seeds, and what they are compared with.

    ValueError: the pool has no such ensemble.
    """
    by_part = scorers(table)
    dense, *singles = _on_all_parts(table, by_part, baseline_rows(table, by_part["search"]))
    usable = {row.name: table.variants[row.name] for row in singles}
    ensembles = [
        make_row(table, by_part["search"], kind, name, members)
        for kind, sets in (("precisions", precisions(usable)), ("seeds", seeds(usable)))
        for name, members in sets.items()
    ]
    if not ensembles:
        raise ValueError(
            "the pool has no method with 3, 4 and 8 bits, and no two seeds of one method and "
            f"bit-width (it has {', '.join(usable) or 'nothing that may vote'}); try pool=seeds"
        )
    ensembles = _on_all_parts(table, by_part, ensembles)
    baselines = _baselines(table, others)
    on_all = _best_single("best_all", singles, "all", ("all",))
    on_search = _best_single("best_search", singles, "search", ("search", "holdout"))
    ensembles, remarks = _with_gains(table, others, by_part["holdout"], ensembles, on_search)
    rows = [*ensembles, dense, *baselines, on_all, on_search, *singles]
    return _outcome(table, others, by_part, rows, remarks)


EXPERIMENTS: dict[str, Callable[[Table, Sequence[Table]], Outcome]] = {
    "benchmark": benchmark,
    "paper": paper,
}


def precisions(variants: Mapping[str, Variant]) -> dict[str, Members]:
    """For each method that has all of 3, 4 and 8 bits, the first variant of each."""
    first: dict[str, dict[int, str]] = {}
    for label, variant in variants.items():
        first.setdefault(variant.method, {}).setdefault(variant.bits, label)
    bits = "+".join(map(str, PRECISIONS))
    return {
        f"{method} {bits} bits": tuple(labels[b] for b in PRECISIONS)
        for method, labels in first.items()
        if all(b in labels for b in PRECISIONS)
    }


def about_bytes(table: Table) -> list[str]:
    """What 3 + 4 + 8 bits store compared with the dense model, as separate variants and nested: of
    the pool's variants, else computed from bits; [] where no variant shows which weights are
    quantized.
    """
    table.ensure([DENSE, *table.variants])
    metas = {label: entry.meta for label, entry in table.entries.items() if "tensors" in entry.meta}
    known = {tensor["sha256"] for tensor in metas[DENSE]["tensors"].values()}
    shared = [
        sum(t["bytes"] for t in meta["tensors"].values() if t["sha256"] in known)
        for meta in metas.values()
    ]
    linears = max(shared) - min(shared)  # bytes of the dense model's
    sets = precisions({label: table.variants[label] for label in metas if label in table.variants})
    cache = metas[DENSE]["kv_bytes"]
    dense = max(shared)
    text = f"weights: dense {dense / 1e9:.3f} GB"
    for label, is_nested, bits in (("3+4+8 bits", False, APART), ("the same nested", True, NESTED)):
        measured = [of for name, of in sets.items() if name.startswith("nested") == is_nested]
        if measured:
            stored = 1e9 * _stored(table, measured[0])
        else:
            stored = min(shared) + linears * bits / 16
        more = 100 * (stored + 3 * cache) / (dense + cache)
        text += (
            f"; {label} {stored / 1e9:.3f}, {100 * stored / dense:.0f} % of dense"
            f" ({more:.0f} % with a KV cache per member{'' if measured else '; from bits'})"
        )
    return [text] if linears else []


def seeds(variants: Mapping[str, Variant]) -> dict[str, Members]:
    """Groups of two variants or more that differ only in their seed."""
    groups: dict[Variant, list[str]] = {}
    for label, variant in variants.items():
        groups.setdefault(replace(variant, seed=0), []).append(label)
    return {
        f"{variant.method} {variant.bits} bits, {len(labels)} seeds"
        + ("" if _is_alone(variant, groups) else f" ({variant.id[:4]})"): tuple(labels)
        for variant, labels in groups.items()
        if len(labels) > 1
    }


def _is_alone(variant: Variant, others: Iterable[Variant]) -> bool:
    """Whether no other group has the same method and bit-width."""
    return sum((v.method, v.bits) == (variant.method, variant.bits) for v in others) == 1


def over_best(row: Row, best: Row) -> Scores:
    """Differences on all samples to the best single of each score: as published, chosen on the
    samples that it is compared on, without intervals.
    """
    return {key: row.scores["all"][key] - best.scores["all"][key] for key in best.chosen}


def _outcome(
    table: Table,
    others: Sequence[Table],
    by_part: Mapping[str, EnsembleScorer],
    rows: list[Row],
    more_remarks: Sequence[str] = (),
) -> Outcome:
    models = {row.name: row.scores["all"] for row in rows if row.members}
    remarks = [*_remarks(table, others), *more_remarks]
    unscored = dict.fromkeys(
        key for scores in models.values() for key, value in scores.items()
        if math.isnan(value) and "/" in key
    )  # fmt: skip
    if unscored:
        remarks.append(
            f"nan: under rules={table.config.benchmarks.rules} some model has no score where it "
            f"answered none, or none of a group: {', '.join(unscored)}"
        )
    scenarios = scenario_scores(by_part["all"], models)
    return Outcome(rows, remarks, data_hashes(table), scenarios)


def _on_all_parts(
    table: Table, by_part: Mapping[str, EnsembleScorer], rows: Iterable[Row]
) -> list[Row]:
    """The rows with scores on the holdout half and on all samples, and their stored bytes."""
    dense = _stored(table, (DENSE,))
    return [
        replace(
            row,
            holdout=by_part["holdout"](table, row.members),
            all=by_part["all"](table, row.members),
            weights_percent=100 * _stored(table, row.members) / dense,
        )
        for row in rows
    ]


def _stored(table: Table, members: Sequence[str]) -> float:
    """10^9 bytes of tensors; those that members share are stored once."""
    metas = [table.entries[member].meta | {"kv_bytes": 0} for member in members]
    return total_cost(metas, "parallel").memory_gb


def _baselines(table: Table, others: Sequence[Table]) -> list[Row]:
    """The other dense models, in bytes relative to the base model."""
    rows = []
    for other in others:
        other.ensure([DENSE])
        by_part = scorers(other)
        row = make_row(other, by_part["search"], "baseline", dense_name(other), (DENSE,))
        (row,) = _on_all_parts(other, by_part, [row])
        share = 100 * _stored(other, (DENSE,)) / _stored(table, (DENSE,))
        rows.append(replace(row, weights_percent=share))
    return rows


def _best_single(kind: str, singles: Sequence[Row], part: str, shown: Iterable[str]) -> Row:
    """For each score the single variant that is best in it on `part`, with its scores."""
    keys = [key for key in KEYS if key in singles[0].scores[part]]
    best = {key: max(singles, key=lambda row: nan_last(row.scores[part][key])) for key in keys}
    scores: dict[str, Scores] = {
        name: {
            f"{key}{end}": row.scores[name][f"{key}{end}"]
            for key, row in best.items()
            for end in ("", ".accuracy", ".refusal_rate")
            if f"{key}{end}" in row.scores[name]
        }
        for name in shown
    }
    name = "best single on " + ("all data, as published" if part == "all" else "the search half")
    return Row(
        kind, name, (), scores.get("search", {}), scores.get("holdout"), scores.get("all"),
        chosen={key: row.name for key, row in best.items()},
    )  # fmt: skip


def _with_gains(
    table: Table,
    others: Sequence[Table],
    holdout: EnsembleScorer,
    ensembles: list[Row],
    best: Row,
) -> tuple[list[Row], list[str]]:
    """The ensembles with their gains over the dense models and, score by score, over the best
    single variant that the search half chose; or why there are none.
    """
    dense = {DENSE_MODEL: DENSE} | {dense_name(each): dense_name(each) for each in others}
    known = table.entries | {dense_name(each): each.entries[DENSE] for each in others}
    systems = dense | {label: label for label in best.chosen.values()}
    try:
        by_ensemble = gains(
            replace(table, entries=known),
            holdout,
            [row.members for row in ensembles],
            {name: (label,) for name, label in systems.items()},
        )
    except ValueError as error:
        return ensembles, [f"no intervals: {error}"]
    compared = []
    for row, over in zip(ensembles, by_ensemble, strict=True):
        single = {key: over[best.chosen[key]][key] for key in best.chosen}
        shown = {name: over[name] for name in dense} | {BEST_SINGLE: single}
        compared.append(replace(row, gains=shown))
    return compared, []


def _remarks(table: Table, others: Sequence[Table]) -> list[str]:
    remarks = about_bytes(table)
    if not others:
        remarks.append("no smaller dense model configured (study.baselines=[NAME])")
    if table.degenerate():
        remarks.append(f"degenerate, may not vote: {', '.join(table.degenerate())}")
    return remarks + about_data(table)
