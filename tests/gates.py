"""Simulated gates: recorded answers are the population, whose differences are the truth."""

from typing import NamedTuple

import numpy as np

from ptsearch.scoring import noninferiority, rates
from ptsearch.scoring.intervals import ClusterSums
from ptsearch.scoring.noninferiority import Bounds
from ptsearch.scoring.rates import Plan
from ptsearch.search.scorer import EnsembleScorer

RESAMPLES = 199


class Population(NamedTuple):
    """The dense model and a variant on everything that was recorded."""

    plan: Plan
    sums: ClusterSums
    truth: dict[str, float]  # by key, the variant less the dense model, positive if it is better


def population(table, scorer: EnsembleScorer, label: str) -> Population:
    plan = rates.plan(scorer.asked, table.config.trust.weights)
    votes = np.stack([scorer.vote(table, ("none",)), scorer.vote(table, (label,))])
    items = np.array([s.item for b in table.benchmarks for s in b.samples])[scorer.mask]
    sums = rates.cluster_sums(plan, scorer.asked, votes, items)
    scores = rates.score_counts(plan, sums.hits.sum(axis=1))
    sign = {key: -1 if key.endswith(noninferiority.LESS_IS_BETTER) else 1 for key in scores}
    truth = {key: sign[key] * float(two[1] - two[0]) for key, two in scores.items()}
    return Population(plan, sums, truth)


def gate(whole: Population, key: str, margin: float, times: float, rng) -> Bounds:
    """One gate on `times` as many items, drawn with replacement within the strata."""
    drawn = []
    for stratum in np.unique(whole.sums.strata):
        inside = np.flatnonzero(whole.sums.strata == stratum)
        drawn.append(rng.choice(inside, max(1, round(times * inside.size))))
    rows = np.concatenate(drawn)
    hits, sizes, strata = whole.sums
    sums = ClusterSums(hits[:, rows], sizes[rows], strata[rows])
    plan = whole.plan._replace(size=sums.sizes.sum(axis=0).astype(np.int64))
    return noninferiority.bounds(plan, sums, [key], margin, rng, RESAMPLES)[key]
