"""What a person meets: usage, clear errors with exit status 2, no traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import ptsearch

from ptsearch import cli


def test_without_a_job_it_says_what_there_is(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ptsearch"])
    cli.main()
    assert list(tmp_path.iterdir()) == []
    assert "+study=pareto" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("+study=pareto", "study.trails=50"), "no key study.trails (did you mean study.trials?)"),
        (("+study=pareto", "study.min.ethic=5"), "(did you mean study.min.ethics?)"),
        (("+study=pareto", "+study.mim.x=5"), "no key study.mim (did you mean min?)"),
        (("+study=pareto", "modle.name=x"), "(did you mean model.name?)"),
        (("+study=pareto", "model=llama"), "model is one of hub, llama2_13b_chat"),
        (("+study=paretto",), "no study=paretto (did you mean pareto?)"),
        (("study=pareto",), "+study=pareto"),
        (("study.trials=5",), "study.trials belongs to a job: append +study="),
        (("model=smollm2",), "which job?"),
        (("+study=pareto", "benchmarks=glue"), "benchmarks is one of file, paper, paper_zero_shot"),
        (("+study=pareto", "study.trials=many"), "study.trials=many: Value 'many' of type"),
        (("+study=pareto", "study.trials="), "study.trials=: Value ''"),
        (("+study=pareto", "study.min.ethics=abc"), "study.min.ethics=abc: Value 'abc'"),
        (("+study=pareto", "study.name="), "study.name is empty"),
        (("+study=pareto", "study.name=a@b"), "study.name=a@b"),
        (("+study=pareto", "runs_dir="), "runs_dir is empty"),
        (("+study=pareto", "optuna_db=foo"), "optuna_db must begin with one of sqlite:///"),
        (("+study=pareto", "-cn", "nothing"), "nothing"),
        (("+study=pareto", "-cd", "nowhere"), "nowhere"),
        (("+study=pareto", "pool.variants=[{bits: 3"), "[{bits: 3"),
        (("+study=pareto", "pool.variants=[rtn]"), "pool.variants=[rtn]: Cannot assign str"),
        (("+study=pareto", "model=hub"), "model.repo=OWNER/NAME"),
        (("+study=pareto", "engine.device=cuda"), "engine.device=cuda"),
        (("+study=pareto", "calibration=file", "calibration.path=no"), "'no' is not a file"),
        (
            ("+build=pool", "pool.paths=[{path: x, bits: 3}]"),
            "{path: FOLDER, label: NAME, bits: N}",
        ),
        (("+build=pool", "pool.paths=[{path: x, label: y, bits: 3}]"), "y: no checkpoint"),
        (("+build=pool", "pool.variants=[{method: rtn, bits: x}]"), "bits cannot be 'x'"),
        (("+build=pool", "pool.variants=[{method: rtn, bits: true}]"), "bits cannot be True"),
        (("+evaluate=variant", "evaluate.variant=rtn-4b-g46-s0"), "(did you mean rtn-4b-g64-s0?)"),
        (("+rescore=replies", "rescore.replies=no"), "'no' is not a file"),
        (("+export=ensemble",), "export.out is missing"),
        (("+study=pareto", "study.trials=0"), "study.trials must be at least 1, got 0"),
        (("+study=pareto", "study.sampler=anneal"), "study.sampler must be one of"),
        (("+study=pareto", "engine.dtype=int4"), "engine.dtype must be one of"),
        (("+study=pareto", "engine.threads=-1"), "engine.threads must be at least 0, got -1"),
        (("+study=pareto", "engine.max_tokens=-5"), "must be at least 64, got -5"),
        (("+study=pareto", "engine.max_tokens=8"), "engine.max_tokens (0 = from free memory)"),
        (("+study=pareto", "+build=pool"), "one job at a time"),
        (("+study=pareto", "benchmarks=paper"), "benchmarks.root=FOLDER"),
        (("+study=pareto", "benchmarks=paper", "benchmarks.root=nowhere"), "nowhere"),
        (("+study=pareto", "benchmarks.prompt=plain"), "benchmarks.prompt must be one of"),
        (("+study=pareto", "benchmarks.extract=judge"), "benchmarks.judge.url=http"),
        (("+study=pareto", "study.baselines=[gpt5]"), "there is no model 'gpt5'"),
        (("+study=pareto", "+benchmarks.mode.poetry=choice"), "no scenario 'poetry'"),
        (("+export=ensemble", "export.out=x"), "no study 'pareto-smollm2-default-pocket'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_a_user_gets_wrong_is_said_in_two_lines(
    overrides, message, monkeypatch, tmp_path, capfd
) -> None:
    assert ptsearch(monkeypatch, tmp_path, *overrides) == 2
    said = capfd.readouterr().err
    assert message in said
    assert len(said.splitlines()) <= 2
    assert not list(tmp_path.rglob("*.db"))


PRELOADED = """
import sys
from ptsearch import cli
sys.modules["torch"] = None  # an import of it fails
cli.main()
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pool.variants=[{method: zip, bits: 4}]"], "method must be one of"),
        (["pool.variants=[{method: gptq, bits: 9}]"], "bits must be 2 to 8, got bits=9"),
        (["model=path", "model.path=nowhere"], "no checkpoint there"),
        (["engine.device=cuda"], "engine.device=cuda"),
    ],
)
def test_a_wrong_row_path_or_device_is_told_before_torch_is_imported(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRELOADED, "+study=pareto", *overrides],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ("[]", "the pool is empty"),
        ("[{method: gptq, bits: 9}]", "bits must be 2 to 8, got bits=9"),
        ("[{method: zip, bits: 4}]", "method must be one of"),
        ("[{method: rtn, bits: 4, colour: red}]", "no field 'colour'"),
        ("[{method: rtn, bits: [4, 4]}]", "twice"),
        ("[{method: rtn, bits: 4, group_size: 48}]", "group_size must be one of"),
    ],
)
def test_a_bad_pool_is_said_before_anything_is_built(
    pool, message, monkeypatch, tmp_path, capfd, tiny_model
) -> None:
    model = ("model=path", f"model.path={tiny_model}")
    assert ptsearch(monkeypatch, tmp_path, "+build=pool", *model, f"pool.variants={pool}") == 2
    assert message in capfd.readouterr().err


