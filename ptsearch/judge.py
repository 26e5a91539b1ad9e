"""What an ensemble is worth: members' answers voted and scored, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptsearch import scores, voting
from ptsearch.config import Config
from ptsearch.scores import Questions, Scores
from ptsearch.table import Table
from ptsearch.voting import Codes


@dataclass(frozen=True)
class Judge:
    """Scores ensembles on one half of the samples, or on all; an ensemble is a tuple of labels."""

    asked: Questions
    mask: NDArray[np.bool_]  # (samples,) which half
    config: Config
    majority: Scores  # of always giving each scenario's most frequent label

    def __call__(self, table: Table, members: Sequence[str]) -> Scores:
        """All scores in percent, with `memory_gb` and `latency_ms`."""
        metas = [table.entries[label].meta for label in members]
        cost = scores.cost(metas, self.config.latency.mode)
        voted = self.vote(table, members)
        found = scores.score(self.asked, voted, self.config.trust.weights) | cost._asdict()
        judged = [table.entries[label].judged for label in members]
        read = [each[self.mask] for each in judged if each is not None]
        return found | scores.judged_shares(self.asked, read)

    def vote(self, table: Table, members: Sequence[str]) -> Codes:
        """Answer codes (samples of this half,) of the ensemble; one member answers as itself."""
        entries = [table.entries[label] for label in members]
        said = np.stack([entry.codes[self.mask] for entry in entries])
        precision = np.array([entry.variant.precision for entry in entries])
        return voting.majority(said, precision) if len(members) > 1 else said[0]

    def unskilled(self, found: Mapping[str, float]) -> list[str]:
        return scores.unskilled(found, self.majority)


def judges(table: Table) -> tuple[Judge, Judge]:
    """The judges of the search half, which chooses, and of the holdout half, which reports."""
    found = halves(table)
    return found["search"], found["holdout"]


def halves(table: Table) -> dict[str, Judge]:
    """The judges of `search` and `holdout`, and of `all` samples, as published scores are made."""
    settings = table.config.benchmarks
    asked = scores.questions(table.benchmarks, settings.split.salt, settings.rules)

    def judge(mask: NDArray[np.bool_]) -> Judge:
        part = asked.where(mask)
        constant = scores.constant_scores(part, table.config.trust.weights)
        return Judge(part, mask, table.config, constant["majority class"])

    return {
        "all": judge(np.ones_like(asked.holdout)),
        "search": judge(~asked.holdout),
        "holdout": judge(asked.holdout),
    }
