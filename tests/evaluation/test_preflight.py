"""What is checked of a model before any work, and what a study does about it."""

from dataclasses import replace
from pathlib import Path

import pytest
from command import ptsearch
from paper_root import write_root
from small_study import SMALL
from tiny import byte_tokenizer, write_tiny_model
from tiny_benchmark import benchmark

from ptsearch.benchmarks import Benchmark, Scenario
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import EngineConfig
from ptsearch.evaluation import preflight
from ptsearch.models.base_model import BaseModel

REFUSES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>"
    "{% endif %}"
)
NEVER = "{{ raise_exception('never') }}"


def model_with(template: str | None, folder: Path) -> Path:
    write_tiny_model(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def checked(folder: Path, *benchmarks: Benchmark) -> preflight.ModelCheck:
    base = BaseModel("tiny", "0", folder)
    return preflight.check(base, benchmarks, EngineConfig(), {}, lambda *_: None)


def with_labels(*labels: str) -> Benchmark:
    before = benchmark(0)
    sample = replace(before.samples[0], question=Question(labels))
    scenario = Scenario(sample.scenario, "few", lead=" ")
    return replace(before, samples=(sample,), scenarios={sample.scenario: scenario})


def test_facts_of_a_model(tiny_model: Path) -> None:
    found = checked(tiny_model, with_labels("yes", "no"))
    assert found.facts["architecture"] == "LlamaForCausalLM, 2 layers"
    assert found.facts["group sizes"].startswith("32, 64 divide")
    assert found.facts["output head"] == "tied to the embeddings"
    assert found.tokens_per_byte == pytest.approx(1, abs=0.01)
    assert found.notes == []


def test_labels_that_begin_alike_are_reported(tiny_model: Path) -> None:
    (shared,) = checked(tiny_model, with_labels("negative", "neutral", "positive")).notes
    assert "ood/few: labels share their first token" in shared
    (inside,) = checked(tiny_model, with_labels("wrong", "wrongly", "right")).notes
    assert "one label's tokens begin another's" in inside


def test_a_template_that_takes_no_system_turn_is_told_in_the_notes(tmp_path: Path) -> None:
    notes = checked(model_with(REFUSES, tmp_path), benchmark(2)).notes
    assert any("takes no system turn" in note for note in notes)


def test_a_template_that_refuses_everything_ends_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = model_with(NEVER, tmp_path / "model"), write_root(tmp_path / "data")
    chat = ("benchmarks=paper", f"benchmarks.root={root}", "benchmarks.scenarios=[evasive*]")
    job = ("+study=pareto", "model=path", f"model.path={folder}", "model.name=m", *chat, *SMALL)
    assert ptsearch(monkeypatch, tmp_path, *job) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "ethics: the model's chat template refuses turns of system, user" in error[0]
    assert "benchmarks.prompt=raw" in error[0]
    assert len(error) == 1
    assert not (tmp_path / "mlruns" / "cache" / "variants").exists()


def test_a_group_size_that_does_not_divide_ends_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    job = ("+study=pareto", "model=path", f"model.path={folder}", "model.name=m", *SMALL)
    assert ptsearch(monkeypatch, tmp_path, *job, "pool.group_size=128") == 2
    assert "group_size must divide in_features" in capsys.readouterr().err
    assert not (tmp_path / "mlruns" / "cache" / "variants").exists()


def test_a_study_says_first_that_the_model_shows_no_skill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    job = ("+study=pareto", "model=path", f"model.path={folder}", "model.name=m", *SMALL)
    assert ptsearch(monkeypatch, tmp_path, *job) == 2
    captured = capsys.readouterr()
    assert "shows no skill: not above the most frequent label on" in captured.err
    assert "nats per byte of plain English" in captured.err
    assert "study.need_skill=false goes on" in captured.err
    assert len(captured.err.strip().splitlines()) == 2
    built = list((tmp_path / "mlruns" / "cache" / "variants").iterdir())
    assert len(built) == 1  # the dense model alone
