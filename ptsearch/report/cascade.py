"""A cascade: one member answers alone where it is sure, the others are asked for the rest.

Unlike lazy voting it may give another answer than the vote. Its threshold is fitted on the search
half; what it changes is counted on both scorers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsearch.aliases import Floats
from ptsearch.benchmarks.parsing import margin
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import Table
from ptsearch.scoring import scores
from ptsearch.search.scorer import EnsembleScorer

MOST_CHANGED = 0.01  # share of the search half's answers that may differ from the vote's


def margins(table: Table, label: str) -> Floats:
    """(samples,) nats between a variant's two best labels; NaN where it replied in words."""
    return np.concatenate([margins_in(path) for path in table.outputs(label).values()])


def margins_in(path: Path) -> Floats:
    """The same of one predictions file."""
    said = predictions.read(path)
    pairs = zip(said["logprobs"].to_pylist(), said["offsets"].to_pylist(), strict=True)
    return np.array([margin(row, offsets) if row else np.nan for row, offsets in pairs])


def threshold(sure: Floats, changed: NDArray[np.bool_], most: float = MOST_CHANGED) -> float:
    """The least margin from which on at most a share `most` of all samples is changed.

    `sure` and `changed` (samples,): a member's margin, and whether its answer is not the vote's.
    Infinite where no margin will do.
    """
    usable = ~np.isnan(sure)
    levels, where = np.unique(sure[usable], return_inverse=True)
    wrong = np.bincount(where, weights=changed[usable], minlength=levels.size)
    beyond = wrong[::-1].cumsum()[::-1]  # changed at this level and all above
    allowed = levels[beyond <= most * sure.size]
    return float(allowed[0]) if allowed.size else float("inf")


def fit(
    table: Table,
    scorers: Sequence[EnsembleScorer],
    members: Sequence[str],
    sure: Mapping[str, Floats],
) -> dict[str, Any]:
    """The cascade of least expected latency; shares in percent, trust in points, by half.

    `scorers` are those of search and holdout, `sure` every member's `margins`.
    """
    search = scorers[0]
    votes = [scorer.vote(table, members) for scorer in scorers]
    times = {label: table.entries[label].meta["latency_ms"] for label in members}
    best: dict[str, Any] = {}
    for first in members:
        codes = table.entries[first].codes
        unusable = np.where(codes < 0, np.nan, sure[first])
        limit = threshold(unusable[search.mask], codes[search.mask] != votes[0])
        alone = [unusable[scorer.mask] >= limit for scorer in scorers]
        cost = times[first] + (1 - alone[0].mean()) * (sum(times.values()) - times[first])
        if not best or cost < best["latency_ms"]:
            best = {"first": first, "margin": limit, "latency_ms": float(cost)}
            chosen = alone
    codes = table.entries[best["first"]].codes
    for name, scorer, vote, its in zip(("search", "holdout"), scorers, votes, chosen, strict=True):
        given = np.where(its, codes[scorer.mask], vote)
        weights = table.config.trust.weights
        trust = [scores.score(scorer.asked, each, weights)["trust"] for each in (given, vote)]
        best[name] = {
            "alone": 100 * float(its.mean()),
            "changed": 100 * float((given != vote).mean()),
            "trust": trust[0] - trust[1],
        }
    return best
