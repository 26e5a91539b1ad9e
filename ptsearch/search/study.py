"""The Optuna study: which ensemble to try next, and what was found.

A trial switches each pool member on or off. Its objectives come from the search half alone.
"""

import itertools
import json
import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event

from ptsearch import store
from ptsearch.benchmarks import Benchmark
from ptsearch.config import Config, StudyConfig
from ptsearch.evaluation.table import Table
from ptsearch.scoring.cost import Cost
from ptsearch.scoring.scores import Scores, constant_scores, questions
from ptsearch.search.objectives import OBJECTIVES, chosen_objectives, directions
from ptsearch.search.scorer import EnsembleScorer

if TYPE_CHECKING:
    from sqlite3 import Connection

HEARTBEAT_SECONDS = 60
REPEATS_BEFORE_RANDOM = 3  # a sampler that has converged proposes what it knows
DRAWS = 100  # random ensembles before all are gone through for one that was not tried

Members = tuple[str, ...]


@dataclass(frozen=True)
class CompletedTrial:
    """A finished trial."""

    number: int
    members: Members
    run_id: str
    by_sampler: bool = True  # else it was added because it is on the true front


Seen = Callable[[CompletedTrial, Scores, bool], str]  # trial, its scores, feasible -> id of its run


def unsaved(search: StudyConfig) -> optuna.Study:
    """A study that is kept nowhere."""
    return optuna.create_study(
        directions=directions(chosen_objectives(search)),
        sampler=SAMPLERS[search.sampler](search.seed),
    )


def open_study(config: Config, url: str, settings: Mapping[str, object]) -> optuna.Study:
    """Create or resume the study; other settings under the same name are a ValueError."""
    search = study_config(config)
    study = optuna.create_study(
        storage=open_storage(url),
        study_name=search.name,
        directions=directions(chosen_objectives(search)),
        load_if_exists=True,
    )
    flat = json.loads(json.dumps(_flatten(settings)))
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_metric_names(chosen_objectives(search))
        study.set_user_attr("settings", flat)
        before = flat
    # A setting that is not there is None.
    if changed := sorted(k for k in before.keys() | flat.keys() if before.get(k) != flat.get(k)):
        now = ", ".join(f"{k} ({before.get(k)}, now {flat.get(k)})" for k in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"study {search.name!r} was run with other settings: {now}{more}; "
            f"give this one its own name with study.name=NAME"
        )
    study.sampler = SAMPLERS[search.sampler](search.seed + len(study.get_trials(deepcopy=False)))
    return study


def load_study(name: str, url: str) -> optuna.Study:
    """A study that was run before; an unknown name is a ValueError that lists what there is."""
    storage = open_storage(url)
    names = optuna.get_all_study_names(storage)
    if name not in names:
        raise ValueError(f"no study {name!r}; there are: {', '.join(names) or 'none'}")
    return optuna.load_study(study_name=name, storage=storage)


