"""Both experiments as commands, on a tiny random model."""

import csv
import json
import sqlite3
from pathlib import Path

import pytest
from command import ptsearch
from small_study import STUDY, files_under

POOL = "[{method: rtn, bits: [3, 4, 8]}, {method: gptq, bits: 4, seed: [0, 1]}]"


def experiment(kind: str, model: Path, *overrides: str) -> tuple[str, ...]:
    base = ("model=path", f"model.path={model}", "model.name=tiny", f"pool.variants={POOL}")
    return (f"+study={kind}", *base, *STUDY, f"study.name={kind}", *overrides)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both have run."""
    folder = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("benchmark", "paper"):
            assert ptsearch(patch, folder, *experiment(kind, tiny_model)) == 0
    return folder


@pytest.mark.parametrize("kind", ["benchmark", "paper"])
def test_a_run_for_every_line_and_its_files(kind: str, finished: Path) -> None:
    table = next((finished / "mlruns" / "artifacts" / kind).rglob("front.csv"))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = {"report.html", "config.json", "scenarios.csv"}
    assert files <= {path.name for path in table.parent.iterdir()}
    data = json.loads((table.parent / "data.json").read_text())
    assert data.keys() == {"adversarial", "ethics", "fairness", "mmlu", "ood"}
    assert all(len(sha256) == 64 for files in data.values() for sha256 in files.values())
    with sqlite3.connect(finished / "mlruns" / "mlflow.db") as database:
        query = "select run_uuid from runs where status = 'FINISHED'"
        runs = {row[0] for row in database.execute(query)}
    chosen = [row for row in rows if row["kind"] == "front"]
    assert {row["run_id"] for row in chosen} <= runs
    assert "tiny dense" in [row["name"] for row in rows]
    assert all(row["all.trust"] for row in rows if row["kind"] != "constant")
    sizes = sorted(int(row["size"]) for row in chosen)
    assert sizes == {"benchmark": [1] * 5, "paper": [2, 3]}[kind]


def test_they_share_what_was_evaluated(finished: Path) -> None:
    predictions = finished / "mlruns" / "cache" / "predictions"
    assert len(list(predictions.rglob("*.parquet"))) == 6 * 5  # five variants and the dense model


@pytest.mark.parametrize("rules", ["ct", "dt"])
def test_other_rules_evaluate_nothing(
    rules: str, finished: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = finished / "mlruns" / "cache"
    before = files_under(cache / "predictions") | files_under(cache / "variants")
    again = experiment("benchmark", tiny_model, f"benchmarks.rules={rules}", f"study.name={rules}")
    assert ptsearch(monkeypatch, finished, *again) == 0
    assert files_under(cache / "predictions") | files_under(cache / "variants") == before
