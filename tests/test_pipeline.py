"""The whole path on a tiny random model: study, resume, tables, export."""

import csv
import json
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from command import ptsearch
from judge_server import Served, serve
from safetensors.torch import load_file, save_file
from small_study import STUDY, files_under
from tiny import write_tiny_model

from ptsearch import jobs, store
from ptsearch.benchmarks.registry import NAMES
from ptsearch.deploy import folder as exported
from ptsearch.deploy.ensemble import PrecisionEnsemble
from ptsearch.report.page import PAGE

POOL = "[{method: [rtn, gptq], bits: [3, 4], sym: false}, {method: gptq, bits: 8}]"


def study(model: Path, *overrides: str) -> tuple[str, ...]:
    base = ("model=path", f"model.path={model}", "model.name=tiny", f"pool.variants={POOL}")
    return ("+study=pareto", *base, *STUDY, "study.name=tiny", "study.trials=8", *overrides)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study has run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        assert ptsearch(patch, folder, *study(tiny_model)) == 0
    return folder


def test_everything_generated_lies_under_mlruns(finished: Path) -> None:
    assert [path.name for path in finished.iterdir()] == ["mlruns"]
    cache = finished / "mlruns" / "cache"
    assert len(list((cache / "variants").iterdir())) == 6  # five variants and the dense model
    assert len(list((cache / "predictions").glob("[!.]*"))) == 6 * 5  # beside lock files


def test_the_front_is_in_mlflow(finished: Path) -> None:
    table = next((finished / "mlruns" / "artifacts").rglob("front.csv"))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    front = [row for row in rows if row["kind"] == "front"]
    assert front
    assert {row["members"] for row in rows if row["kind"] == "dense"} == {"none"}
    with sqlite3.connect(finished / "mlruns" / "mlflow.db") as database:
        query = "select run_uuid from tags where key = 'pareto' and value = 'true'"
        tagged = {row[0] for row in database.execute(query)}
    assert tagged == {row["run_id"] for row in front}


def test_again_builds_and_evaluates_nothing(finished, tiny_model, monkeypatch, capfd) -> None:
    cache = finished / "mlruns" / "cache"
    before = files_under(cache)
    assert ptsearch(monkeypatch, finished, *study(tiny_model)) == 0
    assert files_under(cache) == before
    said = capfd.readouterr().out
    assert "Pareto front of tiny" in said
    assert f"/artifacts/{PAGE}?workflowType=machine_learning\n" in said
    link = (finished / "mlruns" / jobs.LINK).read_text()
    assert f"make ui, then {link}" in said
    assert f"mlruns/{jobs.LINK}" in (Path(__file__).parents[1] / "Makefile").read_text()
    assert "reports/tiny/report.html" in said
    assert "+export=ensemble export.study=tiny export.pick=" in said
    assert "evaluating" not in said
    assert "method: [rtn, gptq]" in said  # in a command to copy
    assert "study.need_skill=false" in said.split("\nlimits")[1]
    stages = ("opening the study", "scoring every ensemble", "intervals", "writing the report")
    assert sorted(map(said.index, stages)) == [said.index(f"\n{each}") + 1 for each in stages]


def test_the_commands_of_the_page_find_and_export_the_best_within_limits(
    finished, tmp_path, monkeypatch, capfd
) -> None:
    html = (finished / "mlruns" / "reports" / "tiny" / PAGE).read_text(encoding="utf-8")
    data = html.split('id="data">')[1].split("</script>")[0]
    search, export = (shlex.split(command)[3:] for command in json.loads(data)["commands"])
    assert ptsearch(monkeypatch, finished, *search, "study.max.refusal_rate=100") == 0
    assert "Within the limits of tiny" in capfd.readouterr().out
    here = [each.replace("=chosen", f"={tmp_path}/chosen") for each in export]
    assert ptsearch(monkeypatch, finished, *here) == 0
    assert (tmp_path / "chosen" / "README.md").exists()


