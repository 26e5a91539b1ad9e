"""What may be claimed of an ensemble of a front, and what the claim rests on: `certificate.json`.

Plain values in a fixed order, without dates: the same command gives the same bytes.
"""

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from ptsearch.evaluation.table import Table
from ptsearch.report.rows import Row, shown_scores
from ptsearch.scoring.scores import Scores
from ptsearch.search.comparisons import LEVEL, Gain, Gains, figures, in_words, losses
from ptsearch.search.objectives import OBJECTIVES
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import study_config

FORMAT = "ptsearch-certificate/1"
CLAIM = "trust"  # the score that the verdict is about
PACKAGES = ("compressed-tensors", "numpy", "optuna", "ptsearch", "torch", "transformers")
BETTER, WORSE, NO_EVIDENCE = "better", "worse", "no evidence of a gain"


@dataclass(frozen=True)
class CertifiedGain:
    """A gain in points with its simultaneous interval, and what it allows to claim."""

    estimate: float
    low: float
    high: float
    claim: str


@dataclass(frozen=True)
class BenchmarkData:
    digest: str
    files: dict[str, str]  # file -> SHA-256
    moved: int = 0  # samples in the half of a question that they repeat, not in their own


@dataclass(frozen=True)
class SearchSettings:
    trials: int
    sampler: str
    seed: int
    left_out: dict[str, str]  # variant -> why it was not evaluated any further


@dataclass(frozen=True)
class Certificate:
    """The content of `certificate.json`."""

    study: str
    command: list[str]
    base_model: dict[str, str]  # name, revision
    intervals: dict[str, str | float]  # level, method
    samples: dict[str, dict[str, dict[str, int]]]  # benchmark -> half -> samples, items
    split: dict[str, str]
    data: dict[str, BenchmarkData]
    rules: str
    prompt: str
    engine: dict[str, object]
    trust_weights: dict[str, float]
    search: SearchSettings
    versions: dict[str, str]
    holdout_reads: int
    run: str
    members: dict[str, str]  # label -> variant id
    scores: dict[str, dict[str, float]]  # search, holdout -> scores
    unskilled: list[str]
    gains: dict[str, dict[str, CertifiedGain]]  # baseline -> score -> gain
    verdict: str
    format: str = FORMAT


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
    objectives = {name: row.search[name] for name in OBJECTIVES if name in row.search}
    return Certificate(
        study=search.name,
        command=["python", "-m", "ptsearch", *config.overrides],
        base_model={"name": table.base.name, "revision": table.base.revision},
        intervals={
            "level": LEVEL,
            "method": "studentised max-t bootstrap over items, paired; held-out half; simultaneous "
            "over the picks' trust against dense and best_single, and by itself over every other "
            "gain of the front",
        },
        samples=samples,
        split={
            "salt": config.benchmarks.split.salt,
            "search": "decides: front, pick, limits, the best single variant",
            "holdout": "reports",
        },
        data={b.name: BenchmarkData(b.digest, dict(b.data), b.moved) for b in table.benchmarks},
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
            "search": _rounded(shown_scores(row.search) | objectives),
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


def to_json(certificate: Mapping[str, object]) -> str:
    """The text of `certificate.json`, of a certificate's fields: keys sorted."""
    return json.dumps(certificate, indent=1, sort_keys=True) + "\n"


def claim(gain: Gain) -> str:
    """What the interval allows to claim; one that touches zero is no evidence."""
    if gain.low > 0:
        return BETTER
    return WORSE if gain.high < 0 else NO_EVIDENCE


def verdict(gains: Gains, remarks: Sequence[str] = ()) -> str:
    """Proven losses over each baseline on held-out data first, then the trust gained over it."""
    if not gains:
        return "not tested: " + ("; ".join(remarks) or "no intervals")
    claims = [
        f"{WORSE} than {baseline}: {in_words(lost)}"
        for baseline, by_score in gains.items()
        if (lost := losses(by_score))
    ]
    for baseline, by_score in gains.items():
        gain = by_score[CLAIM]
        word = claim(gain)
        if word == WORSE:
            continue
        over = "over" if word == NO_EVIDENCE else "than"
        claims.append(f"{CLAIM} {figures(gain)}: {word} {over} {baseline}{_needed(gain)}")
    return "; ".join(claims)


def _needed(gain: Gain) -> str:
    """How many times as many held-out items would make a gain of this size evident."""
    reach = (gain.high - gain.low) / 2
    if gain.estimate <= 0 or gain.low > 0 or reach > 10 * gain.estimate:
        return ""
    times = (reach / gain.estimate) ** 2
    return f" (about {times:.1f} times the held-out items would show a gain of this size)"
