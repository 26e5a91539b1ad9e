"""One study, several processes: one budget, nothing twice, one parent run; any may be killed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakes import fake_table
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna import Study
from optuna.trial import TrialState

from ptsearch.report import tracking
from ptsearch.search import exact_front, trials
from ptsearch.search import study as studies
from ptsearch.search.database import shared
from ptsearch.search.scorer import scorers
from ptsearch.search.trials import Search

TESTS = Path(__file__).parents[1]
Process = subprocess.Popen[str]


def start(folder: Path, *given: str, seconds: float = 0.0) -> Process:
    command = [sys.executable, str(TESTS / "one_of_many.py"), str(folder), str(seconds), *given]
    path = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=os.environ | path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


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
    whole = [run for run in nested if run.info.status == "FINISHED"]
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


@pytest.mark.faults
def test_three_processes_on_fresh_databases_share_the_budget(tmp_path: Path) -> None:
    processes = [start(tmp_path, "trials=24", seconds=0.1) for _ in range(3)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    check(tmp_path, 24)
    study = study_in(tmp_path)
    workers = {trial.user_attrs["claim"]["process"] for trial in study.trials if trial.values}
    assert len(workers) == 3
    assert study.user_attrs["holdout_reads"] == 1
    assert sum("Pareto front of fake" in out for out, _ in said) == 1
    assert sum("another process reported it" in out for out, _ in said) == 2
