"""MLflow as the study uses it: nested runs, resuming, the front's tags, artifacts."""

import json
import math
import shutil
from pathlib import Path

import pytest
from fakes import fake_table, search_and_holdout

from ptsearch.report import study as report
from ptsearch.report import study_output, tracking
from ptsearch.scoring import scores
from ptsearch.search import exact_front, trials
from ptsearch.search import study as studies
from ptsearch.search.scorer import scorers


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database; its migrations cost seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.open_run(f"sqlite:///{path}", path.parent, "template", None)
    return path


@pytest.fixture
def uri(migrated: Path, tmp_path: Path) -> str:
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def search_and_log(table, uri: str, folder: Path) -> tracking.Tracker:
    study = studies.open_study(table.config, f"sqlite:///{folder}/optuna.db", {"a": 1})
    run_id = study.user_attrs.get("run_id")
    tracker = tracking.open_run(uri, folder / "artifacts", table.config.study.name, run_id)
    study.set_user_attr("run_id", tracker.run_id)
    parts = scorers(table)
    scorer = parts["search"]

    def on_trial(trial, found, feasible) -> str:
        return tracking.log_run(tracker, study_output.trial_record(table, trial, found, feasible))

    run = trials.Search(study, table, scorer, on_trial)
    trials.search(run)
    exact = exact_front.complete(run)
    front = report.Front(exact, studies.front(study))
    result = report.compile_result(table, [], study, parts, front)
    study_output.log_result(tracker, table, study, result)
    return tracker


def nested(tracker: tracking.Tracker) -> list:
    mine = f"tags.mlflow.parentRunId = '{tracker.run_id}'"
    return list(tracker.client.search_runs([tracker.experiment_id], mine, max_results=1000))


def test_every_trial_is_a_nested_run_and_the_front_is_tagged(uri: str, tmp_path: Path) -> None:
    table = fake_table(tmp_path, trials=15)
    tracker = search_and_log(table, uri, tmp_path)
    runs = nested(tracker)
    proposed = [run.data.tags["proposed_by"] for run in runs]
    assert proposed.count("sampler") == 15
    assert all(run.info.status == "FINISHED" for run in runs)
    study = studies.load_study("fake", f"sqlite:///{tmp_path}/optuna.db")
    tagged = {run.info.run_id for run in runs if run.data.tags["pareto"] == "true"}
    assert tagged == {found.run_id for found in studies.front(study)}
    one = next(run for run in runs if run.info.run_id in tagged)
    assert {"trust", "mmlu", "memory_gb", "latency_ms", "refusal_rate", "adversarial",
            "fairness", "ethics", "ood", "holdout.trust"} <= one.data.metrics.keys()  # fmt: skip
    assert one.data.params.keys() == {"members", "size", "methods", "bits"}
    scorer, held_out = search_and_holdout(table)
    members = tuple(one.data.params["members"].split(" + "))
    assert one.data.metrics["trust"] == scorer(table, members)["trust"]
    assert one.data.metrics["holdout.trust"] == held_out(table, members)["trust"]
    kept = tracker.client.download_artifacts(one.info.run_id, "certificate.json")
    certificate = json.loads(Path(kept).read_text())
    assert certificate["holdout_reads"] == 1
    assert certificate["members"]


def test_a_resumed_study_keeps_its_run_and_untags_what_is_dominated(uri: str, tmp_path) -> None:
    table = fake_table(tmp_path, trials=6)
    first = search_and_log(table, uri, tmp_path)
    table.config.study.trials = 18
    second = search_and_log(table, uri, tmp_path)
    assert first.run_id == second.run_id
    runs = nested(second)
    assert [run.data.tags["proposed_by"] for run in runs].count("sampler") == 18
    study = studies.load_study("fake", f"sqlite:///{tmp_path}/optuna.db")
    tagged = {run.info.run_id for run in runs if run.data.tags["pareto"] == "true"}
    assert tagged == {found.run_id for found in studies.front(study)}
    assert study.user_attrs["holdout_reads"] == 2


def test_the_parent_holds_picture_table_and_config(uri: str, tmp_path: Path) -> None:
    tracker = search_and_log(fake_table(tmp_path, trials=6), uri, tmp_path)
    files = {item.path: item.file_size for item in tracker.client.list_artifacts(tracker.run_id)}
    assert files.keys() >= {"report.html", "pareto.png", "front.csv", "config.json", "data.json"}
    assert files.keys() >= {"samples.parquet", "diversity.csv", "gain_split.csv"}
    assert files["pareto.png"] > 10_000
    page = tmp_path / "reports" / "fake" / "report.html"
    assert files["report.html"] == page.stat().st_size


def test_a_deleted_database_starts_a_new_run(uri: str, tmp_path: Path) -> None:
    tracker = tracking.open_run(uri, tmp_path, "fake", "0" * 32)
    assert tracker.run_id != "0" * 32


def test_limits_that_nothing_meets_are_named(uri: str, tmp_path: Path) -> None:
    table = fake_table(tmp_path, trials=6)
    table.config.study.max["memory_gb"] = 0.01
    with pytest.raises(ValueError, match=r"study.max.memory_gb=0.01 \(best: 0.08"):
        search_and_log(table, uri, tmp_path)


@pytest.mark.parametrize("half", ["search", "held-out"])
def test_a_score_that_is_not_estimable_is_not_logged(half: str, uri: str, tmp_path: Path) -> None:
    """One sex without answers: no candidate on the search half, on the other no fairness."""
    table = fake_table(tmp_path, samples=240, trials=6)
    asked = scores.questions(table.benchmarks, table.config.benchmarks.split.salt)
    for label in ("none", "v0-3b") if half == "search" else table.entries:
        women = (asked.group == 0) & (asked.holdout == (half == "held-out"))
        table.entries[label].codes[women] = -1
    tracker = search_and_log(table, uri, tmp_path)
    runs = nested(tracker)
    values = [value for run in runs for value in run.data.metrics.values()]
    assert values and not any(map(math.isnan, values))
    assert ("v0-3b" in {run.data.params["members"] for run in runs}) == (half == "held-out")
    one = next(run for run in runs if run.data.tags["pareto"] == "true")
    assert ("holdout.trust" in one.data.metrics) == (half == "search")
    assert "holdout.ethics" in one.data.metrics
    kept = tracker.client.download_artifacts(one.info.run_id, "certificate.json")
    told = json.loads(Path(kept).read_text(), parse_constant=pytest.fail)
    untested = told["verdict"].startswith("not tested: no intervals: trust, fairness: some model")
    assert untested == (half == "held-out")


def test_the_link_names_runs_and_experiment() -> None:
    tracker = tracking.Tracker(None, "7", "parent")
    assert tracking.runs_link(tracker).endswith(
        "#/experiments/7/runs?workflowType=machine_learning"
    )
    link = tracking.compare_link(tracker, ["a", "b"])
    assert link.endswith("compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%227%22%5D")
