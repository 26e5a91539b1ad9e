"""One function per job, from a config to what it prints or writes."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import optuna

from ptsearch.benchmarks import BENCHMARKS, hub, sources
from ptsearch.config import Config, TrustConfig, VoteConfig
from ptsearch.deploy import export, record, signing
from ptsearch.deploy import folder as exported
from ptsearch.evaluation import cache, checkpoints
from ptsearch.evaluation.table import DENSE, Table, open_table
from ptsearch.evaluation.workers import workers
from ptsearch.report import gate as gates
from ptsearch.report import progress as bars
from ptsearch.report import rows, run_records, study_output, terminal, tracking
from ptsearch.report.page import PAGE
from ptsearch.report.study import Result, compile_result
from ptsearch.scoring import scores as scoring
from ptsearch.scoring.rescore import rescore
from ptsearch.scoring.scores import Scores
from ptsearch.search import database, limits, settings, skill, trials
from ptsearch.search import study as studies
from ptsearch.search.fronts import FRONTS, Front
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.trials import Search
from ptsearch.shared import Report, database_url, one_of, stage

LINK = "page.txt"  # beside the runs: what `make ui` prints
CANDIDATE = "candidate"  # of a gate, where it is one checkpoint
LOGGED_IN = "logged_in"  # user attribute of a study: the run in which all its trials are logged


def run_study(config: Config) -> None:
    """Find what the kind of study reports on, then show and log it; run again, it resumes."""
    screen = terminal.console()
    need_pool(config)
    find = FRONTS[studies.study_config(config).kind]
    for url in (optuna_url(config), mlflow_url(config)):
        database.reach(url)
    with tables(config, bars.progress(screen)) as (table, *others):
        parts = skill.check(table)
        name = studies.study_config(config).name
        mlflow = tracking.legible(mlflow_url(config))
        with mlflow, database.shared(optuna_url(config), name) as locks:
            with stage(table.report, "opening the study"):
                run, tracker, note = _open(table, parts["search"], locks)
            if note:
                screen.print(note, soft_wrap=True)
            reported = run.study.user_attrs.get("reported")
            try:
                _log_again(run, tracker)
                found = find(run)
                for other in others:
                    other.ensure([DENSE])
                with locks.alone():
                    result = _report(run, tracker, found, others, reported)
            except limits.UnmetError as unmet:
                run.study.set_user_attr("unmet", True)
                with locks.alone():
                    study_output.log_relaxations(tracker, table.config, unmet.answer)
                study_output.show_relaxations(screen, unmet.answer)
                raise
            except BaseException:
                with locks.alone():
                    if not trials.at_work(run, leaving=True):
                        tracking.fail(tracker)
                raise
    link = tracking.link(tracker, PAGE)
    (runs(config) / LINK).write_text(f"{link}\n", encoding="utf-8")
    if result:
        study_output.show_result(screen, tracker, table.config, result)
    else:
        screen.print(f"another process reported it: {link}", soft_wrap=True)


def _log_again(run: Search, tracker: tracking.Tracker) -> None:
    """The study's trials in its new run, if MLflow has lost the one that they were logged in."""
    study, table, scorer = run.study, run.table, run.scorer
    if study.user_attrs[LOGGED_IN] == tracker.run_id:
        return
    table.ensure(label for trial in studies.completed(study) for label in trial.members)
    with run.locks.alone():
        ids = tracking.nested(tracker)
        for trial in studies.completed(study):
            if trial.number not in ids:
                scores = scorer(table, trial.members)
                search = studies.study_config(table.config)
                feasible = studies.permits(search, trial.members, scores, scorer)
                ids[trial.number] = run.on_trial(trial, scores, feasible)
        study.set_user_attr(studies.LOGGED_AGAIN, ids)
        study.set_user_attr(LOGGED_IN, tracker.run_id)


