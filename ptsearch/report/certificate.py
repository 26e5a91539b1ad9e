"""What may be claimed of an ensemble of a front, and what the claim rests on: `certificate.json`.

Plain values in a fixed order, without dates: the same command gives the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ptsearch.search.comparisons import Gain, Gains

FORMAT = "ptsearch-certificate/1"
CLAIM = "trust"  # the score that the verdict is about
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


def to_json(certificate: Mapping[str, object]) -> str:
    """The text of `certificate.json`, of a certificate's fields: keys sorted."""
    return json.dumps(certificate, indent=1, sort_keys=True) + "\n"


def claim(gain: Gain) -> str:
    """What the interval allows to claim; one that touches zero is no evidence."""
    if gain.low > 0:
        return BETTER
    return WORSE if gain.high < 0 else NO_EVIDENCE


def verdict(gains: Gains, remarks: Sequence[str] = ()) -> str:
    """One sentence on the trust gained over each baseline on held-out data."""
    if not gains:
        return "not tested: " + ("; ".join(remarks) or "no intervals")
    claims = []
    for baseline, by_score in gains.items():
        gain = by_score[CLAIM]
        figures = f"{gain.estimate:+.1f} points, {gain.low:+.1f} to {gain.high:+.1f}"
        word = claim(gain)
        preposition = "over" if word == NO_EVIDENCE else "than"
        words = f"{word} {preposition} {baseline}"
        claims.append(f"{words} ({figures}{_needed(gain)})")
    return "; ".join(claims)


def _needed(gain: Gain) -> str:
    """How many times as many held-out items would make a gain of this size evident."""
    reach = (gain.high - gain.low) / 2
    if gain.estimate <= 0 or gain.low > 0 or reach > 10 * gain.estimate:
        return ""
    times = (reach / gain.estimate) ** 2
    return f"; about {times:.1f} times the held-out items would show a gain of this size"
