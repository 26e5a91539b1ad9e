"""The two experiments of arXiv 2511.22483: its section III, single models side by side, and its
section IV, ensembles of precisions against them.

Pure functions from evaluated tables to lines; `experiment_report` shows and logs them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report.rows import BEST_SINGLE, BOUNDS, COST, DENSE_MODEL, about_data, data_hashes
from ptsearch.report.scenarios import Sheet, sheet
from ptsearch.scoring.cost import total_cost
from ptsearch.scoring.scores import Scores, nan_last
from ptsearch.search.comparisons import KEYS, Gains, gains
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.study import Members
from ptsearch.variant import Variant

PRECISIONS = (3, 4, 8)  # bits of the published ensembles
# Bits a weight of 3 + 4 + 8 bits in groups of 64: each with a scale a group of its own, and nested.
APART, NESTED = 15.75, 9.5
PREFIX = {"all": "all.", "search": "", "holdout": "holdout."}  # of a half's scores, as in MLflow


@dataclass(frozen=True)
class Line:
    """One single model or ensemble; scores in percent on each half and on all samples."""

    kind: str  # dense | baseline | single | precisions | seeds | best_all | best_search
    name: str  # for people
    members: Members
    scores: dict[str, Scores]  # all, search, holdout -> scores
    weights_percent: float = math.nan  # stored tensors, in percent of the dense model's
    unskilled: tuple[str, ...] = ()  # benchmarks where it is no better than one constant answer
    chosen: dict[str, str] = field(default_factory=dict)  # best single: score -> whose it is
    gains: Gains = field(default_factory=dict)  # on the holdout half, over each baseline


class Outcome(NamedTuple):
    lines: list[Line]
    remarks: list[str]  # why something is missing
    data: Mapping[str, Mapping[str, str]] = {}  # benchmark -> file -> SHA-256
    scenarios: Sheet = Sheet({}, {})  # on all samples

    def of(self, *kinds: str) -> list[Line]:
        return [line for line in self.lines if line.kind in kinds]


def benchmark(table: Table, others: Sequence[Table]) -> Outcome:
    """Section III: the dense models, then every single variant of the pool that may vote."""
    by_half = scorers(table)
    dense, *baselines = _dense_lines(table, others)
    lines = [dense, *baselines, *_singles(table, by_half)]
    return _outcome(table, others, by_half, lines)


def paper(table: Table, others: Sequence[Table]) -> Outcome:
    """Section IV: ensembles of precisions and of seeds, and what they are compared with.

    ValueError: the pool has no such ensemble.
    """
    by_half = scorers(table)
    dense = _dense_lines(table, others)
    singles = _singles(table, by_half)
    usable = {line.name: table.variants[line.name] for line in singles}
    ensembles = [
        _line(table, by_half, kind, name, members)
        for kind, found in (("precisions", precisions(usable)), ("seeds", seeds(usable)))
        for name, members in found.items()
    ]
    if not ensembles:
        raise ValueError(
            "the pool has no method with 3, 4 and 8 bits, and no two seeds of one method and "
            f"bit-width (it has {', '.join(usable) or 'nothing that may vote'}); try pool=seeds"
        )
    published = _best_single("best_all", singles, "all", ("all",))
    honest = _best_single("best_search", singles, "search", ("search", "holdout"))
    ensembles, remarks = _with_gains(table, others, by_half["holdout"], ensembles, honest)
    lines = [*ensembles, *dense, published, honest, *singles]
    return _outcome(table, others, by_half, lines, remarks)


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
        f"{method} {bits} bits": tuple(found[b] for b in PRECISIONS)
        for method, found in first.items()
        if all(b in found for b in PRECISIONS)
    }


def about_bytes(table: Table) -> list[str]:
    """What 3 + 4 + 8 bits store beside the dense model, apart and nested: of the pool's variants,
    or else by their bits; [] where no variant tells which weights are quantized.
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
    said = f"weights: dense {dense / 1e9:.3f} GB"
    for name, is_nested, bits in (("3+4+8 bits", False, APART), ("the same nested", True, NESTED)):
        found = [of for method, of in sets.items() if method.startswith("nested") == is_nested]
        if found:
            stored = 1e9 * _stored(table, found[0])
        else:
            stored = min(shared) + linears * bits / 16
        more = 100 * (stored + 3 * cache) / (dense + cache)
        said += (
            f"; {name} {stored / 1e9:.3f}, {100 * stored / dense:.0f} % of dense"
            f" ({more:.0f} % with a KV cache for each member{'' if found else '; by their bits'})"
        )
    return [said] if linears else []


def seeds(variants: Mapping[str, Variant]) -> dict[str, Members]:
    """All variants that differ in nothing but the seed, where there are at least two."""
    alike: dict[Variant, list[str]] = {}
    for label, variant in variants.items():
        alike.setdefault(replace(variant, seed=0), []).append(label)
    return {
        f"{variant.method} {variant.bits} bits, {len(labels)} seeds"
        + ("" if _is_alone(variant, alike) else f" ({variant.id[:4]})"): tuple(labels)
        for variant, labels in alike.items()
        if len(labels) > 1
    }


def _is_alone(variant: Variant, others: Iterable[Variant]) -> bool:
    """No other group has the same method and bit-width."""
    return sum((v.method, v.bits) == (variant.method, variant.bits) for v in others) == 1


