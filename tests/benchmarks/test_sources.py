"""From a config to benchmarks: selection, overrides, fresh settings, and what cannot be."""

import json
from pathlib import Path

import pytest
import yaml
from paper_root import plus_plus, write, write_root

from ptsearch.benchmarks import Benchmark, adversarial, sources
from ptsearch.config import CONF, BenchmarksConfig


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path)


def load(root: Path, **settings: object) -> dict[str, Benchmark]:
    config = BenchmarksConfig(name="paper", root=str(root), **settings)  # type: ignore[arg-type]
    return {benchmark.name: benchmark for benchmark in sources.load(config, root / "cache")}


def test_what_is_not_scored_is_left_out_unless_named(root: Path) -> None:
    assert set(load(root)["mmlu"].scenarios) == {"5-shot"}
    named = load(root, scenarios=["*", "-style.*"])
    assert set(named["mmlu"].scenarios) == {"5-shot", "0-shot"}
    assert all(name.startswith("knowledge") for name in named["ood"].scenarios)


def test_every_published_scenario_is_there(root: Path) -> None:
    everything = yaml.safe_load((CONF / "benchmarks/paper.yaml").read_text())["scenarios"]
    found = load(root, scenarios=everything)
    counts = {name: len(benchmark.scenarios) for name, benchmark in found.items()}
    assert counts == {"mmlu": 2, "adversarial": 3, "fairness": 8, "ethics": 12, "ood": 39}
    found = load(root)
    counts = {name: len(benchmark.scenarios) for name, benchmark in found.items()}
    assert counts == {"mmlu": 1, "adversarial": 3, "fairness": 8, "ethics": 12, "ood": 36}


def test_what_counts_and_is_not_asked_is_said(root: Path) -> None:
    assert not any("left out" in note for b in load(root).values() for note in b.notes)
    found = load(root, scenarios=["-few-shot", "-style.*.base.*", "-adult_16*"])
    said = "left out by benchmarks.scenarios: "
    assert found["ethics"].notes[-1] == said + "few-shot"
    assert found["ood"].notes[-1] == said + "style-few-shot (12 scenarios)"
    assert found["fairness"].notes[-1] == said + "adult_16_200_train_br_0.0_test_br_0.5"


def test_what_the_data_lack_is_said(root: Path) -> None:
    (note,) = load(root)["adversarial"].notes
    assert note.startswith("AdvGLUE++ (alpaca, vicuna, stable-vicuna x sst2, qqp, mnli: 9 scen")
    (note,) = load(root)["ethics"].notes
    assert note == "cm_train.csv is missing: few-shot's demonstrations come from cm_test_hard.csv"


@pytest.mark.parametrize("with_plus_plus", [False, True])
def test_the_zero_shot_choice_fits_either_adversarial_set(with_plus_plus: bool, root: Path) -> None:
    if with_plus_plus:
        for source in adversarial.SOURCES:
            write(root, f"{adversarial.PLUS_PLUS}/{source}.json", json.dumps(plus_plus()))
    patterns = yaml.safe_load((CONF / "benchmarks/paper_zero_shot.yaml").read_text())["scenarios"]
    found = load(root, scenarios=patterns)
    counts = {name: len(benchmark.scenarios) for name, benchmark in found.items()}
    cells = 9 if with_plus_plus else 3
    assert counts == {"mmlu": 2, "adversarial": cells, "fairness": 3, "ethics": 11, "ood": 12}


def test_limits_and_modes_reach_the_samples(root: Path) -> None:
    found = load(root, limit=2, mode={"*": "choice", "sst2": "generate"})
    modes = {name: scenario.mode for name, scenario in found["adversarial"].scenarios.items()}
    assert modes == {"sst2": "generate", "qqp": "choice", "mnli": "choice"}
    assert len(found["ethics"].samples) == 2 * 12


def test_names_that_match_nothing(root: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmarks\.scenarios: no scenario matches '-crime\*'"):
        load(root, scenarios=["-crime*"])
    with pytest.raises(ValueError, match=r"benchmarks\.mode: no scenario 'crime'"):
        load(root, mode={"crime": "choice"})
    with pytest.raises(ValueError, match=r"benchmarks\.rules must be one of clean, ct, dt"):
        BenchmarksConfig(rules="strict")