def test_other_answers_are_another_study(finished, tiny_model, monkeypatch, capfd) -> None:
    assert ptsearch(monkeypatch, finished, *study(tiny_model, "benchmarks.limit=5")) == 0
    said = capfd.readouterr().out
    assert "benchmarks.limit (10, now 5)" in said
    assert "this one is tiny-" in said


def test_a_copied_project_is_one_of_its_own(finished, tiny_model, monkeypatch, tmp_path) -> None:
    """MLflow's places of artifacts are absolute: nothing may be written into, or read from, the old
    folder.
    """
    copy, gone = tmp_path / "copy", finished.with_name("gone")
    shutil.copytree(finished, copy)
    finished.rename(gone)
    started = time.time()
    command = [sys.executable, "-m", "ptsearch", "compute.workers=0"]  # MLflow keeps places by run
    try:
        subprocess.run([*command, *study(tiny_model)], cwd=copy, check=True)
        job = ("+export=ensemble", "export.study=tiny", f"export.out={tmp_path / 'out'}")
        assert ptsearch(monkeypatch, copy, *job) == 0
        assert not finished.exists()
    finally:
        shutil.rmtree(finished, ignore_errors=True)
        gone.rename(finished)
    with sqlite3.connect(copy / "mlruns" / "mlflow.db") as database:
        query = "select artifact_uri from runs union select artifact_location from experiments"
        places = [place for (place,) in database.execute(query) if "/artifacts/" in place]
    assert places
    here = (copy / "mlruns" / "artifacts").as_uri()
    assert [place for place in places if not place.startswith(here)] == []
    written = (copy / "mlruns" / "artifacts").rglob("front.csv")
    assert any(path.stat().st_mtime > started for path in written)


def test_a_budget_that_nothing_meets(finished, tiny_model, monkeypatch, capfd) -> None:
    broke = study(tiny_model, "study.name=broke", "study.max.memory_gb=0.000001")
    assert ptsearch(monkeypatch, finished, *broke) == 2
    shown = capfd.readouterr()
    assert "Relaxations that one ensemble meets" in shown.out
    assert "ensembles meets the limits together" in shown.err
    assert shown.err.count("\n") <= 2


@pytest.mark.parametrize("pick", ["knee", "best_trust"])
def test_the_export_stands_alone(pick: str, finished, monkeypatch, tmp_path) -> None:
    out = tmp_path / "out"
    job = ("+export=ensemble", "export.study=tiny", f"export.out={out}", f"export.pick={pick}")
    assert ptsearch(monkeypatch, finished, *job) == 0
    assert store.verify_folder(out) == []
    described = yaml.safe_load((out / "ensemble.yaml").read_text())
    assert described["vote"]["rule"] == "majority"
    assert (described["chat"]["prompt"], described["chat"]["texts"]) == ("chat", "text")
    assert set(described["vote"]["order"]) == {m["label"] for m in described["members"]}
    for member in described["members"]:
        folder = out / member["folder"]
        assert json.loads((folder / "config.json").read_text())["quantization_config"]
        for name, digest in member["files"].items():
            assert store.sha256_file(folder / name) == digest
    assert "trust" in described["scores"]["search"]
    assert "trust" in described["scores"]["holdout"]
    assert described["verdict"].startswith(
        ("not tested", "trust ", "worse than dense")
    )  # tiny and random
    logged = exported.read_verify(exported.open_folder(out))
    assert {row.sample.split("/")[0] for row in logged} == set(NAMES)
    answers = PrecisionEnsemble.from_pretrained(out).ask([row.query for row in logged])
    assert [answer.label for answer in answers] == [row.vote for row in logged]
    assert [answer.members for answer in answers] == [row.members for row in logged]


def test_an_exported_ensemble_is_registered_by_reference(finished, monkeypatch, tmp_path) -> None:
    import mlflow

    out = tmp_path / "out"
    job = ("+export=ensemble", "export.study=tiny", f"export.out={out}", "export.register=tiny")
    assert ptsearch(monkeypatch, finished, *job) == 0
    mlflow.set_tracking_uri(f"sqlite:///{finished}/mlruns/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/tiny/1")
    asked = [{"prompt": "Is it?", "labels": ["no", "yes"]}, {"prompt": "A", "labels": ["b", "c"]}]
    expected = [
        PrecisionEnsemble.from_pretrained(out).answer([row["prompt"]], row["labels"])[0].label
        for row in asked
    ]
    assert model.predict(pd.DataFrame(asked)) == expected
    copied = list((finished / "mlruns" / "artifacts").rglob("*.safetensors"))
    assert copied == []


