"""MLflow as the study uses it: nested runs, resuming, the front's tags, artifacts."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from fakes import fake_table, search_and_holdout
from small_study import files_under

from ptsearch.report import run_records, study_output, tracking
from ptsearch.report import study as report
from ptsearch.report.page import PAGE
from ptsearch.scoring import scores
from ptsearch.search import exact_front, trials
from ptsearch.search import study as studies
from ptsearch.search.fronts import Front
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
        return tracking.log_run(tracker, run_records.of_trial(table, trial, found, feasible))

    run = trials.Search(study, table, scorer, on_trial)
    trials.search(run)
    exact = exact_front.complete(run)
    front = Front(exact, studies.front(study))
    result = report.compile_result(table, [], study, parts, front)
    study_output.log_result(tracker, table, result)
    return tracker


def nested(tracker: tracking.Tracker) -> list:
    mine = f"tags.mlflow.parentRunId = '{tracker.run_id}'"
    return list(tracker.client.search_runs([tracker.experiment_id], mine, max_results=1000))


def trials_of(tracker: tracking.Tracker) -> list:
    return [run for run in nested(tracker) if "trial" in run.data.tags]


def test_every_trial_is_a_nested_run_and_the_front_is_tagged(uri: str, tmp_path: Path) -> None:
    table = fake_table(tmp_path, trials=15)
    tracker = search_and_log(table, uri, tmp_path)
    runs = trials_of(tracker)
    proposed = [run.data.tags["proposed_by"] for run in runs]
    assert proposed.count("sampler") == 15
    assert all(run.info.status == "FINISHED" for run in runs)
    study = studies.load_study("fake", f"sqlite:///{tmp_path}/optuna.db")
    tagged = {run.info.run_id for run in runs if run.data.tags["pareto"] == "true"}
    assert tagged == {found.run_id for found in studies.front(study)}
    one = next(run for run in runs if run.info.run_id in tagged)
    assert {
        "trust_pct", "mmlu_pct", "memory_gb", "latency_ms", "refused_pct", "adversarial_pct",
        "fairness_pct", "ethics_pct", "ood_pct", "trust_pct_held_out", "memory_pct_of_dense",
        "trust_vs_dense_points_low", "trust_vs_best_single_points",
    } <= one.data.metrics.keys()  # fmt: skip
    assert one.data.params.keys() == {"members", "size", "methods", "bits"}
    scorer, held_out = search_and_holdout(table)
    members = tuple(one.data.params["members"].split(" + "))
    for name, scored in (("trust_pct", scorer), ("trust_pct_held_out", held_out)):
        expected = scored(table, members)["trust"]
        assert one.data.metrics[name] == pytest.approx(expected, abs=0.0051)
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
    runs = trials_of(second)
    assert [run.data.tags["proposed_by"] for run in runs].count("sampler") == 18
    study = studies.load_study("fake", f"sqlite:///{tmp_path}/optuna.db")
    tagged = {run.info.run_id for run in runs if run.data.tags["pareto"] == "true"}
    assert tagged == {found.run_id for found in studies.front(study)}
    reported = {run.info.run_id for run in runs if run.data.tags["reported"] == "true"}
    assert tagged <= reported
    members = [run.data.params["members"] for run in nested(second)]
    assert len(set(members)) == len(members) == len(runs) + 1  # the dense model has its run once


def test_dense_and_single_variants_are_runs_beside_the_ensembles(uri: str, tmp_path: Path) -> None:
    table = fake_table(tmp_path, trials=2, samples=1000)
    runs = nested(search_and_log(table, uri, tmp_path))
    kinds = {run.data.params["members"]: run.data.tags["kind"] for run in runs}
    assert kinds["none"] == "dense"
    assert {label for label, kind in kinds.items() if kind == "single"} == set(table.variants)
    reported = [run for run in runs if run.data.tags["reported"] == "true"]
    assert {"dense", "single", "ensemble"} == {run.data.tags["kind"] for run in reported}
    assert all(run.data.metrics["memory_pct_of_dense"] > 0 for run in reported)


def test_a_run_has_few_metrics_with_units_and_a_description(uri: str, tmp_path: Path) -> None:
    tracker = search_and_log(fake_table(tmp_path, trials=6, samples=1000), uri, tmp_path)
    for run in nested(tracker):
        metrics, tags = run.data.metrics, run.data.tags
        assert 8 <= len(metrics) <= run_records.MOST == 25
        for name in metrics:
            assert re.fullmatch(
                r"\w+_(pct(_held_out|_of_dense)?|points(_low|_high)?|gb|ms|nats)", name
            )
        assert "percent on the search half" in tags["mlflow.note.content"]
        if tags["pareto"] == "true":
            assert f"export.pick={run.info.run_id[:8]}" in tags["mlflow.note.content"]
    parent = tracker.client.get_run(tracker.run_id).data
    scores = {run.data.params["members"]: run.data.metrics for run in nested(tracker)}
    assert parent.metrics["dense/trust_pct"] == scores["none"]["trust_pct"]
    best = max(each["trust_pct"] for members, each in scores.items() if members != "none")
    assert parent.metrics["best_trust/trust_pct"] == best


def test_the_parent_leads_to_the_page_the_table_and_the_certificates(uri, tmp_path) -> None:
    tracker = search_and_log(fake_table(tmp_path, trials=6, samples=1000), uri, tmp_path)
    note = tracker.client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    linked = re.findall(r"\(#/experiments/(\w+)/runs/(\w+)/artifacts/([\w.]+)\?workflow", note)
    assert {name for *_, name in linked} == {PAGE, "front.csv", "certificate.json"}
    for experiment, run_id, name in linked:
        assert experiment == tracker.experiment_id
        assert name in {item.path for item in tracker.client.list_artifacts(run_id)}
    key = tracker.run_id[:8]  # of each view of an experiment one
    assert f"runs?viewStateShareKey={key}&" in note
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    logged = {f"metrics.`{name}`" for run in nested(tracker) for name in run.data.metrics}
    *tags, columns = view["selectedColumns"][:2], view["selectedColumns"][2:]
    assert tags == [["tags.`kind`", "tags.`picks`"]] and set(columns) <= logged
    assert columns[:2] == ["metrics.`trust_pct`", "metrics.`trust_pct_held_out`"]
    shown = tracker.client.search_runs([tracker.experiment_id], view["searchFilter"])
    assert {run.data.tags["kind"] for run in shown} == {"dense", "single", "ensemble"}


def test_the_parent_holds_picture_table_and_config(uri: str, tmp_path: Path) -> None:
    tracker = search_and_log(fake_table(tmp_path, trials=6), uri, tmp_path)
    files = {item.path: item.file_size for item in tracker.client.list_artifacts(tracker.run_id)}
    assert files.keys() >= {"report.html", "pareto.png", "front.csv", "config.json", "data.json"}
    assert files.keys() >= {"samples.parquet", "diversity.csv", "gain_split.csv"}
    assert files["pareto.png"] > 10_000
    page = tmp_path / "reports" / "fake" / "report.html"
    assert files["report.html"] == page.stat().st_size


def test_a_copied_project_writes_into_its_own_folder(uri: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.move(tmp_path / "mlflow.db", old)
    for study in ("a", "b"):
        made = tracking.open_run(f"sqlite:///{old}/mlflow.db", old / "artifacts", study, None)
        (old / "artifacts" / study).mkdir(parents=True)  # MLflow's client remembers places
    shutil.copytree(old, new)
    before = files_under(old)
    again = tracking.open_run(f"sqlite:///{new}/mlflow.db", new / "artifacts", "b", made.run_id)
    tracking.log_text(again, again.run_id, "new.txt", "b")
    other = tracking.open_run(f"sqlite:///{new}/mlflow.db", new / "artifacts", "a", None)
    tracking.log_text(other, other.run_id, "new.txt", "a")
    assert files_under(old) == before
    written = [path.read_text() for path in (new / "artifacts").rglob("new.txt")]
    assert sorted(written) == ["a", "b"]
    assert made.client.get_run(made.run_id).info.artifact_uri.startswith(old.as_uri())


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
    tried = {run.data.params["members"] for run in trials_of(tracker)}
    assert ("v0-3b" in tried) == (half == "held-out")
    one = next(run for run in runs if run.data.tags["pareto"] == "true")
    assert ("trust_pct_held_out" in one.data.metrics) == (half == "search")
    assert "ethics_pct_held_out" in one.data.metrics
    kept = tracker.client.download_artifacts(one.info.run_id, "certificate.json")
    told = json.loads(Path(kept).read_text(), parse_constant=pytest.fail)
    untested = told["verdict"].startswith("not tested: no intervals: trust, fairness: some model")
    assert untested == (half == "held-out")


def test_the_link_opens_the_page_of_the_parent_run() -> None:
    link = tracking.link(tracking.Tracker(None, "7", "parent"), "report.html")
    page = "http://127.0.0.1:5000/#/experiments/7/runs/parent/artifacts/report.html"
    assert link == f"{page}?workflowType=machine_learning"
