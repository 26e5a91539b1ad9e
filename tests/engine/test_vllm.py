"""The engine behind vLLM's protocol, against a stand-in that speaks it."""

import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import vllm_server
from safetensors.torch import load_file

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks import sources
from ptsearch.config import BenchmarksConfig, EngineConfig
from ptsearch.engine import fake_quant
from ptsearch.engine.answering import WARMUPS
from ptsearch.evaluation import early_check, evaluate
from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration
from ptsearch.variant import Variant, expand_pool

PROMPTS = [[5, 6, 7], [5, 6], [5, 6, 7], list(range(40)), [1]] + [[9, k] for k in range(50)]
LABELS = [[[10], [11, 12, 13], [11, 14]][: 2 + k % 2] for k in range(len(PROMPTS))]


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture
def asked() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def engine(tiny_model, asked):
    with vllm_server.serve(tiny_model.name, asked) as url:
        settings = EngineConfig(name="vllm", url=url)
        with engines.opened(tiny_model, settings) as opened:
            yield opened


@pytest.fixture(scope="module")
def pool(tiny_model, tmp_path_factory) -> dict[int, Path]:
    """Variants of 3, 4 and 8 bits."""
    root = tmp_path_factory.mktemp("store")
    text = Calibration("little foxes " * 500, samples=2, length=16)
    rows = [{"method": "rtn", "bits": [3, 4, 8]}]
    variants = expand_pool(Variant("tiny", "0"), rows, {"group_size": 32}, text.identity)
    build.build_pool(BaseModel("tiny", "0", tiny_model), variants, text, root, lambda *_: None)
    return {variant.bits: build.folder_of(root, variant) for variant in variants}