def test_a_study_under_another_vote(finished, tiny_model, monkeypatch, tmp_path, capfd) -> None:
    soft = study(tiny_model, "study.name=soft", "vote=soft", "study.max_members=2")
    assert ptsearch(monkeypatch, finished, *soft) == 0
    assert "soft vote: " in (finished / "mlruns/reports/soft/report.html").read_text()
    job = ("+export=ensemble", "export.study=soft", f"export.out={tmp_path / 'out'}")
    assert ptsearch(monkeypatch, finished, *job) == 2
    assert "only vote=majority is served" in capfd.readouterr().err


def test_another_dense_model_is_a_baseline(
    finished, tiny_model, monkeypatch, tmp_path, capfd
) -> None:
    """Named by a file of the user's own; the gain over it has an interval, in the certificate."""
    smaller = write_tiny_model(tmp_path / "smaller", num_hidden_layers=1)
    (tmp_path / "conf/model").mkdir(parents=True)
    own = {"name": "smaller", "source": "path", "path": str(smaller)}
    (tmp_path / "conf/model/smaller.yaml").write_text(yaml.safe_dump(own))
    named = ("study.baselines=[smaller]", f"--config-dir={tmp_path}/conf")
    enough = ("benchmarks.limit=24", "pool.variants=[{method: rtn, bits: [3, 4], sym: false}]")
    replaced = tuple(each.split("=")[0] for each in enough)
    asked = [each for each in study(tiny_model)[1:-2] if not each.startswith(replaced)]
    job = ("+study=slo", *asked, *enough, "study.name=weighed", *named)
    assert ptsearch(monkeypatch, finished, *job) == 0
    assert "no smaller dense model" not in capfd.readouterr().out
    with sqlite3.connect(finished / "mlruns" / "optuna.db") as database:
        query = "select value_json from study_user_attributes where key = 'front' order by rowid"
        *_, (found,) = database.execute(query)
    (pick,) = json.loads(found)
    gains = pick["certificate"]["gains"]
    assert gains.keys() == {"dense", "best_single", "smaller dense"}
    gain = gains["smaller dense"]["trust"]
    assert gain["low"] < gain["estimate"] < gain["high"]
    assert "smaller dense" in pick["certificate"]["verdict"]


def test_limits_first(finished, tiny_model, monkeypatch, tmp_path, capfd) -> None:
    asked = ("+study=slo", *study(tiny_model)[1:-2], "study.name=slo", "study.max_members=2")
    assert ptsearch(monkeypatch, finished, *asked, "study.max.memory_gb=1") == 0
    assert "15 of 15 ensembles meet the limits" in capfd.readouterr().out
    job = ("+export=ensemble", "export.study=slo", f"export.out={tmp_path / 'out'}")
    assert ptsearch(monkeypatch, finished, *job) == 0
    assert ptsearch(monkeypatch, finished, *asked, "study.max.memory_gb=0.000001") == 2
    told = capfd.readouterr()
    assert "Relaxations that one ensemble meets" in told.out
    assert "ptsearch: none of 15 ensembles meets the limits together" in told.err
    assert list((finished / "mlruns" / "artifacts" / "slo").rglob("relaxations.csv"))


def test_a_damaged_member_is_not_exported(finished, monkeypatch, tmp_path, capfd) -> None:
    weights = sorted((finished / "mlruns/cache/variants").rglob("model-*.safetensors"))
    whole = [path.read_bytes() for path in weights]
    for path, content in zip(weights, whole, strict=True):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    job = ("+export=ensemble", "export.study=tiny", f"export.out={tmp_path / 'out'}")
    assert ptsearch(monkeypatch, finished, *job) == 2
    assert "is damaged" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    for path, content in zip(weights, whole, strict=True):
        path.write_bytes(content)


