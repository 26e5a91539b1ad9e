"""One study, several processes: one budget, nothing twice, one parent run; any may be killed."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from fakes import fake_table
from mlflow import MlflowClient
from mlflow.entities import Run
from one_of_many import made_up
from optuna import Study
from optuna.trial import TrialState
from postgres import free_port, server

from ptsearch import cli, jobs
from ptsearch.report import tracking
from ptsearch.search import exact_front, trials
from ptsearch.search import study as studies
from ptsearch.search.database import shared
from ptsearch.search.scorer import scorers
from ptsearch.search.trials import Search
from ptsearch.shared import database_url

TESTS = Path(__file__).parents[1]
Process = subprocess.Popen[str]


def start(folder: Path, *given: str, seconds: float = 0.0) -> Process:
    command = [sys.executable, str(TESTS / "one_of_many.py"), str(folder), str(seconds), *given]
    path = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=os.environ | path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(*processes: Process) -> list[tuple[str, str]]:
    """What they said, all of them having succeeded."""
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def study_in(folder: Path, url: str = "") -> Study:
    return studies.load_study("fake", url or f"sqlite:///{folder}/optuna.db")


def runs_in(folder: Path, uri: str = "") -> tuple[list[Run], list[Run]]:
    """Parents and nested runs."""
    client = MlflowClient(uri or f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("fake")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    nested = [run for run in runs if tracking.PARENT_RUN in run.data.tags]
    return [run for run in runs if run not in nested], nested


def check(folder: Path, trials: int, *urls: str) -> None:
    """So many trials by samplers, nothing twice, one parent run, nothing left under way."""
    study = study_in(folder, *urls[:1])
    found = studies.completed(study)
    assert sum(trial.by_sampler for trial in found) == trials
    assert len({trial.members for trial in found}) == len(found)
    states = {trial.state for trial in study.get_trials(deepcopy=False)}
    assert states <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    (parent,), nested = runs_in(folder, *urls[1:])
    assert parent.info.status == "FINISHED"
    whole = [run for run in nested if run.info.status == "FINISHED" and "trial" in run.data.tags]
    assert {run.info.status for run in nested} <= {"FINISHED", "KILLED"}
    assert {run.info.run_id for run in whole} == {trial.run_id for trial in found}
    front = {trial.run_id for trial in studies.front(study)}
    assert {run.info.run_id for run in whole if run.data.tags["pareto"] == "true"} == front


def test_several_searches_share_a_budget_and_try_nothing_twice(tmp_path: Path) -> None:
    """Threads, each with locks and connections of its own, as processes have."""
    url = f"sqlite:///{tmp_path}/optuna.db"

    def work(_: int) -> None:
        table = fake_table(tmp_path, trials=20)
        with shared(url, "fake") as locks:
            with locks.alone():
                study = studies.open_study(table.config, url, {"a": 1})
            run = Search(study, table, scorers(table)["search"], lambda *_: "run", locks)
            trials.search(run)
            exact_front.complete(run)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    found = studies.completed(study_in(tmp_path))
    assert sum(trial.by_sampler for trial in found) == 20
    assert len({trial.members for trial in found}) == len(found)


def test_what_a_dead_process_claimed_is_tried_by_another(tmp_path: Path) -> None:
    table, url = fake_table(tmp_path, trials=8), f"sqlite:///{tmp_path}/optuna.db"
    scorer, given_up = scorers(table)["search"], list[tuple[set[int], set[int]]]()

    def die(*_: object) -> str:
        raise KeyboardInterrupt

    def note(dead: set[int], at_work: set[int]) -> None:
        given_up.append((dead, at_work))

    with shared(url, "fake") as living:
        with shared(url, "fake") as dying:
            study = studies.open_study(table.config, url, {"a": 1})
            with pytest.raises(KeyboardInterrupt):
                trials.search(Search(study, table, scorer, die, dying))
            assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
            with living.alone():
                run = Search(study, table, scorer, lambda *_: "run", living, note)
                assert [trial.number for trial in trials.at_work(run)] == [0]  # it lives
        study.ask()  # as if it had been killed between asking and claiming
        trials.search(run)
    assert given_up == [({0, 1}, set())]
    found = studies.completed(study)
    assert len({trial.members for trial in found}) == len(found) == 8


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database, whose migrations cost seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.open_run(f"sqlite:///{path}", path.parent, "template", None)
    return path


def test_runs_that_mlflow_lost_are_logged_again(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    jobs.run_study(made_up(monkeypatch.setattr, tmp_path, trials=8))
    before = {trial.run_id for trial in studies.completed(study_in(tmp_path))}
    shutil.copy(empty, tmp_path / "mlflow.db")
    jobs.run_study(made_up(monkeypatch.setattr, tmp_path, trials=10))
    check(tmp_path, 10)
    assert before.isdisjoint(trial.run_id for trial in studies.completed(study_in(tmp_path)))


def test_views_are_runs_of_one_experiment(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    jobs.run_study(made_up(monkeypatch.setattr, tmp_path, trials=6))
    assert "another view" not in capsys.readouterr().out
    for _ in range(2):  # the second time it is resumed
        limited = {"trials": 6, "max": {"memory_gb": 0.12}, "objectives": {"mmlu": False}}
        jobs.run_study(made_up(monkeypatch.setattr, tmp_path, **limited))
    said = capsys.readouterr().out
    view = studies.load_study("fake", f"sqlite:///{tmp_path}/optuna.db").study_name
    assert said.count(f"it is {view}") == 1
    parents, nested = runs_in(tmp_path)
    assert {run.info.run_name for run in parents} == {"fake", view}
    above = {run.data.tags[tracking.PARENT_RUN] for run in nested if "trial" in run.data.tags}
    assert above == {run.info.run_id for run in parents}


def test_a_lost_study_begins_a_run_of_its_own(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    jobs.run_study(made_up(monkeypatch.setattr, tmp_path, trials=7))
    (tmp_path / "optuna.db").unlink()
    jobs.run_study(made_up(monkeypatch.setattr, tmp_path, trials=7))
    parents, nested = runs_in(tmp_path)
    assert {run.info.status for run in [*parents, *nested]} == {"FINISHED"}
    mine = study_in(tmp_path).user_attrs["run_id"]
    assert mine in {run.info.run_id for run in parents} and len(parents) == 2
    tried = [run for run in nested if "trial" in run.data.tags]
    kept = {run.info.run_id for run in tried if run.data.tags[tracking.PARENT_RUN] == mine}
    assert kept == {trial.run_id for trial in studies.completed(study_in(tmp_path))}


def test_a_run_begun_by_a_process_that_died_then_is_taken_up(empty: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{empty}"
    first = tracking.open_run(uri, tmp_path, "begun", None, "key")
    assert tracking.open_run(uri, tmp_path, "begun", None, "key").run_id == first.run_id
    assert tracking.open_run(uri, tmp_path, "begun", None, "other").run_id != first.run_id


@pytest.mark.faults
def test_three_processes_on_fresh_databases_share_the_budget(tmp_path: Path) -> None:
    said = ended(*(start(tmp_path, "trials=24", seconds=0.1) for _ in range(3)))
    check(tmp_path, 24)
    study = study_in(tmp_path)
    workers = {trial.user_attrs["claim"]["process"] for trial in study.trials if trial.values}
    assert len(workers) == 3
    assert study.user_attrs["reported"][2] == 1  # reading of the held-out half
    assert sum("Pareto front of fake" in out for out, _ in said) == 1
    assert sum("another process reported it" in out for out, _ in said) == 2


def wait_for_trials(folder: Path, number: int, url: str = "") -> None:
    """Until so many trials have been scored or are at work."""
    for _ in range(1200):
        try:
            if len(study_in(folder, url).trials) >= number:
                return
        except ValueError:  # no study yet
            pass
        time.sleep(0.05)
    raise TimeoutError


def check_stopped(folder: Path) -> None:
    assert TrialState.RUNNING not in {trial.state for trial in study_in(folder).trials}
    (parent,), nested = runs_in(folder)
    assert parent.info.status == "FAILED"
    assert "RUNNING" not in {run.info.status for run in nested}


def test_ctrl_c_while_a_run_is_logged(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(empty, tmp_path / "mlflow.db")
    batches, log_batch = [], MlflowClient.log_batch

    def interrupted(*args: Any, **kwargs: Any) -> None:
        batches.append(args)
        if len(batches) == 3:  # the third trial's run has begun
            raise KeyboardInterrupt
        log_batch(*args, **kwargs)

    config = made_up(monkeypatch.setattr, tmp_path, trials=8)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", interrupted)
        assert cli.ended(jobs.run_study, config) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    check_stopped(tmp_path)
    assert [run.info.status for run in runs_in(tmp_path)[1]].count("KILLED") == 1
    jobs.run_study(made_up(monkeypatch.setattr, tmp_path, trials=8))
    check(tmp_path, 8)


@pytest.mark.faults
def test_a_stopped_process_leaves_nothing_under_way(tmp_path: Path) -> None:
    process = start(tmp_path, "trials=20", seconds=0.3)
    wait_for_trials(tmp_path, 5)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "\nptsearch: stopped; run the same command again to go on\n"
    check_stopped(tmp_path)
    ended(start(tmp_path, "trials=20"))
    check(tmp_path, 20)


@pytest.mark.faults
def test_processes_killed_at_any_moment_leave_no_orphan(tmp_path: Path) -> None:
    """Two at work, one after the other is killed and replaced; the last ones end the study."""
    random = np.random.default_rng(0)
    processes = [start(tmp_path, "trials=60", seconds=0.05) for _ in range(2)]
    for _ in range(6):
        time.sleep(random.uniform(8, 14))
        processes[0].kill()
        processes.pop(0).communicate()
        processes.append(start(tmp_path, "trials=60", seconds=0.05))
    ended(*processes)
    check(tmp_path, 60)


@pytest.mark.faults
def test_processes_share_a_study_on_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New databases; one of three is killed."""
    with server() as url:
        studies_db, runs_db = database_url("", f"{url}/studies"), database_url("", f"{url}/runs")
        monkeypatch.setenv("STUDIES", studies_db)
        monkeypatch.setenv("RUNS", runs_db)
        given = ("trials=30", "optuna_db=env:STUDIES", "mlflow_db=env:RUNS")
        first, *others = [start(tmp_path, *given, seconds=0.1) for _ in range(3)]
        wait_for_trials(tmp_path, 8, studies_db)
        first.kill()
        first.communicate()
        ended(*others)
        check(tmp_path, 30, studies_db, runs_db)


@pytest.mark.faults
def test_a_study_is_logged_on_an_mlflow_server(tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
               "--artifacts-destination", str(tmp_path / "kept")]  # fmt: skip
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            time.sleep(0.5)
            with suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"{uri}/health", retries=False).status == 200:
                    break
        ((said, _),) = ended(start(tmp_path, "trials=8", f"mlflow_db={uri}"))
        assert f"all runs: {uri}/#/experiments/" in said
        check(tmp_path, 8, "", uri)
    finally:
        service.terminate()
        service.wait()
    assert list((tmp_path / "kept").rglob("front.csv"))