@pytest.mark.slow
def test_variants_that_are_the_same_are_told(monkeypatch, tmp_path, capfd, tiny_model) -> None:
    rows = ", ".join(f"{{path: {tiny_model}, label: {n}, bits: 16}}" for n in ("one", "two"))
    asked = ("model=path", f"model.path={tiny_model}", "model.name=tiny", f"pool.paths=[{rows}]")
    pool = ("pool.variants=[{method: kivi, kv_bits: [8, 4]}]", "calibration.length=64")
    assert ptsearch(monkeypatch, tmp_path, "+build=pool", *asked, *pool) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    same = {line["variant"]: line["same_as"] for line in lines if "same_as" in line}
    assert same == {"one": "none", "two": "none"}  # a rounded cache makes another variant


def test_the_module_runs_as_a_program(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptsearch", "--cfg", "job", "+study=pareto"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trials: 200" in done.stdout
    assert not list(tmp_path.iterdir())  # nothing is written outside the runs folder


@pytest.mark.parametrize("name", ["a=b", "a(b)", "a,b", "a[1]", "模型", "Ordner ä", "it's", "a:b"])
def test_paths_that_hydras_grammar_does_not_take(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("+build=pool", "model=path", f"model.path={tmp_path}/{name}", "model.name=m")
    assert ptsearch(monkeypatch, tmp_path, *job) == 2
    assert f"no checkpoint there ({tmp_path}/{name}/config.json is missing)" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["model=path", "model.path=some/My model=7"], "My model=7"),
        (["model=hub", "model.repo=owner/Name-1B", "model.revision=x"], "Name-1B"),
        (["model=path", "model.path=some/folder", "model.name=mine"], "mine"),
        (["model=path"], "path"),
        ([], "smollm2"),
    ],
)
def test_a_model_is_called_as_its_folder_or_repository(
    given: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert ptsearch(monkeypatch, tmp_path, *given, "--cfg", "job", "--package", "model") == 0
    assert f"name: {name}\n" in capsys.readouterr().out


def test_what_hydra_takes_stays_as_it_is() -> None:
    for argument in ("+study=pareto", "pool.variants=[{bits: 3", "study.trials=5", "--cfg=job"):
        assert cli.quoted(argument) == argument


@pytest.mark.parametrize("key", ["optuna_db", "mlflow_db", "engine.url", "benchmarks.judge.url"])
def test_a_password_in_a_url_is_refused_before_anything_is_written(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("+study=pareto", f"{key}=postgresql://me:hunter2@host/db")
    assert ptsearch(monkeypatch, tmp_path, *job) == 2
    error = capsys.readouterr().err
    assert f"{key}=env:NAME" in error
    assert "hunter2" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["taken", "taken/below", "mlruns"])
def test_a_runs_folder_that_cannot_be_written_is_two_lines(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / place.partition("/")[0]).write_text("a file")
    job = ("+study=pareto", *([] if place == "mlruns" else [f"runs_dir={place}"]))
    assert ptsearch(monkeypatch, tmp_path, *job) == 2
    error = capsys.readouterr().err
    assert place in error
    assert len(error.splitlines()) <= 2
