"""A variant whose worker dies each time: the study goes on without it and says so."""

import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from command import ptsearch
from small_study import SMALL, STUDY

from ptsearch.evaluation.workers import ANY, Processes
from ptsearch.shared import Report

POOL = "[{method: rtn, bits: [3, 8]}, {method: gptq, bits: [3, 4]}]"
WORST, WORSE = "rtn-3b-g32-s0", "gptq-4b-g32-s0"


def concerned(job: partial[Any]) -> list[str]:
    """The variants that a call builds or evaluates."""
    if job.func.__name__ == "build_pool":
        return [variant.label for variant in job.args[1]]
    return [job.args[0].label] if job.func.__name__ == "run" else []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls that are killed as they report something, by what they are about: builds with one
    variant, evaluations of another.
    """
    killed, call = list[list[str]](), Processes.call

    def deadly(self: Processes, job: partial[Any], report: Report, bounds=ANY) -> Any:
        labels = concerned(job)
        if doomed := WORST in labels or labels == [WORSE]:
            killed.append(labels)

        def told(stage: str, done: int, total: int) -> None:
            report(stage, done, total)
            if doomed and stage.startswith(("building", "evaluating")):
                for child in psutil.Process().children():
                    with suppress(psutil.Error):  # those killed before
                        if "popen_loky_posix" in " ".join(child.cmdline()):
                            os.kill(child.pid, signal.SIGKILL)

        return call(self, job, told, bounds)

    monkeypatch.setattr(Processes, "call", deadly)
    return killed


@pytest.mark.faults
def test_the_study_goes_on_without_variants_whose_workers_die(
    tiny_model: Path, tmp_path: Path, calls: list[list[str]], monkeypatch, capfd
) -> None:
    study = ("+study=pareto", "model=path", f"model.path={tiny_model}", "study.name=tiny",
             "pool.group_size=32", f"pool.variants={POOL}", *STUDY, "study.trials=3",
             "compute.workers=1")  # fmt: skip
    assert ptsearch(monkeypatch, tmp_path, *study) == 0
    said = " ".join(capfd.readouterr().out.split())
    cause = "a worker process was killed, most likely for lack of memory"
    assert f"could not be built: {cause}: {WORST}" in said
    assert f"could not be evaluated: {cause}: {WORSE}" in said
    assert [len(labels) for labels in calls if WORST in labels] == [4, 4, 2, 1]
    assert calls.count([WORSE]) == 2
    trials = optuna.load_study(
        study_name="tiny", storage=f"sqlite:///{tmp_path}/mlruns/optuna.db"
    ).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    tried = {label for trial in trials for label in trial.user_attrs["found"]["members"]}
    assert tried == {"rtn-8b-g32-s0", "gptq-3b-g32-s0"}


def test_a_job_about_a_variant_that_fails_says_so(
    tiny_model: Path, tmp_path: Path, calls: list[list[str]], monkeypatch, capfd
) -> None:
    model = (
        "model=path",
        f"model.path={tiny_model}",
        "pool.group_size=32",
        *SMALL,
        "compute.workers=1",
    )
    pool = f"pool.variants={POOL}"
    job = ("+evaluate=variant", f"evaluate.variant={WORST}", pool, *model)
    assert ptsearch(monkeypatch, tmp_path, *job) == 2
    assert f"ptsearch: {WORST} could not be built: a worker" in capfd.readouterr().err
