"""How diverse the errors of a pool's variants are: what a vote over them can correct.

Per benchmark, on the scored samples of one half. A reply without a usable answer counts as wrong,
unless declining is right. Pairs as in Kuncheva and Whitaker (2003, https://doi.org/10.1023/A:1022859003006).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.scoring import metrics
from ptsearch.scoring.scores import Questions
from ptsearch.shared import AnswerCodes, CsvRow, Floats
from ptsearch.variant import Variant

ALL = "all"  # the benchmarks together
FIELDS = ("method", "bits", "seed")


class Pairs(NamedTuple):
    """Each (variants, variants) and symmetric; NaN where a share has no samples."""

    agreement: Floats  # % of samples with the same answer; no usable answer is one answer
    double_fault: Floats  # % of samples that both have wrong (Giacinto and Roli 2001)
    q: Floats  # -1 to 1: (N11 N00 - N10 N01) / (N11 N00 + N10 N01) (Yule 1900)
    same_wrong: Floats  # % of the samples with two wrong labels on which these are the same
    # (Kim et al. 2025, https://arxiv.org/abs/2506.07962); with two labels always 100
    correlation: Floats  # -1 to 1: of being wrong, Pearson


class Diversity(NamedTuple):
    """Of all variants on one benchmark."""

    samples: int
    accuracy: Floats  # (variants,) percent
    oracle: float  # % of samples that at least one variant has right: no vote can do better
    effective: float  # independent voters with as much spread in their mean
    pairs: Pairs


def measure(asked: Questions, codes: AnswerCodes) -> dict[str, Diversity]:
    """By benchmark and for all together, of `codes` (variants, samples) that answer `asked`."""
    right = metrics.is_correct(codes, asked.gold, asked.n_labels, asked.abstain_ok)
    rows = asked.scored()
    rows[ALL] = np.concatenate(list(rows.values()))
    return {name: _of(codes[:, columns], right[:, columns]) for name, columns in rows.items()}


def _of(codes: AnswerCodes, right: NDArray[np.bool_]) -> Diversity:
    pairs = compare(codes, right)
    return Diversity(
        samples=codes.shape[1],
        accuracy=100.0 * right.mean(axis=1),
        oracle=100.0 * float(right.any(axis=0).mean()),
        effective=effective_voters(pairs.correlation),
        pairs=pairs,
    )


def compare(codes: AnswerCodes, right: NDArray[np.bool_]) -> Pairs:
    """All pairs of variants, from what they answer and whether it is right: (variants, samples)."""
    n = codes.shape[1]
    answers = np.where(codes < 0, REFUSED, codes)
    agree = np.stack([(answers == one).sum(axis=1) for one in answers])
    mislabelled = ~right & (codes >= 0)
    same = np.stack([((answers == one) & mislabelled).sum(axis=1) for one in answers])
    yes, no, wrong = (each.astype(np.float64) for each in (right, ~right, mislabelled))
    n11, n00, n10, n01 = yes @ yes.T, no @ no.T, yes @ no.T, no @ yes.T
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(yes.sum(axis=1) * no.sum(axis=1))
        return Pairs(
            agreement=100.0 * agree / n,
            double_fault=100.0 * n00 / n,
            q=(n11 * n00 - n10 * n01) / (n11 * n00 + n10 * n01),
            same_wrong=100.0 * same / (wrong @ wrong.T),
            correlation=(n11 * n00 - n10 * n01) / np.outer(spread, spread),
        )


def effective_voters(correlation: Floats) -> float:
    """n / (1 + (n - 1) r), r the mean correlation between two, not below 0: how many independent
    voters vary as much in their mean (the design effect: Kish 1965, Survey Sampling, 5.4).
    """
    n = len(correlation)
    between = correlation[~np.eye(n, dtype=bool)]
    between = between[~np.isnan(between)]
    if n == 1 or not between.size:
        return float("nan") if n > 1 else 1.0
    return n / (1 + (n - 1) * max(float(between.mean()), 0.0))


def summary(by_benchmark: Mapping[str, Diversity]) -> list[CsvRow]:
    """One row per benchmark: figures of the pool, and means over its pairs of variants."""
    return [
        {
            "benchmark": name, "samples": diversity.samples, "voters": len(diversity.accuracy),
            "effective_voters": diversity.effective,
            "mean_accuracy": float(diversity.accuracy.mean()),
            "best_accuracy": float(diversity.accuracy.max()), "oracle": diversity.oracle,
            **{key: _mean(each[np.triu_indices(len(each), 1)])
               for key, each in diversity.pairs._asdict().items()},
        }
        for name, diversity in by_benchmark.items()
    ]  # fmt: skip


def correlation_by_field(diversity: Diversity, variants: Sequence[Variant]) -> dict[str, float]:
    """Field -> mean error correlation of the pairs that differ in nothing but it."""
    values: dict[str, list[float]] = {}
    for (i, a), (j, b) in itertools.combinations(enumerate(variants), 2):
        differing = [field for field in FIELDS if getattr(a, field) != getattr(b, field)]
        if len(differing) == 1:
            values.setdefault(differing[0], []).append(diversity.pairs.correlation[i, j])
    return {field: _mean(np.array(values[field])) for field in FIELDS if field in values}


def pair_rows(
    by_benchmark: Mapping[str, Diversity], variants: Mapping[str, Variant]
) -> list[CsvRow]:
    """One row per benchmark and pair of variants."""
    return [
        {
            "benchmark": name, "a": a, "b": b,
            **{f"{f}_{side}": getattr(variants[x], f)
               for f in FIELDS for side, x in (("a", a), ("b", b))},
            **{key: float(each[i, j]) for key, each in diversity.pairs._asdict().items()},
        }
        for name, diversity in by_benchmark.items()
        for (i, a), (j, b) in itertools.combinations(enumerate(variants), 2)
    ]  # fmt: skip


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
