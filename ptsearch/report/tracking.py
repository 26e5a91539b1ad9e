"""MLflow: one experiment per study, a parent run for it and a nested run per trial.

The only file that imports MLflow. It takes plain dicts and paths.
"""

import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from ptsearch.search.database import is_server, opening, replace_artifacts, shown, unusable
from ptsearch.search.study import VIEW as OF_STUDY

for chatty in ("mlflow", "alembic"):  # they report every database migration
    logging.getLogger(chatty).setLevel(logging.ERROR)

PARENT_RUN, NOTE = "mlflow.parentRunId", "mlflow.note.content"  # MLflow's documented tags
# A view of the table of runs that "Share" of MLflow's page makes: a tag, and a link with its key.
VIEW = "mlflow.sharedViewState."
RUNS = "workflowType=machine_learning"  # in links: pages about runs, not about traces
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # runs, not traces
LOCAL_PAGE = "http://127.0.0.1:5000"  # of `make ui`
MAX_RUNS = 50_000  # that MLflow returns at once
MAX_PARAM = 6000  # characters; MLflow rejects longer values


@dataclass(frozen=True)
class Tracker:
    """Where a study is logged."""

    client: MlflowClient
    experiment_id: str
    run_id: str  # of the parent
    page: str = LOCAL_PAGE


def open_run(uri: str, artifacts: Path, name: str, run_id: str | None, key: str = "") -> Tracker:
    """The parent run of a study's view `name`: `run_id` if it is still there, or what was made for
    the study's `key` by a process that died before it could tell, else a new one.
    """
    page, study = shown(uri) if is_server(uri) else LOCAL_PAGE, name.partition(OF_STUDY)[0]
    with opening(uri, lambda new: MlflowClient(new).search_experiments(max_results=1)):
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(study)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    here = (artifacts / study).resolve()
    place = None if is_server(uri) else here.as_uri()  # a server keeps artifacts where it likes
    if experiment is None:
        experiment_id = client.create_experiment(
            study, artifact_location=place, tags=EXPERIMENT_TAGS
        )
    else:
        experiment_id = experiment.experiment_id
        moved = place != experiment.artifact_location and here.is_dir()
        if place and moved and uri.startswith("sqlite:"):  # others have users elsewhere
            replace_artifacts(uri, experiment.artifact_location, place)
    if run_id is not None:
        try:
            client.update_run(run_id, status="RUNNING")
            return Tracker(client, experiment_id, run_id, page)
        except MlflowException:  # the database was deleted or replaced
            pass
    made = client.search_runs([experiment_id], f"tags.study = '{key}'", max_results=1)
    run = (
        made[0]
        if key and made
        else client.create_run(experiment_id, run_name=name, tags={"kind": "study", "study": key})
    )
    return Tracker(client, experiment_id, run.info.run_id, page)


@dataclass(frozen=True)
class RunRecord:
    """A nested run: of a trial, or of a row of the paper's experiments."""

    name: str
    params: Mapping[str, str | int]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def log_run(tracker: Tracker, record: RunRecord) -> str:
    """Log a nested, finished run; returns its id."""
    tags = {PARENT_RUN: tracker.run_id, **record.tags}
    run = tracker.client.create_run(tracker.experiment_id, run_name=record.name, tags=tags)
    run_id = str(run.info.run_id)
    tracker.client.log_batch(
        run_id, metrics=_metrics(record.metrics, 0), params=_params(record.params)
    )
    tracker.client.set_terminated(run_id, "FINISHED")
    return run_id


def end_nested(tracker: Tracker, given_up: set[int], at_work: set[int]) -> None:
    """Runs that no process will finish are KILLED: of trials that were given up, and those under
    way of no trial that a process is at work on.
    """
    which = ["attributes.status = 'RUNNING'", *(f"tags.trial = '{n}'" for n in given_up)]
    for each in which:
        mine = f"tags.{PARENT_RUN} = '{tracker.run_id}' and {each}"
        for run in tracker.client.search_runs([tracker.experiment_id], mine):
            if int(run.data.tags.get("trial", -1)) not in at_work:
                tracker.client.set_terminated(run.info.run_id, "KILLED")


def nested(tracker: Tracker) -> dict[int, str]:
    """Number of a trial -> id of its run, of those that are whole."""
    found = _runs(tracker, "tags.trial LIKE '%'")
    return {int(run.data.tags["trial"]): run.info.run_id for run in found}


def with_tag(tracker: Tracker, tag: str) -> dict[str, str]:
    """Id of a nested run -> its members, of those whose `tag` is true."""
    found = _runs(tracker, f"tags.{tag} = 'true'")
    return {run.info.run_id: run.data.params["members"] for run in found}


