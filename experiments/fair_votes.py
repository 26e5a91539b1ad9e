"""Fairness by the vote itself, beside fairlearn's post-processing of the vote's shares.

    python experiments/fair_votes.py LIMIT [overrides ...]      # percent, as 5 pool=wide

Ensembles of three to five members are chosen on the search half: of those whose majority has a DPD
above the limit, the most accurate on the fairness benchmark. Each votes by majority, by label
weights (one for all, one a group) fitted to keep DPD within the limit, and through
`ThresholdOptimizer`, fitted to the same limit on the share of votes for label 1. The last two need
the protected attribute when they vote. Intervals are simultaneous, over all ensembles and scores.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from fairlearn.postprocessing import ThresholdOptimizer
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from sklearn.base import BaseEstimator, ClassifierMixin

from ptsearch import jobs
from ptsearch.config import CONF, Config, VoteConfig
from ptsearch.evaluation.table import Table
from ptsearch.evaluation.workers import quiet_libraries
from ptsearch.report import progress as bars
from ptsearch.report import terminal
from ptsearch.scoring import scores
from ptsearch.search import exact_front
from ptsearch.search.comparisons import differences
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.scorer import scorers as scorers_of
from ptsearch.search.study import Members
from ptsearch.shared import AnswerCodes

ENSEMBLES, SIZES = 10, (3, 5)


class Share(ClassifierMixin, BaseEstimator):
    """The given share of votes for label 1, as if it were a classifier's probability."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Share":
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.column_stack([1 - X[:, 0], X[:, 0]])


def main(limit: float, overrides: Sequence[str]) -> None:
    config = composed(overrides)
    with jobs.tables(config, bars.progress(terminal.console(stderr=True))) as (table, *_):
        table.ensure(table.variants)
        parts = scorers_of(table)
        scorers = parts["search"], parts["holdout"]
        chosen = choose(table, scorers[0], limit)
        rules = {
            "majority": VoteConfig(),
            "fair": VoteConfig("fair", max_dpd=limit),
            "fair by group": VoteConfig("fair", max_dpd=limit, by_group=True),
        }
        votes = {
            name: [[with_vote(scorer, vote).vote(table, members) for scorer in scorers]
                   for members in chosen]
            for name, vote in rules.items()
        }  # fmt: skip
        votes["ThresholdOptimizer"] = [
            optimized(table, scorers, members, limit) for members in chosen
        ]
        show(table, scorers, votes, limit)


def composed(overrides: Sequence[str]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", ["+study=pareto", *overrides]))
    assert isinstance(config, Config)
    return config


def choose(table: Table, search: EnsembleScorer, limit: float) -> list[Members]:
    every = exact_front.enumerate_scores(table, search)
    names = [f"fairness/{p.scenario.name}" for p in parity_parts(search)]
    dpd = np.max([every.scores[f"{name}.dpd"] for name in names], axis=0)
    accuracy = np.mean([every.scores[f"{name}.accuracy"] for name in names], axis=0)
    size = np.bitwise_count(every.masks)
    able = np.flatnonzero((dpd > limit) & (size >= SIZES[0]) & (size <= SIZES[1]))
    return [every.members(i) for i in able[np.argsort(-accuracy[able], kind="stable")][:ENSEMBLES]]


def parity_parts(scorer: EnsembleScorer) -> list[scores.Part]:
    return [part for part in scorer.asked.parts if part.scenario.metric == "parity"]


def with_vote(scorer: EnsembleScorer, vote: VoteConfig) -> EnsembleScorer:
    return replace(scorer, config=replace(scorer.config, vote=vote))


def optimized(
    table: Table, scorers: tuple[EnsembleScorer, EnsembleScorer], members: Members, limit: float
) -> list[AnswerCodes]:
    """The majority of either half, its parity scenarios answered by a ThresholdOptimizer that was
    fitted on search. It draws at random between two thresholds.
    """
    voted = [with_vote(scorer, VoteConfig()).vote(table, members).copy() for scorer in scorers]
    for parts in zip(*map(parity_parts, scorers), strict=True):
        made = None
        for scorer, part, codes in zip(scorers, parts, voted, strict=True):
            said, _ = scorer.answers(table, members)
            ones, zeros = ((said[:, part.rows] == label).sum(axis=0) for label in (1, 0))
            share = ((ones + 0.5) / (ones + zeros + 1))[:, None]
            group = scorer.asked.group[part.rows]
            if made is None:
                made = ThresholdOptimizer(
                    estimator=Share(), constraints="demographic_parity",
                    predict_method="predict_proba", tol=limit / 100,
                )  # fmt: skip
                gold = (scorer.asked.gold[part.rows] == 1).astype(int)
                made.fit(share, gold, sensitive_features=group)
            codes[part.rows] = made.predict(share, sensitive_features=group, random_state=0)
    return voted


def show(
    table: Table,
    scorers: tuple[EnsembleScorer, EnsembleScorer],
    votes: dict[str, list[list[AnswerCodes]]],
    limit: float,
) -> None:
    """A row for each vote and score: means over the ensembles."""
    holdout, count = scorers[1], len(votes["majority"])
    stacked = np.stack([both[1] for each in votes.values() for both in each])
    pairs = [(i, i % count) for i in range(count, len(stacked))]
    names = [f"fairness/{part.scenario.name}" for part in parity_parts(holdout)]
    keys = [f"{name}.{end}" for name in names for end in ("accuracy", "dpd", "eod")] + ["trust"]
    found = [{} for _ in range(count)] + differences(table, holdout, stacked, pairs, keys)
    say(f"{count} ensembles, DPD at most {limit:g} on search; differences from the majority on the")
    say("held-out half, and for how many of them the simultaneous 95 % interval excludes 0\n")
    say("| vote | score | search | held out | difference | lower | higher |")
    say("|---|---|---|---|---|---|---|")
    for place, (vote, each) in enumerate(votes.items()):
        measured = [
            [scores.score(scorer.asked, codes, scorer.config.trust.weights)
             for scorer, codes in zip(scorers, both, strict=True)]
            for both in each
        ]  # fmt: skip
        gains = found[place * count : (place + 1) * count]
        for key in keys:
            means = [np.mean([pair[half][key] for pair in measured]) for half in (0, 1)]
            own = [gain[key] for gain in gains if gain]
            mean = f"{np.mean([gain.estimate for gain in own]):+.1f}" if own else ""
            lower, higher = (sum(gain.high < 0 for gain in own), sum(gain.low > 0 for gain in own))
            row = (vote, key, f"{means[0]:.1f}", f"{means[1]:.1f}", mean, lower, higher)
            say("| " + " | ".join(map(str, row)) + " |")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    quiet_libraries()
    main(float(sys.argv[1]), sys.argv[2:])
