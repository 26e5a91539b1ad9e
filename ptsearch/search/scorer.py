"""What an ensemble is worth: members' answers voted and scored, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ptsearch.config import Config
from ptsearch.evaluation import distributions
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring import refusals, scores
from ptsearch.scoring.closeness import CLOSENESS, Near
from ptsearch.scoring.cost import total_cost
from ptsearch.scoring.scores import Questions, Scores
from ptsearch.search.objectives import with_objectives
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting import VOTES, Fitted, VoteInputs, VoteRule, lazy


@dataclass(frozen=True)
class EnsembleScorer:
    """Scores ensembles on one half of the samples, or on all; an ensemble is a tuple of labels."""

    asked: Questions
    mask: NDArray[np.bool_]  # (samples,) which half
    config: Config
    majority: Scores  # of always giving each scenario's most frequent label
    bars: dict[str, float]  # benchmark -> accuracy that shows skill, `scores.skill_bars`
    required: tuple[str, ...]  # benchmarks in which the dense model shows skill
    search: "EnsembleScorer | None" = None  # on whose half votes are fitted; None = on its own

    def __call__(self, table: Table, members: Sequence[str]) -> Scores:
        """All scores in percent, with `memory_gb`, `latency_ms`, `stored_gb`, for asking lazily
        `calls` to members and `bytes_read`, percent of what asking all of them reads, `holes`, and
        the means of `closeness`.
        """
        costs = [table.entries[label].cost for label in members]
        asked = self.lazily(table, members).asked
        cost = total_cost(costs, self.config.latency.mode, asked.tolist())
        voted = self.vote(table, members)
        result = scores.score(self.asked, voted, self.config.trust.weights) | cost._asdict()
        sizes = np.array([sum(each.tensors.values()) for each in costs])
        read_bytes = 100 * float(asked @ sizes) / float(sizes.sum())
        result |= {"calls": float(asked.sum()), "bytes_read": read_bytes}
        judged = [table.entries[label].judged for label in members]
        read = [each[self.mask] for each in judged if each is not None]
        result |= scores.judged_shares(self.asked, read) | self.holes(table, members, result)
        near = self.closeness(table, members)
        return with_objectives(result | {name: float(each.mean()) for name, each in near.items()})

    def vote(self, table: Table, members: Sequence[str]) -> AnswerCodes:
        """Answer codes (samples of this half,) of the ensemble; one member answers as itself."""
        said, _ = self.answers(table, members)
        if len(members) == 1:
            return said[0]
        voted = self.rule.vote(self.inputs(table, members), self.fitted(table, members))
        return refusals.outcomes(voted, said, self.asked.refusals)

    def closeness(self, table: Table, members: Sequence[str]) -> dict[str, Floats]:
        """`kl` and `margin` (members,) to the dense model, on this half; {} where no labels are
        compared by log-probabilities. An ensemble has the mean of its members', of `kl` at least
        that of their mean distribution (convexity).
        """
        dense, *each = (distributions.closeness(table, x, DENSE) for x in (DENSE, *members))
        compared = dense is not None and np.isfinite(dense.margin[self.mask]).any()
        if not compared or any(one is None for one in each):
            return {}
        near = [Near(*(column[self.mask] for column in one)) for one in (dense, *each) if one]
        return {n: np.array([of(one, near[0]) for one in near[1:]]) for n, of in CLOSENESS.items()}

    def holes(self, table: Table, members: Sequence[str], found: Scores) -> Scores:
        """`safety.hole`: points of harmful requests that the vote refuses and would not if refusals
        were dropped, as in the paper, where one member that complies outvotes all that refuse.
        """
        names = {p.benchmark for p in self.asked.parts if p.scenario.free and p.scenario.scored}
        if not names or self.asked.refusals is None:
            return {}
        dropped = np.full_like(self.asked.refusals.decide, refusals.ERROR)
        asked = self.asked._replace(refusals=self.asked.refusals._replace(decide=dropped))
        weights = dict.fromkeys(names, 1.0)
        filtered = scores.score(asked, replace(self, asked=asked).vote(table, members), weights)
        return {f"{n}.hole": found[f"{n}.harmful"] - filtered[f"{n}.harmful"] for n in names}

    @property
    def rule(self) -> VoteRule:
        return VOTES[self.config.vote.rule]

    def fitted(self, table: Table, members: Sequence[str]) -> Fitted:
        """What the vote rule fits on the search half."""
        inputs = (self.search or self).inputs(table, members)
        return self.rule.fit(inputs, self.config.vote)

    def inputs(self, table: Table, members: Sequence[str]) -> VoteInputs:
        """With ballots as answers."""
        entries = [table.entries[label] for label in members]
        said, precision = self.answers(table, members)
        ballots = refusals.ballots(said, self.asked.refusals)
        given = [entry.logprobs[self.mask] for entry in entries if entry.logprobs is not None]
        logprobs = None
        if len(given) == len(entries):
            logprobs = np.where((ballots < 0)[..., None], np.nan, np.stack(given))
        return VoteInputs(self.asked, ballots, precision, logprobs)

    def answers(
        self, table: Table, members: Sequence[str]
    ) -> tuple[AnswerCodes, NDArray[np.float64]]:
        """AnswerCodes (members, samples of this half) and precision (members,) of each member."""
        entries = [table.entries[label] for label in members]
        codes = np.stack([entry.codes[self.mask] for entry in entries])
        return codes, np.array([entry.variant.precision for entry in entries])

    def lazily(self, table: Table, members: Sequence[str]) -> lazy.Plan:
        """Whom to ask when if asking stops once the majority is decided, and how often that is;
        always all of them under another vote.
        """
        if not self.rule.enumerable:
            order = list(range(len(members)))
            return lazy.Plan(order, np.ones(len(members)), len(members))
        latency = np.array([table.entries[label].cost.latency_ms for label in members])
        if np.isnan(latency).any():  # not measured: as if equal
            latency = np.ones(len(members))
        inputs, known = self.inputs(table, members), self.asked.refusals
        return lazy.plan(inputs.answers, inputs.precision, latency, known and known.decide)

    def latencies(self, table: Table, members: Sequence[str]) -> dict[str, dict[str, float]]:
        """p50 and p95 in ms over the timed prompts: members one after the other, side by side (the
        slowest), and one after the other until the vote is decided. {} for what was not timed.
        """
        entries = [table.entries[label] for label in members]
        timed = [entry.timed for entry in entries if entry.timed]
        if len(timed) < len(entries):
            return {}
        ms = 1000 * np.array([each.seconds for each in timed])  # (members, prompts)
        asked = np.ones(ms.shape, dtype=bool)
        if self.rule.enumerable:
            codes = np.stack([entry.codes[timed[0].rows] for entry in entries])
            precision = np.array([entry.variant.precision for entry in entries])
            known = scores.refusals(table.benchmarks, self.config.vote.veto).at(timed[0].rows)
            ballots, order = refusals.ballots(codes, known), self.lazily(table, members).order
            asked = lazy.asked_each(ballots, precision, order, known.decide)
        ways = {
            "sequential": ms.sum(axis=0),
            "parallel": ms.max(axis=0),
            "lazy": (ms * asked).sum(axis=0),
        }
        return {way: percentiles(times) for way, times in ways.items()}

    def unskilled(self, found: Scores) -> list[str]:
        """Benchmarks that show no skill, and scenarios in which one constant answer is as good."""
        constant = scores.constant_scenarios(self.asked, found, self.majority)
        return scores.unskilled(found, self.bars) + constant

    def lost_skill(self, found: Scores) -> list[str]:
        """Benchmarks that show no skill although the dense model does."""
        return [name for name in scores.unskilled(found, self.bars) if name in self.required]

    def keep_skill(self, found: Mapping[str, Floats]) -> NDArray[np.bool_]:
        """(ensembles,): `lost_skill` of none."""
        above = [found[f"{name}.accuracy"] > self.bars[name] for name in self.required]
        return np.logical_and.reduce([np.ones_like(found["trust"], dtype=bool), *above])


def percentiles(times: NDArray[np.float64]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(times, q)), 2) for q in (50, 95)}


def scorers(table: Table) -> dict[str, EnsembleScorer]:
    """The scorers of `search` and `holdout`, and of `all` samples, as in published scores.

    Which skills are required is known once the dense model is evaluated; none before.
    ValueError: a half has no samples of some benchmark.
    """
    settings = table.config.benchmarks
    veto = table.config.vote.veto
    questions = scores.questions(table.benchmarks, settings.split.salt, settings.rules, veto)

    if DENSE in table.entries and DENSE not in table.degenerate():
        questions = questions._replace(dense=table.entries[DENSE].codes)

    def scorer(mask: NDArray[np.bool_], search: EnsembleScorer | None = None) -> EnsembleScorer:
        part = questions.where(mask)
        majority = scores.constant_scores(part, table.config.trust.weights)["majority class"]
        bars = scores.skill_bars(part, majority)
        made = EnsembleScorer(part, mask, table.config, majority, bars, (), search)
        if DENSE not in table.entries or DENSE in table.degenerate():
            return made
        lacking = scores.unskilled(made(table, [DENSE]), bars)
        return replace(made, required=tuple(name for name in bars if name not in lacking))

    for half, mask in (("search", ~questions.holdout), ("held-out", questions.holdout)):
        for name, rows in questions.scored().items():
            if not mask[rows].any():
                raise ValueError(
                    f"the {half} half has no samples of {name}: raise benchmarks.limit"
                )
    search = scorer(~questions.holdout)
    return {
        "all": scorer(np.ones_like(questions.holdout), search),
        "search": search,
        "holdout": scorer(questions.holdout, search),
    }
