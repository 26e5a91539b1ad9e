"""Splits an ensemble's gain: refusals dropped, errors corrected, and the vote rule.

The paper drops replies without a usable answer before counting votes (arXiv 2511.22483) and does
not report the vote without that. So the same members vote again with nothing dropped.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE
from ptsearch.evaluation.table import Table
from ptsearch.scoring import scores
from ptsearch.scoring.refusals import ballots, outcomes
from ptsearch.scoring.scores import Scores
from ptsearch.search.comparisons import judged
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.voting.votes import majority, majority_counting


class Split(NamedTuple):
    """A gain in one score, in points; the three parts add up to it."""

    gain: float
    vote_rule: float  # the study's rule against the paper's majority; 0 where it is the majority
    refusals_dropped: float  # the majority against one that counts unusable replies
    errors_corrected: float  # that vote against the baseline
    gain_refusal_label: float  # where refusals are a label and other unusable replies are dropped


def gain_splits(
    table: Table, scorer: EnsembleScorer, front: Sequence[Members], baselines: Mapping[str, Members]
) -> list[dict[str, dict[str, Split]]]:
    """For each ensemble, baseline -> score -> split of the gain on the scorer's half."""
    over = {name: scorer(table, members) for name, members in baselines.items()}
    splits = []
    for members in front:
        under = votes(table, scorer, members)
        keys = [key for key in judged(table) if key in under["rule"]]
        splits.append(
            {
                name: {key: _split({rule: under[rule][key] for rule in under}, base[key])
                       for key in keys}
                for name, base in over.items()
            }
        )  # fmt: skip
    return splits


def votes(table: Table, scorer: EnsembleScorer, members: Members) -> dict[str, Scores]:
    """Scores of the ensemble under the study's rule, the majority, and the majority that counts
    replies without a usable answer, or refusals alone, as one more label.
    """
    answers, precision = scorer.answers(table, members)
    known = scorer.asked.refusals
    voted = outcomes(majority(ballots(answers, known), precision), answers, known)
    unusable = (REFUSED, UNUSABLE, CONTRADICTORY)
    each = {
        "rule": scorer.vote(table, members),
        "majority": voted if len(members) > 1 else answers[0],
        "unfiltered": majority_counting(answers, precision, unusable),
        "refusal label": majority_counting(answers, precision, (REFUSED,)),
    }
    weights = scorer.config.trust.weights
    return {name: scores.score(scorer.asked, codes, weights) for name, codes in each.items()}


def _split(under: Mapping[str, float], base: float) -> Split:
    return Split(
        gain=under["rule"] - base,
        vote_rule=under["rule"] - under["majority"],
        refusals_dropped=under["majority"] - under["unfiltered"],
        errors_corrected=under["unfiltered"] - base,
        gain_refusal_label=under["refusal label"] - base,
    )
