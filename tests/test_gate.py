"""The gate, from the command line to its files, on a tiny model."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import ptsearch
from safetensors.torch import load_file, save_file
from small_study import SMALL, files_under

from ptsearch import store

WIDE = "gate.margin=150"


def gate(model: Path, candidate: Path, *overrides: str) -> tuple[str, ...]:
    base = ("model=path", f"model.path={model}", "model.name=tiny")
    asked = (*base, *SMALL, "+benchmarks.mode={*: choice}", f"gate.candidate={candidate}")
    return ("+gate=compressed", *asked, *overrides)


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which an 8-bit variant was built."""
    folder = tmp_path_factory.mktemp("gate")
    pool = "pool.variants=[{method: rtn, bits: 8, sym: false}]"
    with pytest.MonkeyPatch.context() as patch:
        base = ("model=path", f"model.path={tiny_model}", "model.name=tiny")
        assert ptsearch(patch, folder, "+build=pool", *base, *SMALL, pool) == 0
    return folder


def variant(folder: Path) -> Path:
    metas = (folder / "mlruns" / "cache" / "variants").glob("*/meta.json")
    return next(path.parent for path in metas if '"rtn"' in path.read_text())


def answered(folder: Path) -> dict[str, float]:
    return files_under(folder / "mlruns" / "cache" / "predictions")


def test_few_samples_are_inconclusive_and_say_how_many_would_do(
    built, tiny_model, monkeypatch, capfd
) -> None:
    files = [f"gate.{kind}={built / f'out.{kind}'}" for kind in ("json", "junit", "markdown")]
    assert ptsearch(monkeypatch, built, *gate(tiny_model, variant(built), *files)) == 3
    said = capfd.readouterr().out
    assert said.startswith("INCONCLUSIVE: whether rtn-8b-g64-asym-s0 may replace tiny within 2")
    assert "samples would decide" in said or "too near" in said
    assert "gate.margin=4" in said
    found = json.loads((built / "out.json").read_text())
    assert (found["verdict"], found["exit"], found["margin"]) == ("inconclusive", 3, 2.0)
    assert {each["key"] for each in found["scores"]} >= {"ethics", "fairness", "mmlu"}
    suite = ElementTree.parse(built / "out.junit").getroot()[0]
    assert int(suite.get("errors", 0)) == len(suite.findall("testcase/error")) > 0
    assert (built / "out.markdown").read_text().startswith("### INCONCLUSIVE")


def test_a_wide_margin_passes_and_json_alone_is_on_stdout(
    built, tiny_model, monkeypatch, capfd
) -> None:
    command = gate(tiny_model, variant(built), WIDE, "gate.json=-")
    assert ptsearch(monkeypatch, built, *command) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["verdict"] == "pass"
    assert "PASS: rtn-8b-g64-asym-s0 may replace tiny" in err


def test_the_same_files_elsewhere_are_not_asked_again(
    built, tiny_model, monkeypatch, tmp_path
) -> None:
    ptsearch(monkeypatch, built, *gate(tiny_model, variant(built)))
    before = answered(built)
    for name in ("one", "other"):
        shutil.copytree(variant(built), tmp_path / name)
        ptsearch(monkeypatch, built, *gate(tiny_model, tmp_path / name))
        assert answered(built) == before
    shutil.copytree(tiny_model, tmp_path / "dense")
    ptsearch(monkeypatch, built, *gate(tiny_model, tmp_path / "dense"))
    assert answered(built) == before


def test_a_checkpoint_in_the_place_of_another_is_asked(
    built, tiny_model, monkeypatch, tmp_path, capfd
) -> None:
    """Its weights are told by their contents, not by where they lie; a tokenizer of its own too."""
    place, moved = tmp_path / "candidate", tmp_path / "moved"
    shutil.copytree(tiny_model, place)
    weights = load_file(place / "model.safetensors")
    for name in weights:
        weights[name] = weights[name] + 0.1 * torch.randn(weights[name].shape)
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    template = place / "chat_template.jinja"
    template.write_text((template.read_text() if template.exists() else "") + "{# mine #}")
    ptsearch(monkeypatch, built, *gate(tiny_model, place, f"gate.json={tmp_path / 'a'}"))
    assert "differ in chat_template.jinja" in capfd.readouterr().out
    place.rename(moved)
    shutil.copytree(tiny_model, place)
    more = "benchmarks.limit=12"  # other samples: it must answer from where it lies now
    ptsearch(monkeypatch, built, *gate(tiny_model, moved, more, f"gate.json={tmp_path / 'b'}"))
    first, second = (json.loads((tmp_path / name).read_text()) for name in "ab")
    assert first["candidate"]["variants"] == second["candidate"]["variants"]
    metas = [
        store.read_meta(path.parent) for path in built.glob("mlruns/cache/variants/*/meta.json")
    ]
    assert str(moved) in {meta.checkpoint for meta in metas}


def test_a_candidate_that_answers_nothing_fails(built, tiny_model, monkeypatch, tmp_path) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    out = f"gate.json={tmp_path / 'out.json'}"
    assert ptsearch(monkeypatch, built, *gate(tiny_model, tmp_path / "broken", out)) == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["notes"]
    fairness = next(each for each in found["scores"] if each["key"] == "fairness")
    assert (fairness["candidate"], fairness["verdict"]) == (None, "lost")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("gate.candidate=",), "gate.candidate is missing"),
        (("gate.candidate=nowhere",), "gate.candidate='nowhere': no checkpoint there"),
        (("gate.base=nowhere",), "gate.base='nowhere'"),
        (("gate.json=nowhere/out.json",), "give a file in a folder that exists"),
        (("gate.margin=-1",), "gate.margin must be at least 0"),
        (("gate.perspectives=[ethic]",), "no score 'ethic' (did you mean ethics?)"),
        (("benchmarks.rules=ct",), "rules=clean"),
    ],
)
def test_what_a_user_gets_wrong(overrides, message, built, tiny_model, monkeypatch, capfd) -> None:
    assert ptsearch(monkeypatch, built, *gate(tiny_model, variant(built), *overrides)) == 2
    assert message in capfd.readouterr().err


def test_decisions_that_changed_are_in_files(built, tiny_model, monkeypatch, tmp_path) -> None:
    out = f"gate.details={tmp_path / 'details'}"
    ptsearch(monkeypatch, built, *gate(tiny_model, variant(built), out))
    flips, worst = (pd.read_csv(tmp_path / "details" / f"{n}.csv") for n in ("flips", "worst"))
    assert flips["where"][0] == "all"
    assert 0 < flips["margin_ratio"][0] < 2
    assert len(worst) == min(20, flips["lost"][0])
