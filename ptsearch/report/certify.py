"""Builds the certificates of a front: scores, gains and settings of a finished study."""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version

from ptsearch.benchmarks import digest
from ptsearch.evaluation.table import Table
from ptsearch.report.certificate import (
    BenchmarkData,
    Certificate,
    CertifiedGain,
    SearchSettings,
    claim,
    verdict,
)
from ptsearch.report.rows import COST, Row, shown_scores
from ptsearch.scoring.scores import Scores
from ptsearch.search.comparisons import LEVEL, Gain
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import study_config

PACKAGES = ("compressed-tensors", "numpy", "optuna", "ptsearch", "torch", "transformers")


def certified(
    table: Table,
    scorers: Mapping[str, EnsembleScorer],
    rows: Iterable[Row],
    holdout_reads: int,
    remarks: Sequence[str],
) -> list[Row]:
    """The rows with their certificates; `remarks` say why there are no gains, if there are none."""
    samples = _samples(table, scorers)
    return [
        replace(row, certificate=_certificate(table, row, samples, holdout_reads, remarks))
        for row in rows
    ]


def _certificate(
    table: Table,
    row: Row,
    samples: dict[str, dict[str, dict[str, int]]],
    holdout_reads: int,
    remarks: Sequence[str],
) -> Certificate:
    config, search = table.config, study_config(table.config)
    costs = {name: row.search[name] for name in COST}
    return Certificate(
        study=search.name,
        command=["python", "-m", "ptsearch", *config.overrides],
        base_model={"name": table.base.name, "revision": table.base.revision},
        intervals={
            "level": LEVEL,
            "method": "studentised max-t bootstrap over items, paired, simultaneous over the "
            "front, the scores and the baselines; held-out half",
        },
        samples=samples,
        split={
            "salt": config.benchmarks.split.salt,
            "search": "decides: front, pick, limits, the best single variant",
            "holdout": "reports",
        },
        data={b.name: BenchmarkData(digest(b), dict(b.data), b.moved) for b in table.benchmarks},
        rules=config.benchmarks.rules,
        prompt=config.benchmarks.prompt,
        engine=asdict(config.engine),
        trust_weights=dict(config.trust.weights),
        search=SearchSettings(search.trials, search.sampler, search.seed, table.left_out()),
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        holdout_reads=holdout_reads,
        run=row.run_id,
        members={label: table.variant(label).id for label in row.members},
        scores={
            "search": _rounded(shown_scores(row.search) | costs),
            "holdout": _rounded(shown_scores(row.holdout or {})),
        },
        unskilled=list(row.unskilled),
        gains={
            baseline: {score: _certified_gain(gain) for score, gain in by_score.items()}
            for baseline, by_score in row.gains.items()
        },
        verdict=verdict(row.gains, remarks),
    )


def _certified_gain(gain: Gain) -> CertifiedGain:
    return CertifiedGain(**_rounded(gain._asdict()), claim=claim(gain))


def _samples(
    table: Table, scorers: Mapping[str, EnsembleScorer]
) -> dict[str, dict[str, dict[str, int]]]:
    """Samples, and items they are made of, by benchmark and half."""
    by_benchmark: dict[str, dict[str, dict[str, int]]] = {}
    start = 0
    for benchmark in table.benchmarks:
        stop = start + len(benchmark.samples)
        for half, scorer in scorers.items():
            kept = scorer.mask[start:stop]
            pairs = zip(benchmark.samples, kept, strict=True)
            items = {sample.item for sample, inside in pairs if inside}
            counts = {"samples": int(kept.sum()), "items": len(items)}
            by_benchmark.setdefault(benchmark.name, {})[half] = counts
        start = stop
    return by_benchmark


def _rounded(values: Scores) -> Scores:
    return {key: round(float(v), 4) for key, v in values.items() if not math.isnan(v)}