def open_storage(url: str) -> RDBStorage:
    """Optuna's storage; SQLite writes ahead and waits, so that several processes can share it."""
    sqlite = url.startswith("sqlite")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeat, metric names
    with store.database(url, RDBStorage):
        storage = RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else None,
            heartbeat_interval=HEARTBEAT_SECONDS,
        )
    if sqlite:

        @event.listens_for(storage.engine, "connect")
        def write_ahead(connection: "Connection", _: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        storage.engine.dispose()  # connections made before the listener
    return storage


def search(study: optuna.Study, table: Table, scorer: EnsembleScorer, on_trial: Seen) -> None:
    """Run trials until `study.trials` of them are complete, or every ensemble has been tried."""
    before = completed(study)
    table.ensure(label for trial in before for label in trial.members)  # of a resumed study
    run = _Search(
        table, scorer, on_trial, {trial.members for trial in before} | unscored(study),
        proposed=sum(trial.by_sampler for trial in before),
    )  # fmt: skip
    if not study.trials:
        for members in _first(list(table.variants), study_config(table.config)):
            study.enqueue_trial(run.switches(members))
    if not run.is_done():
        study.optimize(run.objective, callbacks=[run.afterwards])


def add_trials(
    study: optuna.Study,
    table: Table,
    scorer: EnsembleScorer,
    on_trial: Seen,
    ensembles: Sequence[Members],
) -> None:
    """Trials of given ensembles that were not tried yet, beside those of the sampler."""
    if ensembles:
        seen = {trial.members for trial in completed(study)}
        run = _Search(table, scorer, on_trial, seen, by_sampler=False)
        for members in ensembles:
            study.enqueue_trial(run.switches(members))
        study.optimize(run.objective, n_trials=len(ensembles))


def named(
    study: optuna.Study, table: Table, scorer: EnsembleScorer, on_trial: Seen, members: Members
) -> CompletedTrial:
    """The trial of a given ensemble, made if there is none yet."""
    if all(trial.members != members for trial in completed(study)):
        add_trials(study, table, scorer, on_trial, [members])
    return next(trial for trial in completed(study) if trial.members == members)


@dataclass
class _Search:
    """The state of a search: what has been tried, and how often in a row nothing new came up."""

    table: Table
    scorer: EnsembleScorer
    on_trial: Seen
    seen: set[Members]
    proposed: int = 0  # of them, by the sampler
    repeats: int = 0
    by_sampler: bool = True

    def objective(self, trial: Trial) -> list[float]:
        settings, labels = study_config(self.table.config), list(self.table.variants)
        chosen = [label for label in labels if trial.suggest_categorical(label, [False, True])]
        self.table.ensure(chosen)
        degenerate = self.table.degenerate()
        members = tuple(label for label in chosen if label not in degenerate)
        if not members or members in self.seen:
            raise optuna.TrialPruned
        scores = self.scorer(self.table, members)
        if any(math.isnan(scores[name]) for name in chosen_objectives(settings)):
            self.seen.add(members)  # the published rules have no score where nothing is answered
            trial.set_user_attr("unscored", members)
            raise optuna.TrialPruned
        violations = constraints(settings, members, scores, self.scorer)
        for name, value in violations.items():
            trial.set_constraint(name, value)
        feasible = all(value <= 0 for value in violations.values())
        new = CompletedTrial(trial.number, members, "", self.by_sampler)
        trial.set_user_attr(
            "found", asdict(replace(new, run_id=self.on_trial(new, scores, feasible)))
        )
        self.seen.add(members)
        self.proposed += self.by_sampler
        return [scores[name] for name in chosen_objectives(settings)]

    def afterwards(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Stop when done; after a few repeats in a row, something random instead."""
        self.repeats = 0 if trial.state == TrialState.COMPLETE else self.repeats + 1
        if self.is_done():
            study.stop()
        elif self.repeats >= REPEATS_BEFORE_RANDOM:
            study.enqueue_trial(self.switches(self.unseen(trial.number) or ()))

    def is_done(self) -> bool:
        settings = study_config(self.table.config)
        enough = settings.sampler != "exhaustive" and self.proposed >= settings.trials
        return enough or self.unseen(0) is None

    def labels(self) -> list[str]:
        """The members that may vote, in the pool's order."""
        degenerate = self.table.degenerate()
        return [label for label in self.table.variants if label not in degenerate]

    def unseen(self, seed: int) -> Members | None:
        """A random ensemble of a permitted size that was not tried yet; None if there is none."""
        settings, labels, rng = study_config(self.table.config), self.labels(), random.Random(seed)
        sizes = range(settings.min_members, min(settings.max_members, len(labels)) + 1)
        for _ in range(DRAWS if sizes else 0):
            drawn = set(rng.sample(labels, rng.choice(sizes)))
            members = tuple(label for label in labels if label in drawn)
            if members not in self.seen:
                return members
        everything = (m for size in sizes for m in itertools.combinations(labels, size))
        return next((members for members in everything if members not in self.seen), None)

    def switches(self, members: Members) -> dict[str, bool]:
        return {label: label in members for label in self.table.variants}


def completed(study: optuna.Study) -> list[CompletedTrial]:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [_completed(trial) for trial in trials]


def unscored(study: optuna.Study) -> set[Members]:
    """Ensembles that were tried and have no score under the rules."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return {tuple(t.user_attrs["unscored"]) for t in trials if "unscored" in t.user_attrs}


def front(study: optuna.Study) -> list[CompletedTrial]:
    """The feasible trials that no finished feasible trial dominates."""
    return [_completed(trial) for trial in study.best_trials]


def constraints(
    search: StudyConfig, members: Members, scores: Scores, scorer: EnsembleScorer
) -> Scores:
    """Violations, one a limit: at most 0 where the limit holds."""
    violations = {"max_members": float(len(members) - search.max_members)}
    if search.min_members > 1:
        violations["min_members"] = float(search.min_members - len(members))
    for name, limit in limits(search.min).items():
        violations[f"min.{name}"] = limit - scores[name]
    for name, limit in limits(search.max).items():
        violations[f"max.{name}"] = scores[name] - limit
    if search.min_skill == "require":
        violations["unskilled"] = float(len(scorer.unskilled(scores)))
    return violations


def permits(search: StudyConfig, members: Members, scores: Scores, scorer: EnsembleScorer) -> bool:
    return max(constraints(search, members, scores, scorer).values()) <= 0


def check_limits(config: Config, benchmarks: Sequence[Benchmark]) -> None:
    """ValueError: a limit on a metric that these benchmarks do not give."""
    search, settings = study_config(config), config.benchmarks
    if not limits(search.min) and not limits(search.max):
        return
    all_questions = questions(benchmarks, settings.split.salt, settings.rules)
    scores = constant_scores(all_questions, config.trust.weights)["majority class"]
    known = dict.fromkeys((*OBJECTIVES, *Cost._fields, *scores))
    for side, given in (("min", search.min), ("max", search.max)):
        for name in limits(given):
            if name not in known:
                shown = ", ".join(n for n in known if "/" not in n and "." not in n)
                raise ValueError(
                    f"study.{side}.{name}: no benchmark here gives {name}; known are {shown}"
                )


def limits(given: Mapping[str, float | None]) -> dict[str, float]:
    """The limits of `study.min` or `study.max` that are not null."""
    return {name: value for name, value in given.items() if value is not None}


def study_config(config: Config) -> StudyConfig:
    assert config.study is not None, "the study job needs its config group"
    return config.study


def _completed(trial: FrozenTrial) -> CompletedTrial:
    recorded = trial.user_attrs["found"]
    return CompletedTrial(**{**recorded, "members": tuple(recorded["members"])})


def _first(labels: Sequence[str], search: StudyConfig) -> Iterable[Members]:
    """What is tried before the sampler is asked: every single variant, or everything."""
    largest = search.max_members if search.sampler == "exhaustive" else 1
    sizes = range(1, min(largest, len(labels)) + 1)
    return itertools.chain.from_iterable(itertools.combinations(labels, n) for n in sizes)


def _flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed, deterministic_objective=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "exhaustive": lambda seed: RandomSampler(seed=seed),  # everything is enqueued
}
