"""The trials of a study, by any number of processes: each claims an ensemble before it works on it.

A claim is a running trial that says whose it is. Claims are made one at a time, so that no ensemble
is tried twice and the budget is not exceeded; those of a process that has died are given up.
"""

import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ptsearch.config import StudyConfig
from ptsearch.evaluation.table import Table
from ptsearch.scoring.scores import Scores
from ptsearch.search.database import UNSHARED, Locks
from ptsearch.search.objectives import chosen_objectives
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import CompletedTrial, Members, completed, constraints, study_config

REPEATS_BEFORE_RANDOM = 3  # a sampler that has converged proposes what it knows
DRAWS = 100  # random ensembles before all are gone through for one that was not tried
WAIT_SECONDS = 0.5  # between looks whether other processes have ended their trials
CLAIM = "claim"  # user attribute of a trial: whose it is, and of which ensemble

Seen = Callable[[CompletedTrial, Scores, bool], str]  # trial, its scores, feasible -> id of its run
GivenUp = Callable[[set[int], set[int]], None]  # numbers of trials given up, of those at work


@dataclass(frozen=True)
class Search:
    """A study, what answers its trials, and who else works on it."""

    study: optuna.Study
    table: Table
    scorer: EnsembleScorer
    on_trial: Seen
    locks: Locks = UNSHARED
    on_given_up: GivenUp = lambda dead, at_work: None


def search(run: Search, first: Iterable[Members] | None = None) -> None:
    """Run trials until `study.trials` of them are complete, or every ensemble has been tried;
    those of other processes count, and are waited for. Before the sampler is asked, `first`:
    every single variant, if not given.
    """
    run.table.ensure(label for trial in completed(run.study) for label in trial.members)
    if first is None:
        first = _first(list(run.table.variants), study_config(run.table.config))
    _Loop(run, deque(first)).work()


def add_trials(run: Search, ensembles: Sequence[Members]) -> None:
    """Trials of given ensembles that were not tried yet, beside those of the sampler."""
    _Loop(run, deque(ensembles), by_sampler=False).work()


def named(run: Search, members: Members) -> CompletedTrial:
    """The trial of a given ensemble, made if there is none yet."""
    add_trials(run, [members])
    return next(trial for trial in completed(run.study) if trial.members == members)


def at_work(run: Search, leaving: bool = False) -> list[FrozenTrial]:
    """The trials that processes work on; those of dead ones fail, and of this one if it is leaving.
    To be called while alone: a trial without a claim is then one whose process died in between.
    """
    mine, alive, dead = run.locks.process, list[FrozenTrial](), list[FrozenTrial]()
    for trial in run.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        process = trial.user_attrs.get(CLAIM, {}).get("process")
        left = process is None or (leaving and process == mine) or run.locks.is_dead(process)
        (dead if left else alive).append(trial)
    if dead:
        run.on_given_up({trial.number for trial in dead}, {trial.number for trial in alive})
    for trial in dead:
        run.study.tell(trial.number, state=TrialState.FAIL)
    return alive


