"""May a candidate replace the base model? Non-inferiority of each score, paired, on one part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring import noninferiority, rates
from ptsearch.scoring.noninferiority import Bounds
from ptsearch.scoring.scores import MMLU
from ptsearch.search.comparisons import item_sums
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.shared import did_you_mean

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
KEPT, LOST, UNDECIDED = "kept", "lost", "undecided"


@dataclass(frozen=True)
class Decision:
    """One score; percent, differences in points, positive where the candidate is better."""

    key: str
    samples: int
    base: float
    candidate: float  # NaN: it answers nobody in one of two groups
    difference: float
    at_worst: float  # one-sided bound, of this score by itself
    at_best: float  # one-sided bound, of all scores together
    verdict: str  # kept | lost | undecided
    samples_needed: int | None = None  # to decide it; None: decided, or over 1000 times as many


@dataclass(frozen=True)
class Gate:
    """What was decided."""

    verdict: str  # pass | fail | inconclusive
    margin: float
    samples: int
    decisions: list[Decision]

    def of(self, verdict: str) -> list[Decision]:
        """The scores that are kept, lost or undecided."""
        return [each for each in self.decisions if each.verdict == verdict]


def decide(
    table: Table, scorer: EnsembleScorer, members: Members, margin: float, keys: Sequence[str] = ()
) -> Gate:
    """Fail: a score is lost; pass: all are kept. `keys`: which, [] = one for each benchmark.

    ValueError: an unknown key, the base model gives no answers, or the published rules, whose
    scores are no rates.
    """
    if reason := table.entries[DENSE].reason:
        raise ValueError(f"the base model {table.base.name} gives no answers: {reason}")
    weights, asked = table.config.trust.weights, scorer.asked
    plan = rates.plan(asked, weights)
    default = sorted((b.name for b in table.benchmarks if b.name in plan.keys), key=MMLU.__eq__)
    for key in keys:
        if key not in plan.keys:
            raise ValueError(f"gate.perspectives: no score {key!r}{did_you_mean(key, plan.keys)}")
    keys = keys or default
    votes = np.stack([scorer.vote(table, (DENSE,)), scorer.vote(table, members)])
    sums = item_sums(table, scorer, plan, votes)
    found = {k: v.tolist() for k, v in rates.score_counts(plan, sums.hits.sum(axis=1)).items()}
    for key in keys:
        if math.isnan(found[key][0]):
            raise ValueError(f"{key}: the base model answers nobody in one of two groups")
    known = [key for key in keys if not math.isnan(found[key][1])]
    rng = np.random.default_rng(0)
    bounds = noninferiority.bounds(plan, sums, known, margin, rng) if known else {}
    nowhere = Bounds(math.nan, -math.inf, -math.inf, math.inf)
    counts = {key: _samples(scorer, key) for key in keys}
    decisions = [
        _decision(key, counts[key], found[key], bounds.get(key, nowhere), margin) for key in keys
    ]
    verdicts = [each.verdict for each in decisions]
    passed = all(verdict == KEPT for verdict in verdicts)
    verdict = FAIL if LOST in verdicts else PASS if passed else INCONCLUSIVE
    return Gate(verdict, margin, int(scorer.mask.sum()), decisions)


def _decision(
    key: str, samples: int, found: Sequence[float], bounds: Bounds, margin: float
) -> Decision:
    verdict = LOST if bounds.high < -margin else KEPT if bounds.low > -margin else UNDECIDED
    needed = None
    if verdict == UNDECIDED and math.isfinite(bounds.factor):
        needed = max(math.ceil(samples * bounds.factor), samples + 1)
    base, candidate = found
    ends = bounds.estimate, bounds.low, bounds.high
    return Decision(key, samples, base, candidate, *ends, verdict, needed)


def _samples(scorer: EnsembleScorer, key: str) -> int:
    """Behind a score."""
    scored, name = scorer.asked.scored(), key.partition("/")[0].partition(".")[0]
    scenario = key.partition("/")[2].partition(".")[0]
    if scenario:
        parts = scorer.asked.parts
        return sum(p.rows.size for p in parts if (p.benchmark, p.scenario.name) == (name, scenario))
    return scored[name].size if name in scored else sum(rows.size for rows in scored.values())
