"""One function per job, from a config to what it prints or writes."""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import optuna

from ptsearch.benchmarks import BENCHMARKS, Benchmark, digest, hub, item_hash, sources
from ptsearch.benchmarks.parsing import VERSION as RULES_VERSION
from ptsearch.config import Config, VoteConfig, database_url
from ptsearch.deploy import export, record
from ptsearch.deploy import folder as exported
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import DENSE, Table, open_table
from ptsearch.evaluation.workers import workers
from ptsearch.report import paper, study_output, terminal, tracking
from ptsearch.report.study import Front, compile_result
from ptsearch.scoring import scores as scoring
from ptsearch.scoring.rescore import rescore
from ptsearch.scoring.scores import Scores
from ptsearch.search import exact_front, limits, next_build, skill
from ptsearch.search import study as studies
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.shared import Report


def run_study(config: Config) -> None:
    """Find what the kind of study reports on, then show and log it; run again, it resumes."""
    screen = terminal.console()
    need_pool(config)
    find = FRONTS[studies.study_config(config).kind]
    with tables(config, terminal.progress(screen)) as (table, *others):
        parts = scorers(table)
        skill.check(table, parts["search"])
        study, tracker = _open(config, table)
        try:
            found = find(study, table, parts["search"], _recorder(table, tracker))
            result = compile_result(table, others, study, parts, found)
            study_output.log_result(tracker, table, study, result)
            _keep(study, record.for_export(table, parts["search"], result))
        except limits.UnmetError as unmet:
            study_output.log_relaxations(tracker, table.config, unmet.answer)
            study_output.show_relaxations(screen, unmet.answer)
            raise
        except BaseException:
            tracking.fail(tracker)
            raise
    study_output.show_result(screen, tracker, config, result)


def _pareto(
    study: optuna.Study, table: Table, scorer: EnsembleScorer, on_trial: studies.Seen
) -> Front:
    """The front of all ensembles of what is built, after the sampler's trials."""
    search = studies.study_config(table.config)
    if search.max_builds:
        next_build.build_some(table, search.max_builds)
    studies.search(study, table, scorer, on_trial)
    exact = exact_front.complete(study, table, scorer, on_trial)
    chosen = studies.front(study)
    if not chosen and exact.everything is not None and search.min_skill != "require":
        limits.within_limits(table, scorer)  # reports how to relax them
    return Front(exact, chosen)


def _within_limits(
    study: optuna.Study, table: Table, scorer: EnsembleScorer, on_trial: studies.Seen
) -> Front:
    """The most trusted ensemble within the limits."""
    answer = limits.within_limits(table, scorer)
    assert answer.pick is not None
    trial = studies.named(study, table, scorer, on_trial, answer.pick)
    return Front(None, [trial], [limits.verdict(answer)])


def _given(ensembles: Callable[[Table], list[studies.Members]]) -> "Find":
    """Reports on ensembles that are not searched for: the paper's experiments."""

    def find(
        _study: optuna.Study, table: Table, scorer: EnsembleScorer, on_trial: studies.Seen
    ) -> Front:
        trials = [studies.CompletedTrial(*each, "") for each in enumerate(ensembles(table))]
        runs = [on_trial(trial, scorer(table, trial.members), True) for trial in trials]
        logged = [replace(each, run_id=run) for each, run in zip(trials, runs, strict=True)]
        return Front(None, logged, all_data=True)

    return find


Find = Callable[[optuna.Study, Table, EnsembleScorer, studies.Seen], Front]
FRONTS: dict[str, Find] = {
    "pareto": _pareto,
    "slo": _within_limits,
    "benchmark": _given(paper.singles),
    "paper": _given(paper.ensembles),
}


def _open(config: Config, table: Table) -> tuple[optuna.Study, tracking.Tracker]:
    """The study and its MLflow run, resumed where they exist."""
    name = studies.study_config(config).name
    study = studies.open_study(config, optuna_url(config), settings(table))
    tracker = tracking.open_run(
        mlflow_url(config), runs(config) / "artifacts", name, study.user_attrs.get("run_id")
    )
    study.set_user_attr("run_id", tracker.run_id)
    return study, tracker


