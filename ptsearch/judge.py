"""What an ensemble is worth: members' answers voted and scored, and what they cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ptsearch import scores
from ptsearch.ballot import VOTES, Ballots, Fitted
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
    kv_bytes: int  # KV cache of one member
    search: "Judge | None" = None  # on whose half votes are fitted; None = on its own

    def __call__(self, table: Table, members: Sequence[str]) -> Scores:
        """All scores in percent, with `memory_gb` and `latency_ms`."""
        metas = [table.entries[label].meta for label in members]
        cost = scores.cost(metas, self.kv_bytes, self.config.latency.mode)
        voted = self.vote(table, members)
        found = scores.score(self.asked, voted, self.config.trust.weights) | cost._asdict()
        judged = [table.entries[label].judged for label in members]
        read = [each[self.mask] for each in judged if each is not None]
        return found | scores.judged_shares(self.asked, read)

    def vote(self, table: Table, members: Sequence[str]) -> Codes:
        """Answer codes (samples of this half,) of the ensemble; one member answers as itself."""
        ballots = self.ballots(table, members)
        if len(members) == 1:
            return ballots.said[0]
        return VOTES[self.config.vote.rule].cast(ballots, self.fitted(table, members))

    def fitted(self, table: Table, members: Sequence[str]) -> Fitted:
        """What the vote rule fits on the search half."""
        ballots = (self.search or self).ballots(table, members)
        return VOTES[self.config.vote.rule].fit(ballots, self.config.vote)

    def ballots(self, table: Table, members: Sequence[str]) -> Ballots:
        entries = [table.entries[label] for label in members]
        given = [entry.logprobs[self.mask] for entry in entries if entry.logprobs is not None]
        logprobs = np.stack(given) if len(given) == len(entries) else None
        return Ballots(self.asked, *self.answers(table, members), logprobs)

    def answers(self, table: Table, members: Sequence[str]) -> tuple[Codes, NDArray[np.float64]]:
        """Codes (members, samples of this half) and precision (members,) of each member."""
        entries = [table.entries[label] for label in members]
        said = np.stack([entry.codes[self.mask] for entry in entries])
        return said, np.array([entry.variant.precision for entry in entries])

    def unskilled(self, found: Mapping[str, float]) -> list[str]:
        return scores.unskilled(found, self.majority)


def judges(table: Table) -> tuple[Judge, Judge]:
    """The judges of the search half, which chooses, and of the holdout half, which reports."""
    found = halves(table)
    return found["search"], found["holdout"]


def halves(table: Table) -> dict[str, Judge]:
    """The judges of `search` and `holdout`, and of `all` samples, as published scores are made.

    ValueError: a half has no samples of some benchmark.
    """
    settings = table.config.benchmarks
    asked = scores.questions(table.benchmarks, settings.split.salt, settings.rules)
    kv_bytes = kv_bytes_per_token(table.base.path) * table.config.memory.context

    def judge(mask: NDArray[np.bool_], search: Judge | None = None) -> Judge:
        part = asked.where(mask)
        constant = scores.constant_scores(part, table.config.trust.weights)
        return Judge(part, mask, table.config, constant["majority class"], kv_bytes, search)

    for half, mask in (("search", ~asked.holdout), ("held-out", asked.holdout)):
        for name, rows in asked.scored().items():
            if not mask[rows].any():
                raise ValueError(
                    f"the {half} half has no samples of {name}: raise benchmarks.limit"
                )
    search = judge(~asked.holdout)
    return {
        "all": judge(np.ones_like(asked.holdout), search),
        "search": search,
        "holdout": judge(asked.holdout, search),
    }


def kv_bytes_per_token(checkpoint: Path) -> int:
    """Keys and values of one token in 16 bits, from the checkpoint's config.json."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return int(2 * 2 * config["num_hidden_layers"] * kv_heads * width)
