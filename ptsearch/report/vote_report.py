"""Another vote rule beside the paper's majority, for the same ensembles; what abstaining buys."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.aliases import AnswerCodes, Floats
from ptsearch.evaluation.table import Table
from ptsearch.scoring import metrics, scores
from ptsearch.search.comparisons import KEYS, Gain, differences
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.voting.votes import majority, margins

PARITY = (".dpd", ".eod", ".accuracy")  # of a scenario


class Against(NamedTuple):
    """Of each ensemble and score: under the rule, under the majority, on either half."""

    rows: list[dict[str, Any]]
    gains: list[dict[str, Gain]]  # by ensemble, on the holdout half, over the majority
    remarks: list[str]  # why gains are missing


class Curve(NamedTuple):
    """Percent. One point for each margin that occurs, the widest first."""

    margin: Floats
    coverage: Floats  # samples with that margin at least
    risk: Floats  # wrong votes among them
    aurc: float  # mean risk over all coverages, smaller is better


def against_majority(
    table: Table, scorers: tuple[EnsembleScorer, EnsembleScorer], ensembles: Sequence[Members]
) -> Against:
    """The study's rule against the majority; intervals hold over all ensembles and scores at once,
    DPD and EOD among them. The holdout half is read.
    """
    votes = {
        half: _both_votes(table, scorer, ensembles)
        for half, scorer in zip(("search", "holdout"), scorers, strict=True)
    }
    found = {
        f"{half}.{rule}": [
            scores.score(scorer.asked, each, scorer.config.trust.weights) for each in codes
        ]
        for (half, both), scorer in zip(votes.items(), scorers, strict=True)
        for rule, codes in zip(("rule", "majority"), both, strict=True)
    }
    parity = [p for p in scorers[1].asked.parts if p.scenario.metric == "parity"]
    known = [f"{p.benchmark}/{p.scenario.name}{end}" for p in parity for end in PARITY]
    keys = [k for k in (*KEYS, "refusal_rate", *known) if k in found["holdout.rule"][0]]
    pairs = [(i, len(ensembles) + i) for i in range(len(ensembles))]
    gains: list[dict[str, Gain]] = [{} for _ in ensembles]
    remarks = []
    try:
        gains = differences(table, scorers[1], np.concatenate(votes["holdout"]), pairs, keys)
    except ValueError as error:
        remarks.append(f"no intervals of the vote rule against the majority: {error}")
    rows: list[dict[str, str | float]] = [
        {
            "members": " + ".join(members),
            "score": key,
            **{name: each[i][key] for name, each in found.items()},
            **_gain_columns(gains[i].get(key)),
        }
        for i, members in enumerate(ensembles)
        for key in keys
    ]
    return Against(rows, gains, remarks)


def _both_votes(
    table: Table, scorer: EnsembleScorer, ensembles: Sequence[Members]
) -> tuple[AnswerCodes, AnswerCodes]:
    """Votes (ensembles, samples) under the study's rule, and under the majority."""
    ruled = [scorer.vote(table, members) for members in ensembles]
    plain = [majority(*scorer.answers(table, members)) for members in ensembles]
    return np.stack(ruled), np.stack(plain)


def _gain_columns(gain: Gain | None) -> dict[str, float]:
    return {} if gain is None else {f"gain.{key}": each for key, each in gain._asdict().items()}


def risk_coverage(table: Table, scorer: EnsembleScorer, members: Members) -> Curve:
    """Of the majority's margin as its confidence, on the scored samples."""
    said, precision = scorer.answers(table, members)
    asked = scorer.asked
    scored = np.concatenate(list(asked.scored().values()))
    voted = majority(said, precision)
    right = metrics.is_correct(voted, asked.gold, asked.n_labels, asked.abstain_ok)
    return curve(margins(said)[scored], ~right[scored])


def curve(confidence: Floats, wrong: NDArray[np.bool_]) -> Curve:
    """Risk by coverage and the area under it (Geifman and El-Yaniv 2017,
    https://arxiv.org/abs/1705.08500); equal confidences count as if in random order.
    """
    levels, place = np.unique(-confidence, return_inverse=True)
    size = np.bincount(place)
    errors = np.bincount(place, weights=wrong)
    covered = np.cumsum(size)
    expected = np.cumsum(np.repeat(errors / size, size))  # errors among the first 1, 2, ... n
    return Curve(
        margin=-levels,
        coverage=100.0 * covered / confidence.size,
        risk=100.0 * np.cumsum(errors) / covered,
        aurc=100.0 * float(np.mean(expected / np.arange(1, confidence.size + 1))),
    )
