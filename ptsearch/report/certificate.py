"""What may be claimed of an ensemble of a front, and what the claim rests on: `certificate.json`.

Plain values in a fixed order, without dates: the same command gives the same bytes.
"""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from ptsearch.benchmarks import digest
from ptsearch.evaluation.table import Table
from ptsearch.report.rows import COST, SHOWN, Row
from ptsearch.search.comparisons import LEVEL, Gain, Gains
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import study_config

FORMAT = "ptsearch-certificate/1"
CLAIM = "trust"  # the score that the verdict is about
BETTER, WORSE, NO_EVIDENCE = "better", "worse", "no evidence of a gain"
PACKAGES = ("compressed-tensors", "numpy", "optuna", "ptsearch", "torch", "transformers")


def certified(
    table: Table,
    scorers: Mapping[str, EnsembleScorer],
    rows: Iterable[Row],
    holdout_reads: int,
    remarks: Sequence[str],
) -> list[Row]:
    """The rows with their certificates; `remarks` say why there are no gains, if there are none."""
    common = _common(table, scorers) | {"holdout_reads": holdout_reads}
    return [replace(row, certificate=common | _own(table, row, remarks)) for row in rows]


def to_json(certificate: Mapping[str, Any]) -> str:
    """The text of `certificate.json`: keys sorted."""
    return json.dumps(certificate, indent=1, sort_keys=True) + "\n"


def claim(gain: Gain) -> str:
    """What its interval allows to say; one that touches zero is no evidence."""
    if gain.low > 0:
        return BETTER
    return WORSE if gain.high < 0 else NO_EVIDENCE


def verdict(gains: Gains, remarks: Sequence[str] = ()) -> str:
    """One sentence on the trust gained over each baseline on held-out data."""
    if not gains:
        return "not tested: " + ("; ".join(remarks) or "no intervals")
    said = []
    for baseline, by_score in gains.items():
        gain = by_score[CLAIM]
        figures = f"{gain.estimate:+.1f} points, {gain.low:+.1f} to {gain.high:+.1f}"
        found = claim(gain)
        words = f"{found} than {baseline}" if found != NO_EVIDENCE else f"{found} over {baseline}"
        said.append(f"{words} ({figures}{_needed(gain)})")
    return "; ".join(said)


def _needed(gain: Gain) -> str:
    """How many times the held-out items would show a gain of the size found, if it is one."""
    reach = (gain.high - gain.low) / 2
    if gain.estimate <= 0 or gain.low > 0 or reach > 10 * gain.estimate:
        return ""
    times = (reach / gain.estimate) ** 2
    return f"; about {times:.1f} times the held-out items would show a gain of this size"


def _own(table: Table, row: Row, remarks: Sequence[str]) -> dict[str, Any]:
    held = row.holdout or {}
    return {
        "run": row.run_id,
        "members": {label: table.variant(label).id for label in row.members},
        "scores": {
            "search": _rounded({key: row.search[key] for key in (*SHOWN, *COST)}),
            "holdout": _rounded({key: held[key] for key in SHOWN if key in held}),
        },
        "unskilled": list(row.unskilled),
        "gains": {
            baseline: {
                score: _rounded(gain._asdict()) | {"claim": claim(gain)}
                for score, gain in by_score.items()
            }
            for baseline, by_score in row.gains.items()
        },
        "verdict": verdict(row.gains, remarks),
    }


def _common(table: Table, scorers: Mapping[str, EnsembleScorer]) -> dict[str, Any]:
    """What holds for the whole front."""
    config = table.config
    search = study_config(config)
    return {
        "format": FORMAT,
        "study": search.name,
        "command": ["python", "-m", "ptsearch", *config.overrides],
        "base_model": {"name": table.base.name, "revision": table.base.revision},
        "intervals": {
            "level": LEVEL,
            "method": "studentised max-t bootstrap over items, paired, simultaneous over the "
            "front, the scores and the baselines; held-out half",
        },
        "samples": _samples(table, scorers),
        "split": {
            "salt": config.benchmarks.split.salt,
            "search": "decides: front, pick, limits, the best single variant",
            "holdout": "reports",
        },
        "data": {b.name: {"digest": digest(b), "files": dict(b.data)} for b in table.benchmarks},
        "rules": config.benchmarks.rules,
        "prompt": config.benchmarks.prompt,
        "engine": asdict(config.engine),
        "trust_weights": dict(config.trust.weights),
        "search": {
            "trials": search.trials,
            "sampler": search.sampler,
            "seed": search.seed,
            "left_out": table.left_out(),
        },
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }


def _samples(
    table: Table, scorers: Mapping[str, EnsembleScorer]
) -> dict[str, dict[str, dict[str, int]]]:
    """Samples, and items they are made of, by benchmark and half."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    start = 0
    for benchmark in table.benchmarks:
        stop = start + len(benchmark.samples)
        for half, scorer in scorers.items():
            kept = scorer.mask[start:stop]
            pairs = zip(benchmark.samples, kept, strict=True)
            items = {sample.item for sample, inside in pairs if inside}
            counts = {"samples": int(kept.sum()), "items": len(items)}
            found.setdefault(benchmark.name, {})[half] = counts
        start = stop
    return found


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(float(value), 4) for key, value in values.items()}