def _report(
    run: Search, tracker: tracking.Tracker, found: Front, others: Sequence[Table], before: object
) -> Result | None:
    """Log the result; None = a process with the same configuration did since `before`, which was
    the mark of the last report when this process came in.
    """
    study, table = run.study, run.table
    configuration = json.dumps(asdict(table.config), sort_keys=True)
    mark = [hashlib.sha256(configuration.encode()).hexdigest(), len(study.get_trials(False))]
    last = study.user_attrs.get("reported")
    if last and last != before and last[:2] == mark:
        return None
    logged = [
        each if each.run_id else replace(each, run_id=run.on_trial(each, scores, True))
        for each in found.chosen
        for scores in [run.scorer(table, each.members)]
    ]
    parts = scorers(table)
    with stage(table.report, "intervals of what is reported"):
        result = compile_result(table, others, study, parts, replace(found, chosen=logged))
    with stage(table.report, "writing the report"):
        study_output.log_result(tracker, table, result)
        _keep(study, record.for_export(table, parts["search"], result))
    study.set_user_attr("reported", [*mark, result.holdout_reads, time.time()])
    return result


def _open(
    table: Table, scorer: EnsembleScorer, locks: database.Locks
) -> tuple[Search, tracking.Tracker, str]:
    """The view of the study and its MLflow run, resumed where they exist, and what to say of it;
    what died under way is ended.
    """
    url, identity = optuna_url(table.config), settings.identity(table)
    search, artifacts = studies.study_config(table.config), runs(table.config) / "artifacts"
    with locks.alone():
        name, note = studies.find_view(search.name, url, identity, locks)
        table.config = config = replace(table.config, study=replace(search, name=name))
        study = studies.open_study(config, url, identity, locks.process)
        before, key = map(study.user_attrs.get, ("run_id", "key"))
        tracker = tracking.open_run(mlflow_url(config), artifacts, name, before, key or "")
        if LOGGED_IN not in study.user_attrs:
            study.set_user_attr(LOGGED_IN, before or tracker.run_id)
        study.set_user_attr("run_id", tracker.run_id)
        end = partial(tracking.end_nested, tracker)
        run = Search(study, table, scorer, _recorder(table, tracker), locks, end)
        end(set(), {trial.number for trial in trials.at_work(run)})
    return run, tracker, note