def columns(line: Line) -> Scores:
    """Every number of a line by name, for the CSV and MLflow; unprefixed are the search half."""
    wanted = {*KEYS, *COST, "fairness.accuracy", "refusal_rate"}
    wanted |= {"mmlu.macro", "ethics.all", "ethics.answered"}
    wanted |= {f"{key}.refusal_rate" for key in KEYS}
    found = {
        PREFIX[half] + key: value
        for half, by_key in line.scores.items()
        for key, value in by_key.items()
        if key in wanted and not (key in COST and half != "search")
    }
    found["weights_percent"] = line.weights_percent
    for baseline, by_score in line.gains.items():
        for key, gain in by_score.items():
            for end, value in zip(BOUNDS, gain, strict=True):
                found[f"gain.{baseline}.{key}{end}"] = value
    return {name: value for name, value in found.items() if not math.isnan(value)}


def over_best(line: Line, best: Line) -> Scores:
    """Differences on all samples to the best single of each score: as published, chosen on the
    samples it is compared on, without intervals.
    """
    return {key: line.scores["all"][key] - best.scores["all"][key] for key in best.chosen}


def _outcome(
    table: Table,
    others: Sequence[Table],
    by_half: Mapping[str, EnsembleScorer],
    lines: list[Line],
    remarks: Sequence[str] = (),
) -> Outcome:
    models = {line.name: line.scores["all"] for line in lines if line.members}
    said = [*_remarks(table, others), *remarks]
    unscored = dict.fromkeys(
        key for found in models.values() for key, value in found.items()
        if math.isnan(value) and "/" in key
    )  # fmt: skip
    if unscored:
        said.append(
            f"nan: rules={table.config.benchmarks.rules} divide by the answered samples, and some "
            f"model answered none in {', '.join(unscored)}"
        )
    return Outcome(lines, said, data_hashes(table), sheet(by_half["all"], models))


def _line(
    table: Table,
    by_half: Mapping[str, EnsembleScorer],
    kind: str,
    name: str,
    members: Members,
) -> Line:
    found = {half: scorer(table, members) for half, scorer in by_half.items()}
    search = by_half["search"]
    return Line(
        kind, name, members, found,
        weights_percent=100 * _stored(table, members) / _stored(table, (DENSE,)),
        unskilled=tuple(search.unskilled(found["search"])),
    )  # fmt: skip


def _stored(table: Table, members: Sequence[str]) -> float:
    """10^9 bytes of tensors; those that members share are stored once."""
    metas = [table.entries[member].meta | {"kv_bytes": 0} for member in members]
    return total_cost(metas, "parallel").memory_gb


def _dense_lines(table: Table, others: Sequence[Table]) -> list[Line]:
    """The base model first, then the other dense models, in bytes relative to it."""
    lines = []
    for each in (table, *others):
        each.ensure([DENSE])
        kind = "dense" if each is table else "baseline"
        line = _line(each, scorers(each), kind, dense_name(each), (DENSE,))
        share = 100 * _stored(each, (DENSE,)) / _stored(table, (DENSE,))
        lines.append(replace(line, weights_percent=share))
    return lines


def dense_name(table: Table) -> str:
    return f"{table.base.name} dense"


def _singles(table: Table, by_half: Mapping[str, EnsembleScorer]) -> list[Line]:
    table.ensure([DENSE, *table.variants])
    usable = [label for label in table.variants if label not in table.degenerate()]
    return [_line(table, by_half, "single", label, (label,)) for label in usable]


def _best_single(kind: str, singles: Sequence[Line], half: str, shown: Iterable[str]) -> Line:
    """For each score the single variant that is best in it on `half`, with its scores."""
    keys = [key for key in KEYS if key in singles[0].scores[half]]
    best = {key: max(singles, key=lambda line: nan_last(line.scores[half][key])) for key in keys}
    found: dict[str, Scores] = {
        name: {
            f"{key}{end}": line.scores[name][f"{key}{end}"]
            for key, line in best.items()
            for end in ("", ".accuracy", ".refusal_rate")
            if f"{key}{end}" in line.scores[name]
        }
        for name in shown
    }
    name = "best single on " + ("all data, as published" if half == "all" else "the search half")
    return Line(kind, name, (), found, chosen={key: line.name for key, line in best.items()})


def _with_gains(
    table: Table,
    others: Sequence[Table],
    holdout: EnsembleScorer,
    ensembles: list[Line],
    best: Line,
) -> tuple[list[Line], list[str]]:
    """The ensembles with their gains over the dense models and, score by score, over the best
    single variant that the search half chose; or why there are none.
    """
    dense = {DENSE_MODEL: DENSE} | {dense_name(each): dense_name(each) for each in others}
    known = table.entries | {dense_name(each): each.entries[DENSE] for each in others}
    systems = dense | {label: label for label in best.chosen.values()}
    try:
        found = gains(
            replace(table, entries=known),
            holdout,
            [line.members for line in ensembles],
            {name: (label,) for name, label in systems.items()},
        )
    except ValueError as error:
        return ensembles, [f"no intervals: {error}"]
    compared = []
    for line, over in zip(ensembles, found, strict=True):
        single = {key: over[best.chosen[key]][key] for key in best.chosen}
        shown = {name: over[name] for name in dense} | {BEST_SINGLE: single}
        compared.append(replace(line, gains=shown))
    return compared, []


def _remarks(table: Table, others: Sequence[Table]) -> list[str]:
    remarks = about_bytes(table)
    if not others:
        remarks.append("no smaller dense model configured (study.baselines=[NAME])")
    if table.degenerate():
        remarks.append(f"degenerate, may not vote: {', '.join(table.degenerate())}")
    return remarks + about_data(table)
