"""Members that are GGUF go out as they are, to llama.cpp in one process, or dense to vLLM."""

import importlib.util
from dataclasses import asdict

import pytest
from exports import POOL, write

from ptsearch.deploy.ensemble import PrecisionEnsemble
from ptsearch.models import gguf_file, gguf_weights
from ptsearch.models.base_model import BaseModel, path_variant
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs pip install 'ptsearch[llamacpp]'"
)
QUESTIONS = (["Is it?", "Is it not?"], ["no", "yes"])


@pytest.fixture
def mixed(study, cache, tiny_model, tmp_path):
    """The study with a ready-made GGUF in place of two members."""
    path = tmp_path / "tiny.gguf"
    gguf_weights.write(tiny_model, path, "bfloat16")
    base = BaseModel("tiny", "0", tiny_model)
    half = path_variant(base, str(path), "half")
    text = Calibration("little foxes jump over dogs. " * 99, samples=2, length=16)
    assert not build.build_pool(base, [half], text, cache, lambda *_: None)
    labels = ["half", POOL[2].label]
    study["variants"]["half"] = {"id": half.id, "fields": asdict(half)}
    study["front"][0]["members"] = study["ask"]["run"] = labels
    return study


def logprobs(folder):
    answers = PrecisionEnsemble.from_pretrained(folder).answer(*QUESTIONS)
    return [[one.said[label].logprobs for label in ("half", POOL[2].label)] for one in answers]


def test_a_gguf_is_a_member_of_every_target(mixed, cache, tmp_path):
    local = write(mixed, cache, tmp_path / "out")
    info = local.description.in_order[0]
    held = local.members["half"] / gguf_file.NAME
    assert (info.label, info.form, info.bytes) == ("half", "stored", held.stat().st_size)
    assert "`half`, read by llama.cpp" in (local.folder / "README.md").read_text()
    dense = write(mixed, cache, tmp_path / "dense", "cpu")
    assert dense.description.in_order[0].why == "GGUF is llama.cpp's"
    assert (dense.members["half"] / "model.safetensors").is_file()
    for one, other in zip(logprobs(local.folder), logprobs(dense.folder), strict=True):
        assert one[0] == pytest.approx(other[0], abs=0.02)


@needs_llama
def test_one_process_of_llama_cpp_answers_for_all_members(mixed, cache, tmp_path):
    expected = logprobs(write(mixed, cache, tmp_path / "out").folder)
    folder = write(mixed, cache, tmp_path / "llama", "llamacpp").folder
    ensemble = PrecisionEnsemble.from_pretrained(folder)
    forms = [engine.form for engine in ensemble.engines.values()]
    assert forms == ["GGUF", "GGUF of dense bfloat16"]
    for one, other in zip(logprobs(folder), expected, strict=True):
        for row, true in zip(one, other, strict=True):
            assert row == pytest.approx(true, abs=0.05)