def _keep(study: optuna.Study, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        study.set_user_attr(name, value)


def _recorder(table: Table, tracker: tracking.Tracker) -> trials.Seen:
    total = studies.study_config(table.config).trials

    def on_trial(trial: studies.CompletedTrial, scores: Scores, feasible: bool) -> str:
        table.report("trials", min(trial.number + 1, total), total)
        return tracking.log_run(tracker, run_records.of_trial(table, trial, scores, feasible))

    return on_trial


@contextmanager
def tables(config: Config, progress: AbstractContextManager[Report]) -> Iterator[tuple[Table, ...]]:
    """The table of the config, and one for each other dense model; workers end with them."""
    benchmarks = sources.load(config.benchmarks, Path(config.cache_dir))
    if config.benchmarks.name == "file":
        config = _of_own_questions(config, [benchmark.name for benchmark in benchmarks])
    if config.study:
        studies.check_limits(config, benchmarks)
    with progress as report, workers(config) as pool:
        configs = [config] + [
            replace(config, model=model, pool=replace(config.pool, variants=[], paths=[]))
            for model in config.baseline_models
        ]
        yield tuple(open_table(each, benchmarks, pool, report) for each in configs)


def _of_own_questions(config: Config, names: Sequence[str]) -> Config:
    """Trust and objectives of what is asked: each of its perspectives weighs 1 unless a weight is
    given, and there is no MMLU.
    """
    trust = TrustConfig({name: config.trust.weights.get(name, 1.0) for name in names})
    if not config.study:
        return replace(config, trust=trust)
    objectives = config.study.objectives | {scoring.MMLU: False}
    return replace(config, trust=trust, study=replace(config.study, objectives=objectives))


def need_pool(config: Config) -> None:
    if not config.pool.variants and not config.pool.paths:
        raise ValueError("the pool is empty: give pool.variants or pool.paths at least one row")


def runs(config: Config) -> Path:
    return Path(config.runs_dir).resolve()


def optuna_url(config: Config) -> str:
    return database_url("optuna_db", config.optuna_db) or f"sqlite:///{runs(config)}/optuna.db"


def mlflow_url(config: Config) -> str:
    url = database_url("mlflow_db", config.mlflow_db)
    if url and url == optuna_url(config):
        raise ValueError("optuna_db and mlflow_db must be two databases: both name tables the same")
    return url or f"sqlite:///{runs(config)}/mlflow.db"


def check_model(config: Config) -> None:
    """Print what the model's tokenizer, chat template and shapes mean; nothing is built."""
    screen = terminal.console()
    with tables(config, bars.progress(screen)) as (table, *_):
        terminal.show_facts(screen, table.base.name, table.model.facts)
        for note in table.model.notes:
            screen.print(f"* {note}")


def build_pool(config: Config) -> None:
    """Build every variant; one JSON line each."""
    need_pool(config)
    with tables(config, bars.progress(terminal.console(stderr=True))) as (table, *_):
        labels = [DENSE, *table.variants]
        table.build(labels)
        failed = table.left_out()
        labels = [label for label in labels if label not in failed]
        copies, keys = table.copies(labels), ("tensor_bytes", "perplexity", "degenerate", "seconds")
        for label in labels:
            meta, same = table.meta(label), {"same_as": copies[label]} if label in copies else {}
            row = {key: getattr(meta, key) for key in keys}
            if meta.types:
                bits = 8 * meta.tensor_bytes / sum(meta.types.values())
                row |= {"bits_per_weight": round(bits, 2), "types": meta.types}
            _print_json({"variant": label, **row, **same})
        _check_failed(failed)


def evaluate_variant(config: Config) -> None:
    """Evaluate one variant; one JSON line per benchmark."""
    assert config.evaluate is not None
    label = config.evaluate.variant
    config = replace(config, pool=replace(config.pool, build="named"))
    with tables(config, bars.progress(terminal.console(stderr=True))) as (table, *_):
        table.ensure([label])
        _check_failed(table.left_out())
        entry, weights = table.entries[label], table.config.trust.weights
        questions = scoring.questions(
            table.benchmarks, config.benchmarks.split.salt, config.benchmarks.rules
        )
        scores = scoring.score(questions, entry.codes, weights)
        if entry.judged is not None:
            scores |= scoring.judged_shares(questions, [entry.judged])
        without_model = scoring.without_model(questions, weights)
        for benchmark in table.benchmarks:
            _print_json(rows.evaluation(table, label, benchmark, scores, without_model))


def _check_failed(reasons: Mapping[str, str]) -> None:
    """ValueError: variants failed."""
    if reasons:
        raise ValueError("; ".join(f"{label} {reason}" for label, reason in reasons.items()))


def gate(config: Config) -> int:
    """Decide whether the candidate may replace the base model; the exit status."""
    asked = config.gate
    assert asked is not None
    members, chosen = {CANDIDATE: Path(asked.candidate)}, False
    if (Path(asked.candidate) / exported.DESCRIPTION).is_file():
        opened = exported.open_folder(asked.candidate)
        members, chosen = opened.members, True
        salt = str(opened.description.settings.get("benchmarks.split", ""))
        config.benchmarks.split.salt = salt or config.benchmarks.split.salt
    if asked.base:
        config.model = checkpoints.model_of(Path(asked.base), Path(config.cache_dir))
    pool = replace(config.pool, variants=[], paths=[], max_perplexity_ratio=math.inf)
    config = replace(config, pool=pool, vote=VoteConfig(veto=config.vote.veto))
    screen = terminal.console(stderr=asked.json == "-")
    with tables(config, bars.progress(terminal.console(stderr=True))) as (table, *_):
        checkpoints.refresh(table)
        table.ensure([DENSE])
        for label, folder in members.items():
            checkpoints.add(table, label, folder)
        found = gates.report(table, tuple(members), chosen)
    gates.write(found, asked)
    gates.show(screen, found)
    if asked.json == "-":
        sys.stdout.write(gates.to_json(found))
    place = gates.log(found, mlflow_url(config), runs(config) / "artifacts")
    screen.print(f"logged  {place}", soft_wrap=True)
    return gates.EXIT[found.gate.verdict]


def export_ensemble(config: Config) -> None:
    """Write an ensemble of a study's front to a folder of its own."""
    assert config.export is not None
    study = studies.load_study(config.export.study, optuna_url(config))
    screen = terminal.console()
    signer = signing.signer(Path(config.export.sign)) if config.export.sign else None
    folder = export.write(study.user_attrs, config.export, Path(config.cache_dir))
    screen.print(f"wrote {folder} (study {study.study_name})")
    if signer:
        screen.print(f"signed {signing.sign(folder, signer)}")
    if name := config.export.register:
        run_id = exported.open_folder(folder).description.run
        url = mlflow_url(config)
        with tracking.legible(url):
            place = tracking.register(url, run_id, name, folder, "ptsearch.deploy.ensemble")
        screen.print(f"registered {place}")


def verify_export(config: Config) -> None:
    """Check the signature, files and certificate of an exported folder; print what it claims."""
    asked = config.verify
    assert asked is not None
    found = signing.verify(Path(asked.dir), Path(asked.key))
    screen = terminal.console()
    screen.print(f"{asked.dir} is what was signed with the other half of {asked.key}: signature, "
                 f"files and certificate ({found.format}).")  # fmt: skip
    screen.print(f"{found.base_model['name']}: {found.verdict}")


def rescore_replies(config: Config) -> None:
    """Score recorded replies; one JSON line."""
    asked, root = config.rescore, Path(config.benchmarks.root)
    assert asked is not None
    one_of("rescore.benchmark", asked.benchmark, tuple(BENCHMARKS))
    if not config.benchmarks.root:
        root = hub.fetch(BENCHMARKS[asked.benchmark], Path(config.cache_dir) / "benchmarks")
    row = rescore(asked.benchmark, asked.scenario, Path(asked.replies), asked.rules, root)
    _print_json(row)


def manage_cache(config: Config) -> None:
    """List, check or prune the cache. ValueError: a file is damaged, or a study to keep unknown."""
    assert config.cache is not None
    policy, screen = config.cache, terminal.console()
    used_by: dict[str, set[str]] = {}
    for view, recorded in studies.recorded_settings(optuna_url(config)).items():
        used_by.setdefault(view.partition(studies.VIEW)[0], set()).update(cache.names_of(recorded))
    if unknown := set(policy.keep_studies or ()) - used_by.keys():
        raise ValueError(
            f"cache.keep_studies: no study {', '.join(sorted(unknown))}; there are: "
            f"{', '.join(used_by) or 'none'}"
        )
    found = cache.entries(Path(config.cache_dir), used_by)
    if policy.action == "list":
        terminal.show_cache(screen, found)
    elif policy.action == "verify":
        damaged = list(cache.problems(found))
        for problem in damaged:
            screen.print(problem, soft_wrap=True)
        if damaged:
            raise ValueError(f"{len(damaged)} damaged; delete their folders: they are made anew")
        screen.print(f"every file of {len(found)} entries is as it was written")
    else:
        gone = cache.prunable(found, policy)
        terminal.show_cache(screen, gone)
        if not policy.dry_run:
            for entry in gone:
                cache.delete(entry)
        what = "would free" if policy.dry_run else "freed"
        screen.print(
            f"{what} {sum(entry.bytes for entry in gone) / 1e9:.2f} GB"
            + ("; cache.dry_run=false deletes it" if policy.dry_run and gone else "")
        )


JOBS: dict[str, Callable[[Config], int | None]] = {
    "study": run_study,
    "gate": gate,
    "check": check_model,
    "build": build_pool,
    "evaluate": evaluate_variant,
    "export": export_ensemble,
    "verify": verify_export,
    "rescore": rescore_replies,
    "cache": manage_cache,
}


def _print_json(row: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