def test_evaluate_prints_a_line_a_benchmark(finished, tiny_model, monkeypatch, capfd) -> None:
    job = ("+evaluate=variant", "evaluate.variant=none", *study(tiny_model)[1:-3])
    assert ptsearch(monkeypatch, finished, *job) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["benchmark"] for row in rows] == [
        "mmlu",
        "adversarial",
        "fairness",
        "ethics",
        "ood",
    ]
    assert all(0 <= row["scores"][row["benchmark"]] <= 100 for row in rows)
    for row in rows:
        assert (row["notes"], row["dropped"]) == ([], 0)
        assert row["majority"].keys() == row["constant"].keys() != set()
        assert all(0 <= share <= row["constant"][name] for name, share in row["majority"].items())
    assert "mmlu.macro" in rows[0]["scores"]


def test_a_judge_reads_what_the_rules_cannot(finished, tiny_model, monkeypatch, capfd) -> None:
    cache = finished / "mlruns" / "cache"
    before = files_under(cache / "predictions")
    with serve(Served(lambda _: "refused")) as url:
        judge = ("benchmarks.extract=judge", f"benchmarks.judge.url={url}")
        judge += ("benchmarks.judge.name=m",)
        job = ("+evaluate=variant", "evaluate.variant=none", *study(tiny_model)[1:-3], *judge)
        assert ptsearch(monkeypatch, finished, *job) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    judged = {row["benchmark"]: row["scores"][f"{row['benchmark']}.judged"] for row in rows}
    assert files_under(cache / "predictions") == before
    verdicts = files_under(cache / "judged")
    assert verdicts
    assert 0 < max(judged.values()) <= 100
    assert ptsearch(monkeypatch, finished, *job) == 0
    assert files_under(cache / "judged") == verdicts


@pytest.mark.slow
def test_limited_builds_build_less(tiny_model, monkeypatch, tmp_path, capfd) -> None:
    some = study(tiny_model, "study.name=some", "study.max_builds=2")
    other = (*some, f"cache_dir={tmp_path}/cache")
    assert ptsearch(monkeypatch, tmp_path, *other) == 0
    assert len(list((tmp_path / "cache" / "variants").iterdir())) == 3  # and the dense model
    assert "not among the study.max_builds=2 built" in capfd.readouterr().out


def test_a_variant_whose_logits_are_not_finite_may_not_vote(
    tiny_model, tmp_path, monkeypatch, capfd
) -> None:
    weights = load_file(tiny_model / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    pool = (
        "pool.variants=[{method: rtn, bits: [4, 8]}]",
        f"pool.paths=[{{path: {broken}, label: broken-4b, bits: 4}}]",
    )
    assert ptsearch(monkeypatch, tmp_path, *study(tiny_model, *pool, "study.name=nan")) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "degenerate, may not vote: broken-4b" in said
    assert "Pareto front of nan" in said


def test_a_database_named_by_a_variable_is_written_nowhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    databases = tmp_path / "hunter2"
    databases.mkdir()
    monkeypatch.setenv("OPTUNA_URL", f"sqlite:///{databases}/o.db")
    monkeypatch.setenv("MLFLOW_URL", f"sqlite:///{databases}/m.db")
    work = tmp_path / "work"
    work.mkdir()
    named = ("optuna_db=env:OPTUNA_URL", "mlflow_db=env:MLFLOW_URL")
    assert ptsearch(monkeypatch, work, *study(tiny_model, *named)) == 0
    export = ("+export=ensemble", "export.study=tiny", f"export.out={work}/out", *named)
    assert ptsearch(monkeypatch, work, *export) == 0
    assert {file.name for file in databases.iterdir()} >= {"o.db", "m.db"}
    written = [file for file in (*work.rglob("*"), *databases.iterdir()) if file.is_file()]
    assert [file for file in written if b"hunter2" in file.read_bytes()] == []
    captured = capfd.readouterr()
    assert "hunter2" not in captured.out + captured.err
