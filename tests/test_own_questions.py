"""The commands of docs/howto/own-questions.md, in their order, on a tiny random model."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from command import ptsearch
from small_study import STUDY, files_under

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "own-questions.md").read_text(encoding="utf-8")
POOL = "pool.variants=[{method: rtn, bits: [4, 8]}]"


def commands() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("python -m ptsearch ")]
    return [shlex.split(line)[3:] for line in lines]


def test_the_how_to_works(tiny_model: Path, tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    check, alone, beside, export = commands()
    tiny = ("model=path", f"model.path={tiny_model}", "model.name=smollm2", POOL, "study.trials=3",
            "study.min_skill=flag", *STUDY)  # fmt: skip

    assert ptsearch(monkeypatch, tmp_path, *check) == 0
    assert capfd.readouterr().out.startswith("complaints/complaints: 60 samples of 60 items")

    assert ptsearch(monkeypatch, tmp_path, *alone, *tiny) == 0
    said = capfd.readouterr().out
    assert "complaints" in said and "ethics" not in said

    beside = [each.replace("=60", "=1") for each in beside]  # of random answers
    assert ptsearch(monkeypatch, tmp_path, *beside, *tiny) == 0
    assert ptsearch(monkeypatch, tmp_path, *export) == 0
    scores = yaml.safe_load((tmp_path / "chosen" / "ensemble.yaml").read_text())["scores"]
    perspectives = ("adversarial", "fairness", "ethics", "ood", "complaints")
    for half in ("search", "holdout"):
        mean = sum(scores[half][name] for name in perspectives) / 5
        assert scores[half]["trust"] == pytest.approx(mean)
    assert "| complaints |" in (tmp_path / "chosen" / "README.md").read_text()
    certificate = json.loads((tmp_path / "chosen" / "certificate.json").read_text())
    assert certificate["trust_weights"]["complaints"] == 1
    asked = tmp_path / "mlruns" / "cache" / "predictions"
    assert len(list(asked.glob("*-complaints-*"))) == 3  # dense and two variants, once for both

    before = files_under(tmp_path / "mlruns" / "cache")
    assert ptsearch(monkeypatch, tmp_path, *alone, *tiny) == 0
    assert files_under(tmp_path / "mlruns" / "cache") == before
