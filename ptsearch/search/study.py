"""The Optuna study: which ensemble to try next, and what was found.

A trial switches each pool member on or off. Its objectives come from the search half alone.
"""

import hashlib
import json
import secrets
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event, make_url

from ptsearch.benchmarks import Benchmark
from ptsearch.config import Config, StudyConfig
from ptsearch.scoring.closeness import CLOSENESS
from ptsearch.scoring.cost import Cost
from ptsearch.scoring.scores import Scores, constant_scores, questions
from ptsearch.search.database import UNSHARED, Locks, opening
from ptsearch.search.objectives import OBJECTIVES, chosen_objectives, directions
from ptsearch.search.scorer import EnsembleScorer

if TYPE_CHECKING:
    from sqlite3 import Connection

Members = tuple[str, ...]
VIEW = "@"  # between a study's name and the hash of a view
# Settings that decide the answers or what they cost; all others are views of the same answers.
ANSWERS = ("model.", "benchmarks.", "engine.", "latency.prompts", "latency.version")
REPORTED = {"front", "unmet"}  # user attributes of a study that has ended once
LOGGED_AGAIN = "logged_again"  # user attribute: number of a trial -> id of its later run


@dataclass(frozen=True)
class CompletedTrial:
    """A finished trial."""

    number: int
    members: Members
    run_id: str
    by_sampler: bool = True  # else it was added because it is on the true front


def unsaved(search: StudyConfig) -> optuna.Study:
    """A study that is kept nowhere."""
    return optuna.create_study(
        directions=directions(chosen_objectives(search)),
        sampler=SAMPLERS[search.sampler](search.seed),
    )


class View(NamedTuple):
    """One way to look at the answers of a study: its pool, limits, vote, objectives, weights."""

    name: str  # of the Optuna study: STUDY, or STUDY@HASH beside other views
    note: str = ""  # for people: why it is not called as was asked


def find_view(name: str, url: str, settings: Mapping[str, object], locks: Locks = UNSHARED) -> View:
    """The view of study `name` with these settings, recorded or new; to be called while alone.

    Where the study has other answers (`ANSWERS`), it is one of another name, made of their hash.
    What was begun without any result, by processes that have ended, is deleted.
    """
    flat, recorded = _flat(settings), _without_empty(name, url, locks)
    views = [view for view in recorded if view.partition(VIEW)[0] == name]
    if not views:
        return View(name)
    if changed := _changed(recorded[views[0]], flat, ANSWERS):
        other = f"{name}-{_digest(flat, ANSWERS)}"
        note = f"study {name} has other answers: {changed}; this one is {other}"
        return find_view(other, url, settings, locks)._replace(note=note)
    for view in views:
        if not _changed(recorded[view], flat):
            return View(view)
    other = f"{name}{VIEW}{_digest(flat)}"
    changed = _changed(recorded[views[0]], flat)
    return View(other, f"another view of study {name}: {changed}; it is {other}")


def open_study(
    config: Config, url: str, settings: Mapping[str, object], process: str = ""
) -> optuna.Study:
    """Create or resume the Optuna study that has this name, while alone."""
    search = study_config(config)
    study = optuna.create_study(
        storage=open_storage(url),
        study_name=search.name,
        directions=directions(chosen_objectives(search)),
        load_if_exists=True,
    )
    if "settings" not in study.user_attrs:
        study.set_metric_names(chosen_objectives(search))
        study.set_user_attr("key", secrets.token_hex(8))
        study.set_user_attr("settings", _flat(settings))
    opened = study.user_attrs.get("opened", 0)  # so that no two processes propose the same
    study.set_user_attr("opened", opened + 1)
    study.set_user_attr("processes", [*study.user_attrs.get("processes", []), process])
    seed = search.seed + opened + len(study.get_trials(deepcopy=False))
    study.sampler = SAMPLERS[search.sampler](seed)
    return study


def load_study(name: str, url: str) -> optuna.Study:
    """A study that was run before, its latest view if it has several and `name` is none of them;
    an unknown name is a ValueError that lists what there is.
    """
    names = [view for view in recorded_settings(url) if name in (view, view.partition(VIEW)[0])]
    if not names:
        there = ", ".join(recorded_settings(url)) or "none"
        raise ValueError(f"no study {name!r}; there are: {there}")
    storage = open_storage(url)
    found = [optuna.load_study(study_name=each, storage=storage) for each in names]
    return max(found, key=lambda study: study.user_attrs.get("reported", [0])[-1])


