"""What ensembles gain over single models on the holdout half, with simultaneous intervals."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ptsearch.evaluation.table import Table
from ptsearch.scoring import intervals, rates
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.shared import AnswerCodes, Floats

LEVEL = 0.95


class Gain(NamedTuple):
    """A difference of two scores in percent points; the interval holds jointly with all others."""

    estimate: float
    low: float
    high: float

    @property
    def is_evident(self) -> bool:
        return self.low > 0


Gains = dict[str, dict[str, Gain]]  # baseline -> score -> gain over it


def judged(table: Table) -> tuple[str, ...]:
    """The scores in which ensembles are compared: trust, then each benchmark's."""
    return ("trust", *(benchmark.name for benchmark in table.benchmarks))


def losses(by_score: Mapping[str, Gain]) -> dict[str, Gain]:
    """The scores that are proven worse, the largest loss first."""
    lost = {key: gain for key, gain in by_score.items() if gain.high < 0}
    return dict(sorted(lost.items(), key=lambda item: item[1].estimate))


def gains(
    table: Table,
    scorer: EnsembleScorer,
    front: Sequence[Members],
    baselines: Mapping[str, Members],
    keys: Sequence[str] = (),
) -> list[Gains]:
    """For each ensemble its gain over each baseline in `keys`, else in what is `judged`, over all
    at once a `LEVEL` interval.

    ValueError: too few items for that, a score that is not estimable (one of two groups without
    any answer), or the published rules, whose scores are no rates.
    """
    systems = [*baselines.values(), *front]
    votes = np.stack([scorer.vote(table, members) for members in systems])
    pairs = [(len(baselines) + i, j) for i in range(len(front)) for j in range(len(baselines))]
    estimates = iter(differences(table, scorer, votes, pairs, keys or judged(table)))
    return [{name: next(estimates) for name in baselines} for _ in front]


def in_words(changes: Mapping[str, Gain]) -> str:
    """mmlu -16.4 (-31.0 to -4.7), ood ..."""
    return ", ".join(f"{key} {figures(gain)}" for key, gain in changes.items())


def figures(gain: Gain) -> str:
    """An estimate with the ends of its interval, in points."""
    return f"{gain.estimate:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"


def differences(
    table: Table,
    scorer: EnsembleScorer,
    votes: AnswerCodes,
    pairs: Sequence[tuple[int, int | None]],
    chosen: Sequence[str] = (),
) -> list[dict[str, Gain]]:
    """For each pair (a, b) of `votes` (systems, samples), score a less score b by key: those that
    are `chosen`, else all; of (a, None) only the width means something, that of a's interval.
    Intervals and errors as `gains`.
    """
    plan = rates.plan(scorer.asked, table.config.trust.weights)
    keys = [key for key in chosen or plan.keys if key in plan.keys]
    sums = item_sums(table, scorer, plan, votes)
    joint = rates.score_counts(plan, sums.hits.sum(axis=1))
    if nowhere := [key for key in keys if np.isnan(joint[key]).any()]:
        raise ValueError(f"{', '.join(nowhere)}: some model answers nobody in one of two groups")
    coefficients = rates.contrasts(plan, sums, keys, pairs)
    _check_items(sums, coefficients.reshape(len(pairs), len(keys), -1, plan.size.size), keys)
    each = intervals.max_t_intervals(sums, coefficients, np.random.default_rng(0), LEVEL)
    shaped = np.stack([each.estimate, each.low, each.high], axis=1)
    shaped = shaped.reshape(len(pairs), len(keys), 3)
    return [
        {key: Gain(*map(float, shaped[i, k])) for k, key in enumerate(keys)}
        for i in range(len(pairs))
    ]


def item_sums(
    table: Table, scorer: EnsembleScorer, plan: rates.Plan, votes: AnswerCodes
) -> intervals.ClusterSums:
    """Hits of `votes` (systems, samples) by what intervals resample as one."""
    items = np.array([sample.resampled for b in table.benchmarks for sample in b.samples])
    return rates.cluster_sums(plan, scorer.asked, votes, items[scorer.mask])


def _check_items(sums: intervals.ClusterSums, coefficients: Floats, keys: Sequence[str]) -> None:
    """ValueError: a score has too few items for so many intervals, and how many it takes.

    `coefficients` (pairs, keys, systems, rates).
    """
    needed = intervals.clusters_needed(coefficients[:, :, 0, 0].size, LEVEL)
    for k, key in enumerate(keys):
        behind = np.abs(coefficients[:, k]).sum(axis=(0, 1)) > 0
        items = int((sums.sizes[:, behind] > 0).any(axis=1).sum())
        if behind.any() and items < needed:
            raise ValueError(
                f"{key} rests on {items} held-out items, and intervals that hold together for "
                f"{len(coefficients)} comparisons of {len(keys)} scores take {needed}: about "
                f"{2 * needed} samples in all, see benchmarks.limit"
            )