@dataclass
class _Loop:
    """Trials of the ensembles in `queue`, then of what the sampler proposes."""

    run: Search
    queue: deque[Members]
    by_sampler: bool = True
    seen: set[int] = field(default_factory=set)  # finished trials that were looked at
    tried: set[Members] = field(default_factory=set)
    claimed: set[Members] = field(default_factory=set)  # by a process that is at work
    proposed: int = 0  # trials by the sampler, complete
    expected: int = 0  # and claimed
    last: int = 0  # number of the newest trial
    repeats: int = 0  # how often in a row nothing new came up

    def work(self) -> None:
        while claim := self.claim():
            self.repeats = 0 if self.is_complete(*claim) else self.repeats + 1

    def claim(self) -> tuple[Trial, Members] | None:
        """A new trial and its ensemble, which nobody else tries; None = nothing is left to try."""
        while True:
            with self.run.locks.alone():
                self.look()
                if self.is_done():
                    return None
                waits = self.is_claimed()
                if not waits and (claim := self.ask()):
                    return claim
            if waits:
                self.run.table.report("waiting for other processes", 0, len(self.claimed))
                time.sleep(WAIT_SECONDS)

    def look(self) -> None:
        """What all processes have tried, and what they are trying."""
        claims = [trial.user_attrs[CLAIM] for trial in at_work(self.run)]
        self.claimed = {tuple(claim["members"]) for claim in claims}
        for trial in self.run.study.get_trials(deepcopy=False):
            if not trial.state.is_finished() or trial.number in self.seen:
                continue
            self.seen.add(trial.number)
            self.last = trial.number
            found = trial.user_attrs.get("found", {}) if trial.state == TrialState.COMPLETE else {}
            if members := found.get("members", trial.user_attrs.get("unscored")):
                self.tried.add(tuple(members))
            self.proposed += found.get("by_sampler", False)
        self.expected = self.proposed + sum(claim["by_sampler"] for claim in claims)
        while self.queue and (
            self.queue[0] in self.tried or self.voting(self.queue[0]) != self.queue[0]
        ):
            self.queue.popleft()

    def is_done(self) -> bool:
        if not self.by_sampler:
            return not self.queue
        return self.has_enough(self.proposed) or (not self.claimed and self.unseen(0) is None)

    def is_claimed(self) -> bool:
        """Whether other processes are trying all that is left to try."""
        if not self.by_sampler:
            return self.unclaimed() is None
        return self.has_enough(self.expected) or self.unseen(0) is None

    def has_enough(self, proposed: int) -> bool:
        return self.settings.sampler != "exhaustive" and proposed >= self.settings.trials

    def unclaimed(self) -> Members | None:
        return next((members for members in self.queue if members not in self.claimed), None)

    def ask(self) -> tuple[Trial, Members] | None:
        """The next of the queue, else what the sampler proposes, after a few repeats in a row
        something random; None = that was tried.
        """
        given = self.unclaimed()
        if not given and self.repeats >= REPEATS_BEFORE_RANDOM:
            given = self.unseen(self.last)
        if given:
            self.run.study.enqueue_trial({v: v in given for v in self.run.table.variants})
        trial = self.run.study.ask()
        labels = self.run.table.variants
        chosen = [label for label in labels if trial.suggest_categorical(label, [False, True])]
        if members := self.claim_for(trial, self.voting(chosen)):
            return trial, members
        self.repeats += 1
        return None

    def claim_for(self, trial: Trial, members: Members) -> Members | None:
        """Claim an ensemble; the trial is pruned if it was tried or claimed already."""
        if not members or members in self.tried or members in self.claimed:
            self.run.study.tell(trial, state=TrialState.PRUNED)
            return None
        claim = {"process": self.run.locks.process, "members": members}
        trial.set_user_attr(CLAIM, {**claim, "by_sampler": self.by_sampler})
        return members

    def is_complete(self, trial: Trial, members: Members) -> bool:
        """Score the ensemble and record it; False = some of it may not vote, and without those it
        is another's, or it has no score.
        """
        table, scorer = self.run.table, self.run.scorer
        table.ensure(members)
        if (voting := self.voting(members)) != members:
            with self.run.locks.alone():
                self.look()
                if not self.claim_for(trial, voting):
                    return False
        scores, names = scorer(table, voting), chosen_objectives(self.settings)
        if any(math.isnan(scores[name]) for name in names):
            # The published rules have no score where nothing is answered.
            trial.set_user_attr("unscored", voting)
            self.run.study.tell(trial, state=TrialState.PRUNED)
            return False
        violations = constraints(self.settings, voting, scores, scorer)
        for name, value in violations.items():
            trial.set_constraint(name, value)
        new = CompletedTrial(trial.number, voting, "", self.by_sampler)
        run_id = self.run.on_trial(new, scores, max(violations.values()) <= 0)
        trial.set_user_attr("found", asdict(replace(new, run_id=run_id)))
        self.run.study.tell(trial, [scores[name] for name in names])
        return True

    def voting(self, members: Iterable[str]) -> Members:
        """Without those that may not vote."""
        degenerate = self.run.table.degenerate()
        return tuple(label for label in members if label not in degenerate)

    def unseen(self, seed: int) -> Members | None:
        """A random ensemble of a permitted size that nobody has claimed; None = there is none."""
        settings, rng = self.settings, random.Random(seed)
        labels, taken = self.voting(self.run.table.variants), self.tried | self.claimed
        sizes = range(settings.min_members, min(settings.max_members, len(labels)) + 1)
        for _ in range(DRAWS if sizes else 0):
            drawn = set(rng.sample(labels, rng.choice(sizes)))
            members = tuple(label for label in labels if label in drawn)
            if members not in taken:
                return members
        everything = (m for size in sizes for m in itertools.combinations(labels, size))
        return next((members for members in everything if members not in taken), None)

    @property
    def settings(self) -> StudyConfig:
        return study_config(self.run.table.config)


def _first(labels: Sequence[str], search: StudyConfig) -> Iterable[Members]:
    """What is tried before the sampler is asked: every single variant, or everything."""
    largest = search.max_members if search.sampler == "exhaustive" else 1
    sizes = range(1, min(largest, len(labels)) + 1)
    return itertools.chain.from_iterable(itertools.combinations(labels, n) for n in sizes)