def _runs(tracker: Tracker, which: str) -> list[Run]:
    mine = f"tags.{PARENT_RUN} = '{tracker.run_id}' and attributes.status = 'FINISHED' and {which}"
    return list(tracker.client.search_runs([tracker.experiment_id], mine, max_results=MAX_RUNS))


def add(
    tracker: Tracker, run_id: str, metrics: Mapping[str, float], tags: Mapping[str, str]
) -> None:
    """More metrics and tags on a run."""
    tracker.client.log_batch(
        run_id, metrics=_metrics(metrics, 0), tags=[RunTag(*pair) for pair in tags.items()]
    )


def log_text(tracker: Tracker, run_id: str, name: str, text: str) -> None:
    """An artifact of a run."""
    tracker.client.log_text(run_id, text, name)


def finish(
    tracker: Tracker,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    files: Iterable[Path],
    note: str,
) -> None:
    """Params, metrics, artifacts and a description on the parent run, which ends."""
    tracker.client.log_batch(
        tracker.run_id, metrics=_metrics(metrics, 0), params=_params(params),
        tags=[RunTag(NOTE, note)],
    )  # fmt: skip
    for file in files:
        tracker.client.log_artifact(tracker.run_id, str(file))
    tracker.client.set_terminated(tracker.run_id, "FINISHED")


def register(uri: str, run_id: str, name: str, folder: Path, loader: str) -> str:
    """A new version of a registered model that refers to an exported folder; its models:/ URI.

    `loader` is the module whose `_load_pyfunc` gets a file with the folder's path. No weights are
    copied, so the folder must stay where it is.
    """
    with warnings.catch_warnings():  # about type hints of its own
        warnings.simplefilter("ignore")
        import mlflow.pyfunc  # seconds

    client = MlflowClient(uri)
    with tempfile.TemporaryDirectory() as scratch:
        place, model = Path(scratch, "folder"), Path(scratch, "model")
        place.write_text(str(folder.resolve()), encoding="utf-8")
        mlflow.pyfunc.save_model(
            model,
            loader_module=loader,
            data_path=place,
            pip_requirements=[f"ptsearch=={version('ptsearch')}"],
        )
        client.log_artifacts(run_id, str(model), "ensemble")
    with suppress(MlflowException):  # the name is there already
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/ensemble"
    made = client.create_model_version(name, source, run_id)
    return f"models:/{name}/{made.version}"


def fail(tracker: Tracker) -> None:
    with suppress(MlflowException):  # perhaps it is why
        tracker.client.set_terminated(tracker.run_id, "FAILED")


@contextmanager
def legible(uri: str) -> Iterator[None]:
    """MLflow's errors in two lines, without a password."""
    try:
        yield
    except MlflowException as error:
        raise unusable(f"MLflow at {shown(uri)}", error) from error


def show_columns(tracker: Tracker, tags: Sequence[str], metrics: Sequence[str]) -> None:
    """What `table_of_runs` shows: runs of the report, the first metric's highest value first."""
    shown = [*(f"tags.`{name}`" for name in tags), *(f"metrics.`{name}`" for name in metrics)]
    order = ["attributes.`Run Name`", "runDateAndNestInfo", *shown]
    pixels = {order[0]: 320, order[1]: 140} | {name: max(90, 7 * len(name) - 35) for name in shown}
    view = {
        "selectedColumns": shown, "columnOrder": order, "columnWidths": pixels,
        "searchFilter": f"tags.reported = 'true' and tags.{PARENT_RUN} = '{tracker.run_id}'",
        "orderByKey": f"metrics.`{metrics[0]}`", "orderByAsc": False,
    }  # fmt: skip
    key = VIEW + tracker.run_id[:8]
    tracker.client.set_experiment_tag(tracker.experiment_id, key, json.dumps(view))


def table_of_runs(tracker: Tracker) -> str:
    """The part of its link that comes after the experiment."""
    return f"runs?viewStateShareKey={tracker.run_id[:8]}"


def link(tracker: Tracker, artifact: str) -> str:
    """MLflow's page of an artifact of the parent run."""
    page = f"experiments/{tracker.experiment_id}/runs/{tracker.run_id}/artifacts/{artifact}"
    return f"{tracker.page}/#/{page}?{RUNS}"


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now = _now()
    return [Metric(k, float(v), now, step) for k, v in values.items() if not math.isnan(v)]


def _params(values: Mapping[str, object]) -> list[Param]:
    return [Param(key, str(value)[:MAX_PARAM]) for key, value in values.items()]


def _now() -> int:
    return int(time.time() * 1000)