def recorded_settings(url: str) -> dict[str, dict[str, object]]:
    """View -> its settings, in the order in which they were made; none without a database."""
    if url.startswith("sqlite") and not Path(make_url(url).database or "").exists():
        return {}
    found = optuna.get_all_study_summaries(open_storage(url), include_best_trial=False)
    recorded = {study.study_name: study.user_attrs.get("settings") for study in found}
    return {name: settings for name, settings in recorded.items() if settings}


def _without_empty(name: str, url: str, locks: Locks) -> dict[str, dict[str, object]]:
    """`recorded_settings`, after deleting what has no result and nobody is at work on."""
    recorded = recorded_settings(url)
    for view in [view for view in recorded if view.partition(VIEW)[0] == name]:
        study = optuna.load_study(study_name=view, storage=open_storage(url))
        results = study.get_trials(False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        at_work = not all(map(locks.is_dead, study.user_attrs.get("processes", [""])))
        if not results and not REPORTED & study.user_attrs.keys() and not at_work:
            optuna.delete_study(study_name=view, storage=open_storage(url))
            del recorded[view]
    return recorded


def _changed(
    before: Mapping[str, object], now: Mapping[str, object], among: tuple[str, ...] = ("",)
) -> str:
    """The first settings that differ, of those that begin so; "" = none does."""
    keys = [key for key in sorted(before.keys() | now.keys()) if key.startswith(among)]
    # A setting that is not there is None.
    changed = [key for key in keys if before.get(key) != now.get(key)]
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    return ", ".join(f"{k} ({before.get(k)}, now {now.get(k)})" for k in changed[:3]) + more


def _digest(flat: Mapping[str, object], among: tuple[str, ...] = ("",)) -> str:
    kept = {key: value for key, value in flat.items() if key.startswith(among)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:6]


def _flat(settings: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = json.loads(json.dumps(_flatten(settings)))
    return flat


def open_storage(url: str) -> RDBStorage:
    """Optuna's storage; SQLite writes ahead and waits, so that several processes can share it."""
    sqlite = url.startswith("sqlite")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)  # metric names
    with opening(url, RDBStorage):
        storage = RDBStorage(
            url, engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else None
        )
    if sqlite:

        @event.listens_for(storage.engine, "connect")
        def write_ahead(connection: "Connection", _: object) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        storage.engine.dispose()  # connections made before the listener
    return storage


def completed(study: optuna.Study) -> list[CompletedTrial]:
    return _completed(study, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def unscored(study: optuna.Study) -> set[Members]:
    """Ensembles that were tried and have no score under the rules."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return {tuple(t.user_attrs["unscored"]) for t in trials if "unscored" in t.user_attrs}


def front(study: optuna.Study) -> list[CompletedTrial]:
    """The feasible trials that no finished feasible trial dominates."""
    return _completed(study, study.best_trials)


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
        violations["skill"] = float(len(scorer.lost_skill(scores)))
    return violations


def permits(search: StudyConfig, members: Members, scores: Scores, scorer: EnsembleScorer) -> bool:
    return max(constraints(search, members, scores, scorer).values()) <= 0


def check_limits(config: Config, benchmarks: Sequence[Benchmark]) -> None:
    """ValueError: a limit or an objective on a metric that these benchmarks do not give."""
    search, settings = study_config(config), config.benchmarks
    modes = {s.mode for b in benchmarks for s in b.scenarios.values()}
    missing = () if "choice" in modes else tuple(CLOSENESS)
    for name in missing:
        if search.objectives.get(name):
            raise ValueError(f"study.objectives.{name} needs scenarios with benchmarks.mode choice")
    if not limits(search.min) and not limits(search.max):
        return
    all_questions = questions(benchmarks, settings.split.salt, settings.rules)
    derived = (name for name, each in OBJECTIVES.items() if each.of_ensemble or not each.on)
    scores = constant_scores(all_questions, config.trust.weights)["majority class"]
    known = dict.fromkeys(("trust", *scores, *Cost._fields, *derived))
    known = {name: None for name in known if name not in missing}
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


def _completed(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[CompletedTrial]:
    again = study.user_attrs.get(LOGGED_AGAIN, {})
    return [
        replace(
            CompletedTrial(**{**found, "members": tuple(found["members"])}),
            run_id=again.get(str(found["number"]), found["run_id"]),
        )
        for found in (trial.user_attrs["found"] for trial in trials)
    ]


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