def _keep(study: optuna.Study, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        study.set_user_attr(name, value)


def _recorder(table: Table, tracker: tracking.Tracker) -> studies.Seen:
    trials = studies.study_config(table.config).trials

    def on_trial(trial: studies.CompletedTrial, scores: Scores, feasible: bool) -> str:
        table.report("trials", min(trial.number + 1, trials), trials)
        return tracking.log_run(tracker, study_output.trial_record(table, trial, scores, feasible))

    return on_trial


@contextmanager
def tables(config: Config, progress: AbstractContextManager[Report]) -> Iterator[tuple[Table, ...]]:
    """The table of the config, and one for each other dense model; workers end with them."""
    benchmarks = sources.load(config.benchmarks, Path(config.cache_dir))
    if config.study:
        studies.check_limits(config, benchmarks)
    with progress as report, workers(config.compute.workers, config.engine.threads) as pool:
        configs = [config] + [
            replace(config, model=model, pool=replace(config.pool, variants=[], paths=[]))
            for model in config.baseline_models
        ]
        yield tuple(open_table(each, benchmarks, pool, report) for each in configs)


def need_pool(config: Config) -> None:
    if not config.pool.variants and not config.pool.paths:
        raise ValueError("the pool is empty: give pool.variants or pool.paths at least one row")


def settings(table: Table) -> dict[str, object]:
    """What identifies a study: resuming it with other settings is an error."""
    config = table.config
    search = asdict(studies.study_config(config))
    changeable = ["kind", "name", "trials", "sampler", "seed"]
    if search["kind"] == "slo":
        changeable += ["min", "max"]  # one study answers any
    for key in changeable:
        del search[key]
    default_vote = config.vote.rule == VoteConfig().rule
    vote: dict[str, object] = {} if default_vote else {"vote": asdict(config.vote)}
    return vote | {
        "model": {"name": table.base.name, "revision": table.base.revision},
        "pool": {label: variant.id for label, variant in table.variants.items()},
        "benchmarks": {
            "rules": config.benchmarks.rules,
            "rules_version": RULES_VERSION,
            "prompt": config.benchmarks.prompt,
            "extract": table.reader.identity if table.reader else "rules",
            **({"template": config.benchmarks.template} if config.benchmarks.template else {}),
            "limit": config.benchmarks.limit,
            "split": config.benchmarks.split.salt,
            "samples": {b.name: digest(b)[:12] for b in table.benchmarks},
            "items": item_hash(*(s.item for b in table.benchmarks for s in b.samples))[:12],
        },
        "engine": {
            "dtype": config.engine.dtype,
            **(
                {"name": "vllm", "form": config.engine.form} if config.engine.name == "vllm" else {}
            ),
        },
        "trust": asdict(config.trust),
        "memory": asdict(config.memory),
        "latency": asdict(config.latency),
        "study": search,
    }


def runs(config: Config) -> Path:
    folder = Path(config.runs_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def optuna_url(config: Config) -> str:
    return database_url("optuna_db", config.optuna_db) or f"sqlite:///{runs(config)}/optuna.db"


def mlflow_url(config: Config) -> str:
    return database_url("mlflow_db", config.mlflow_db) or f"sqlite:///{runs(config)}/mlflow.db"


def check_model(config: Config) -> None:
    """Print what the model's tokenizer, chat template and shapes mean; nothing is built."""
    screen = terminal.console()
    with tables(config, terminal.progress(screen)) as (table, *_):
        terminal.show_facts(screen, table.base.name, table.model.facts)
        for note in table.model.notes:
            screen.print(f"* {note}")


def build_pool(config: Config) -> None:
    """Build every variant; one JSON line each."""
    need_pool(config)
    with tables(config, terminal.progress(terminal.console(stderr=True))) as (table, *_):
        labels = [DENSE, *table.variants]
        table.build(labels)
        copies, keys = table.copies(labels), ("tensor_bytes", "perplexity", "degenerate", "seconds")
        for label in labels:
            meta, same = table.meta(label), {"same_as": copies[label]} if label in copies else {}
            row = {key: getattr(meta, key) for key in keys}
            _print_json({"variant": label, **row, **same})


def evaluate_variant(config: Config) -> None:
    """Evaluate one variant; one JSON line per benchmark."""
    assert config.evaluate is not None
    label = config.evaluate.variant
    config = replace(config, pool=replace(config.pool, build="named"))
    with tables(config, terminal.progress(terminal.console(stderr=True))) as (table, *_):
        table.ensure([label])
        entry, weights = table.entries[label], config.trust.weights
        questions = scoring.questions(
            table.benchmarks, config.benchmarks.split.salt, config.benchmarks.rules
        )
        scores = scoring.score(questions, entry.codes, weights)
        if entry.judged is not None:
            scores |= scoring.judged_shares(questions, [entry.judged])
        without_model = scoring.without_model(questions, weights)
        for benchmark in table.benchmarks:
            _print_json(_evaluation(table, label, benchmark, scores, without_model))


def _evaluation(
    table: Table,
    label: str,
    benchmark: Benchmark,
    scores: Scores,
    without_model: dict[str, Scores],
) -> dict[str, object]:
    """What is printed of one benchmark: its scores, and per scenario those that need no model."""
    name, path = benchmark.name, table.outputs(label)[benchmark.name]
    changes = predictions.changes(path)
    scenarios = [s for s in benchmark.scenarios if f"{name}/{s}" in without_model]

    def baseline(key: str) -> dict[str, float]:
        return {s: round(without_model[f"{name}/{s}"][key], 4) for s in scenarios}

    return {
        "variant": label,
        "benchmark": name,
        "items": len(benchmark.samples),
        "seconds": round(sum(predictions.read(path)["seconds"].to_pylist()), 3),
        "scores": {
            key: round(v, 4)
            for key, v in scores.items()
            if key.startswith(name) and not math.isnan(v)
        },
        "majority": baseline("majority"),
        "constant": baseline("constant"),
        "notes": benchmark.notes,
        "dropped": changes.demonstrations,
        "thoughts": changes.thoughts,
        "predictions": str(path),
    }


def export_ensemble(config: Config) -> None:
    """Write an ensemble of a study's front to a folder of its own."""
    assert config.export is not None
    study = studies.load_study(config.export.study, optuna_url(config))
    screen = terminal.console()
    folder = export.write(study.user_attrs, config.export, Path(config.cache_dir))
    screen.print(f"wrote {folder}")
    if name := config.export.register:
        run_id = exported.open_folder(folder).description.run
        place = tracking.register(
            mlflow_url(config), run_id, name, folder, "ptsearch.deploy.ensemble"
        )
        screen.print(f"registered {place}")


def rescore_replies(config: Config) -> None:
    """Score recorded replies; one JSON line."""
    asked, root = config.rescore, Path(config.benchmarks.root)
    assert asked is not None
    if not config.benchmarks.root:
        root = hub.fetch(BENCHMARKS[asked.benchmark], Path(config.cache_dir) / "benchmarks")
    row = rescore(asked.benchmark, asked.scenario, Path(asked.replies), asked.rules, root)
    _print_json(row)


JOBS: dict[str, Callable[[Config], None]] = {
    "study": run_study,
    "check": check_model,
    "build": build_pool,
    "evaluate": evaluate_variant,
    "export": export_ensemble,
    "rescore": rescore_replies,
}


def _print_json(row: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
