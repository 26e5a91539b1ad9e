"""Where an ensemble's gain comes from: refusals dropped, errors mended, or another vote rule.

The paper drops what is no usable answer before it counts (arXiv 2511.22483) and does not say what
the vote itself is worth without that. So the same members vote again with nothing dropped.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE
from ptsearch.evaluation.table import Table
from ptsearch.scoring import scores
from ptsearch.scoring.scores import Scores
from ptsearch.search.comparisons import KEYS
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.voting.votes import majority, majority_counting


class Split(NamedTuple):
    """A gain in one score, in points; the three parts add up to it."""

    gain: float
    vote_rule: float  # the study's rule against the paper's majority; 0 where it is the majority
    refusals_dropped: float  # the majority against the same with no usable answer as a label
    errors_mended: float  # that vote against the baseline
    gain_refusal_label: float  # beside: only refusals are a label, the rest is dropped


def ledger(
    table: Table, scorer: EnsembleScorer, front: Sequence[Members], baselines: Mapping[str, Members]
) -> list[dict[str, dict[str, Split]]]:
    """For each ensemble, baseline -> score -> split of the gain on the scorer's half."""
    over = {name: scorer(table, members) for name, members in baselines.items()}
    found = []
    for members in front:
        under = votes(table, scorer, members)
        keys = [key for key in KEYS if key in under["rule"]]
        found.append(
            {
                name: {key: _split({rule: under[rule][key] for rule in under}, base[key])
                       for key in keys}
                for name, base in over.items()
            }
        )  # fmt: skip
    return found


def votes(table: Table, scorer: EnsembleScorer, members: Members) -> dict[str, Scores]:
    """Scores of the ensemble under the study's rule, the majority, and the majority that counts
    what gives no usable answer, or refusals alone, as one more label.
    """
    said, precision = scorer.answers(table, members)
    every = (REFUSED, UNUSABLE, CONTRADICTORY)
    voted = {
        "rule": scorer.vote(table, members),
        "majority": majority(said, precision) if len(members) > 1 else said[0],
        "unfiltered": majority_counting(said, precision, every),
        "refusal label": majority_counting(said, precision, (REFUSED,)),
    }
    weights = scorer.config.trust.weights
    return {name: scores.score(scorer.asked, codes, weights) for name, codes in voted.items()}


def _split(under: Mapping[str, float], base: float) -> Split:
    return Split(
        gain=under["rule"] - base,
        vote_rule=under["rule"] - under["majority"],
        refusals_dropped=under["majority"] - under["unfiltered"],
        errors_mended=under["unfiltered"] - base,
        gain_refusal_label=under["refusal label"] - base,
    )


def mean_split(splits: Sequence[Split]) -> Split:
    return Split(*np.mean(np.array(splits), axis=0).tolist())