@pytest.fixture
def python(tmp_path) -> str:
    """What stands for the python of vLLM's environment."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {vllm_server.__file__} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_labels_are_scored_token_by_token(engine):
    found = engines.score(engine, PROMPTS, LABELS, silent)
    for prompt, labels, row in zip(PROMPTS, LABELS, found, strict=True):
        truth = [
            sum(vllm_server.logprob(prompt + label[:k], token) for k, token in enumerate(label))
            for label in labels
        ]
        assert row == pytest.approx(truth, abs=1e-9)


def test_replies_are_greedy_and_end_before_the_end_of_sequence(engine):
    stop = vllm_server.greedy(PROMPTS[0], 3, [])[2]
    engine = engine._replace(eos=frozenset({stop}))
    new = [k % 7 for k in range(len(PROMPTS))]
    for prompt, count, reply in zip(
        PROMPTS, new, engines.generate(engine, PROMPTS, new, silent), strict=True
    ):
        truth = vllm_server.greedy(prompt, count, [stop])
        assert reply == [token for token in truth if token != stop]


def test_a_prompt_is_sent_once_and_a_latency_finds_nothing_kept(engine, asked):
    engines.score(engine, PROMPTS[:3], [[[10], [11]]] * 3, silent)
    assert [len(request["prompt"]) for request in asked] == [2]
    assert "cache_salt" not in asked[0]
    asked.clear()
    engines.latency(engine, PROMPTS[:2], [[[10], [11]]] * 2)
    salts = [request["cache_salt"] for request in asked]
    assert len(set(salts)) == len(salts) == WARMUPS + 2


def test_the_settings_of_the_checkpoint_do_not_reach_the_reply(engine, asked):
    engines.generate(engine, PROMPTS[:1], 3, silent)
    assert (asked[0]["temperature"], asked[0]["repetition_penalty"]) == (0, 1)


def test_a_server_of_another_model_is_refused(tiny_model, asked):
    with (
        vllm_server.serve("other", asked) as url,
        pytest.raises(ValueError, match=rf"serves other, not {tiny_model.name}: start it with"),
    ):
        engines.load(tiny_model, EngineConfig(name="vllm", url=url))
    with pytest.raises(ValueError, match=r"engine\.url=.*: no OpenAI-compatible server"):
        engines.load(tiny_model, EngineConfig(name="vllm", url=url))


@pytest.mark.parametrize("value", [None, float("inf"), float("nan")])
def test_what_is_not_finite_is_an_error_of_its_own(engine, monkeypatch, value):
    monkeypatch.setattr(vllm_server, "logprob", lambda prompt, token: value)
    monkeypatch.setattr(vllm_server, "greedy", lambda *_: [1])
    with pytest.raises(engines.NonFiniteLogitsError):
        engines.score(engine, PROMPTS[:1], LABELS[:1], silent)


def test_an_answer_that_is_an_error_is_quoted(engine, monkeypatch):
    monkeypatch.setattr(vllm_server, "completion", lambda asked: {"choices": [{"index": 0}]})
    with pytest.raises(ValueError, match=r"gives no token ids; it must be vLLM"):
        engines.score(engine, PROMPTS[:1], LABELS[:1], silent)


def test_a_server_of_our_own_ends_with_the_engine(tiny_model, python):
    with engines.opened(tiny_model, EngineConfig(name="vllm", python=python)) as engine:
        assert engine.form == "as stored"
        [row] = engines.score(engine, [[1, 2]], [[[3]]], silent)
        assert row == pytest.approx([vllm_server.logprob([1, 2], 3)])
        process, url = engine.runner.process, engine.runner.url
    assert process.poll() is not None
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/models")


@pytest.mark.parametrize(
    ("bits", "form"),
    [(4, "as stored"), (8, "dense: .*ValueError: no kernel for 8 bits"), (3, "dense: .*3 bits")],
)
def test_a_form_that_vllm_does_not_load_is_written_out(bits, form, pool, python):
    with engines.opened(pool[bits], EngineConfig(name="vllm", python=python)) as engine:
        assert re.search(form, engine.form)


def test_what_is_written_out_is_an_ordinary_checkpoint(pool, tiny_model, tmp_path):
    loading.write_dense(pool[8], "bfloat16", tmp_path)
    written, base = (load_file(f / "model.safetensors") for f in (tmp_path, tiny_model))
    assert written.keys() == base.keys()
    model, _ = loading.load(pool[8])
    for name, weight in written.items():
        assert torch.equal(weight, model.state_dict()[name])
    assert "quantization_config" not in store.read_json(tmp_path / "config.json")


def test_all_members_can_be_asked_for_as_dense_weights(pool, python):
    settings = EngineConfig(name="vllm", python=python, form="dense")
    with engines.opened(pool[4], settings) as engine:
        assert engine.form == "dense: asked for by engine.form=dense"


@pytest.mark.parametrize(
    ("asked", "bits", "message"),
    [
        (fake_quant.Runtime(kv="kivi", kv_bits=4), 4, "does not round keys and values"),
        (fake_quant.Runtime(act_bits=8), 8, "rounds the inputs of its layers"),
    ],
)
def test_what_a_server_would_not_round_is_refused(asked, bits, message, pool, python, monkeypatch):
    monkeypatch.setattr(fake_quant, "of", lambda folder: asked)
    with pytest.raises(ValueError, match=message):
        engines.load(pool[bits], EngineConfig(name="vllm", python=python))


def test_a_model_that_vllm_does_not_run_at_all_is_an_error(tiny_model, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho ValueError: no such architecture\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(ValueError, match=r"vLLM does not run .*ValueError: no such architecture"):
        engines.load(tiny_model, EngineConfig(name="vllm", python=str(script)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"engine\.python=PATH"),
        ({"python": "python3", "url": "http://h/v1"}, r"either engine\.python"),
        ({"python": "/nowhere/python"}, "no such program: /nowhere/python"),
    ],
)
def test_vllm_needs_an_environment_or_a_server(settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        early_check.check_server(EngineConfig(name="vllm", **settings))


def test_predictions_of_another_engine_have_another_key():
    [benchmark, *_] = sources.load(BenchmarksConfig(limit=2), Path("unused"))
    settings = [EngineConfig(), EngineConfig(name="vllm"), EngineConfig(name="vllm", form="dense")]
    assert len({evaluate.key("id", benchmark, each) for each in settings}) == 3
