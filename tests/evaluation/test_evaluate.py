"""Prompts beyond the context on the way that a study takes: demonstrations dropped and counted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import fake_table
from tiny_benchmark import benchmark

from ptsearch import store
from ptsearch.config import EngineConfig
from ptsearch.engine import memory
from ptsearch.evaluation import evaluate, predictions
from ptsearch.evaluation.evaluate import Task
from ptsearch.evaluation.workers import Here
from ptsearch.models.base_model import BaseModel

SETTINGS = EngineConfig(dtype="float32", threads=1)


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path) -> Path:
    """A model of 1,024 tokens, which are bytes."""
    with store.new_folder(tmp_path / "short") as folder:
        for file in tiny_model.iterdir():
            (folder / file.name).symlink_to(file)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return tmp_path / "short"


def task(checkpoint: Path, folder: Path, settings: EngineConfig = SETTINGS) -> Task:
    return Task(
        "tiny",
        checkpoint,
        {"ood": folder / "ood" / "answers.parquet"},
        folder / "ms.json",
        settings,
    )


def test_too_long_prompts_are_shortened_and_counted(checkpoint: Path, tmp_path: Path) -> None:
    asked, long = task(checkpoint, tmp_path), [benchmark(6)]
    assert evaluate.run(asked, long, lambda *_: None) == ""
    assert predictions.changes(asked.outputs["ood"]).demonstrations == 5
    evaluate.measure_latency(asked, long, 1, lambda *_: None)
    assert json.loads(asked.latency.read_text())["latency_ms"] > 0


def test_or_are_an_error_as_configured(checkpoint: Path, tmp_path: Path) -> None:
    strict = replace(SETTINGS, too_long="error")
    with pytest.raises(ValueError, match=r"few/0 is longer than the model's context; engine\.too_"):
        evaluate.run(task(checkpoint, tmp_path, strict), [benchmark(6)], lambda *_: None)
    assert not (tmp_path / "ood").exists()
    keys = {evaluate.key("v", benchmark(6), settings) for settings in (SETTINGS, strict)}
    assert len(keys) == 2  # what was shortened is not taken for what must not be


def test_a_question_that_is_too_long_by_itself_is_named(checkpoint: Path, tmp_path: Path) -> None:
    whole = benchmark(0)
    sample = replace(whole.samples[0], prompt="y" * 1100)
    with pytest.raises(ValueError, match=r"few/0 is longer .* even without demonstrations"):
        evaluate.run(
            task(checkpoint, tmp_path), [replace(whole, samples=(sample,))], lambda *_: None
        )


def test_what_cannot_run_is_not_built_for_a_study(tiny_model, tmp_path, monkeypatch) -> None:
    table = fake_table(tmp_path)
    table.base, table.workers = BaseModel("tiny", "0", tiny_model), Here()
    table.entries.clear()
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(ValueError, match=r"needs [0-9,]+ bytes .* 1,000 are available on cpu"):
        table.ensure(["v0-3b"])
    assert not (tmp_path / "cache").exists()
