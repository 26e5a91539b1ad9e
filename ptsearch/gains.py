"""What ensembles gain over single models on the holdout half, with simultaneous intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ptsearch import rates, statistics
from ptsearch.config import PERSPECTIVES
from ptsearch.judge import Judge
from ptsearch.scores import MMLU
from ptsearch.statistics import Floats
from ptsearch.study import Members
from ptsearch.table import Table

KEYS = ("trust", MMLU, *PERSPECTIVES)
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


def gains(
    table: Table, judge: Judge, front: Sequence[Members], baselines: dict[str, Members]
) -> list[Gains]:
    """For each ensemble its gain over each baseline, over all at once a `LEVEL` interval.

    ValueError: too few items for that, or the published rules, whose scores are no rates.
    """
    plan = rates.plan(judge.asked, table.config.trust.weights)
    keys = [key for key in KEYS if key in plan.keys]
    systems = [*baselines.values(), *front]
    votes = np.stack([judge.vote(table, members) for members in systems])
    items = [sample.item for b in table.benchmarks for sample in b.samples]
    sums = rates.cluster_sums(plan, judge.asked, votes, np.array(items)[judge.mask])
    pairs = [(len(baselines) + i, j) for i in range(len(front)) for j in range(len(baselines))]
    coefficients = rates.contrasts(plan, sums, keys, pairs)
    _check_items(sums, coefficients.reshape(len(pairs), len(keys), -1, plan.size.size), keys)
    found = statistics.max_t_intervals(sums, coefficients, np.random.default_rng(0), LEVEL)
    shaped = np.stack([found.estimate, found.low, found.high], axis=1)
    shaped = shaped.reshape(len(front), len(baselines), len(keys), 3)
    return [
        {
            name: {key: Gain(*map(float, shaped[i, j, k])) for k, key in enumerate(keys)}
            for j, name in enumerate(baselines)
        }
        for i in range(len(front))
    ]


def _check_items(sums: statistics.ClusterSums, coefficients: Floats, keys: Sequence[str]) -> None:
    """ValueError: a score has too few items for so many intervals, and how many it takes.

    `coefficients` (pairs, keys, systems, rates).
    """
    needed = statistics.clusters_needed(coefficients[:, :, 0, 0].size, LEVEL)
    for k, key in enumerate(keys):
        behind = np.abs(coefficients[:, k]).sum(axis=(0, 1)) > 0
        items = int((sums.sizes[:, behind] > 0).any(axis=1).sum())
        if behind.any() and items < needed:
            raise ValueError(
                f"{key} rests on {items} held-out items, and intervals that hold together for "
                f"{len(coefficients)} comparisons of {len(keys)} scores take {needed}: about "
                f"{2 * needed} samples in all, see benchmarks.limit"
            )
