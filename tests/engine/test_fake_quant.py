"""Rounding while the model runs: the engine against transformers and compressed-tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import write_tiny_model
from tiny_difference import off
from tiny_pool import build_tiny, pool
from tiny_prompts import FP32, LABELS, PROMPTS, changed, one_score, silent

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.engine import fake_quant
from ptsearch.pool import build
from ptsearch.quantize import activations, rptq, smoothquant

ROWS: list[dict[str, Any]] = [
    {"method": "smoothquant", "bits": 8, "act_bits": 8, "group_size": -1},
    {"method": "zeroquant", "bits": 4, "act_bits": 8},
    {"method": "zeroquant", "bits": 8, "act_bits": 4, "sym": False},
    {"method": "rptq", "bits": 4, "act_bits": [16, 8, 4], "damp_percent": 0.05},
]
TOKENWISE = range(3)  # of pool(ROWS): those that compressed-tensors can run too


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"), initializer_range=0.1)


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    build_tiny(base, root, pool(ROWS))
    return root


def plain(engine: engines.Engine) -> engines.Engine:
    engine.runner.model.set_attn_implementation("eager")
    return changed(engine, packed=False)


@pytest.mark.parametrize("number", TOKENWISE)
def test_scores_are_those_of_compressed_tensors_itself(built: Path, number: int) -> None:
    folder = build.folder_of(built, pool(ROWS)[number])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = engines.load(folder, FP32)
    assert engine.runner.packed
    expected = [
        [one_score(theirs, prompt, label) for label in labels]
        for prompt, labels in zip(PROMPTS, LABELS, strict=True)
    ]
    for module in theirs.modules():
        module.quantization_enabled = False
    unrounded = [
        [one_score(theirs, prompt, label) for label in labels]
        for prompt, labels in zip(PROMPTS, LABELS, strict=True)
    ]
    assert off(engines.score(engine, PROMPTS, LABELS, silent), expected, unrounded) < 0.6
    slow = engines.score(plain(engine), PROMPTS, LABELS, silent)
    assert off(slow, expected, unrounded) < 0.6


@pytest.mark.parametrize("number", TOKENWISE)
def test_linears_are_those_of_compressed_tensors_itself(built: Path, number: int) -> None:
    folder = build.folder_of(built, pool(ROWS)[number])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = dict(plain(engines.load(folder, FP32)).runner.model.named_modules())
    theirs(torch.tensor([PROMPTS[0]]))  # the first call unpacks its weights
    rng = torch.Generator().manual_seed(number)
    compared = 0
    for name, linear in theirs.named_modules():
        if isinstance(linear, torch.nn.Linear):
            X = torch.randn(1, 5, linear.in_features, generator=rng)
            with torch.inference_mode():
                torch.testing.assert_close(ours[name](X), linear(X), rtol=1e-4, atol=1e-4)
            compared += 1
    assert compared == 15  # the head too, where nothing is rounded


def test_rounded_inputs_are_the_same_in_both_paths(built: Path) -> None:
    dense = engines.load(build.folder_of(built, pool(ROWS)[3]), FP32)
    unrounded = engines.score(dense, PROMPTS, LABELS, silent)
    for variant in pool(ROWS)[4:]:
        engine = engines.load(build.folder_of(built, variant), FP32)
        packed = engines.score(engine, PROMPTS, LABELS, silent)
        replies = engines.generate(engine, PROMPTS, 5, silent)
        slow = plain(engine)
        same = zip(replies, engines.generate(slow, PROMPTS, 5, silent), strict=True)
        assert np.mean([a == b for a, b in same]) > 0.7
        assert off(engines.score(slow, PROMPTS, LABELS, silent), packed, unrounded) < 0.1


def test_the_stored_form_says_what_the_format_can_say(built: Path) -> None:
    formats = {}
    for variant in pool(ROWS):
        folder = build.folder_of(built, variant)
        config = store.read_json(folder / "config.json")["quantization_config"]
        group = config["config_groups"]["group_0"]
        formats[variant.label] = (
            config["format"],
            (group["input_activations"] or {}).get("num_bits"),
        )
        assert (folder / fake_quant.TENSORS).is_file() == (variant.label[-6:-3] in ("-a8", "-a4")
                                                        and variant.method == "rptq")  # fmt: skip
        assert fake_quant.of(folder).act_bits == variant.act_bits
        (folder / store.META).rename(folder / "aside.json")
        if variant.method != "rptq":  # a stranger's checkpoint says it in its config
            assert fake_quant.of(folder).act_bits == variant.act_bits
        (folder / "aside.json").rename(folder / store.META)
    assert list(formats.values()) == [
        ("int-quantized", 8), ("pack-quantized", 8), ("int-quantized", 4),
        ("pack-quantized", None), ("pack-quantized", None), ("pack-quantized", None),
    ]  # fmt: skip


def test_a_token_is_off_by_at_most_half_a_step() -> None:
    X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        step = X.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
        error = (activations.round_tokens(X, bits) - X).abs()
        clipped = torch.where(X > 0, step * 0.5001, 0)  # the top code is half a step below the top
        assert (error <= step * 0.5001 + clipped).all()
        torch.testing.assert_close(
            activations.round_tokens(X, bits)[:, 2], activations.round_tokens(X[:, 2], bits)
        )
    assert not activations.round_tokens(torch.zeros(3, 4), 8).any()


def test_clusters_hold_channels_of_similar_range() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(200, 96, generator=generator) * torch.tensor([0.01, 1.0, 100.0]).repeat(32)
    low, high = X.aminmax(dim=0)
    found = rptq.cluster(low, high, 8, seed=0)
    scale, zero = found[activations.SCALE], found[activations.ZERO]
    assert 3 <= len(scale.unique()) <= rptq.CLUSTERS
    error = (activations.round_channels(X, scale, zero, 8) - X).abs().amax(0)
    assert (error <= (high - low) / 50 + 1e-6).all()  # a shared scale would give 200 / 255


def test_smoothing_evens_out_inputs_and_changes_no_product() -> None:
    generator = torch.Generator().manual_seed(0)
    X, W = (torch.randn(n, 32, generator=generator) for n in (50, 8))
    X[:, 3] *= 60
    s = smoothquant.scales(X.abs().amax(0), W)
    torch.testing.assert_close((X / s) @ (W * s).T, X @ W.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close((X / s).abs().amax(0), (W * s).abs().amax(0))  # alpha = 0.5


def test_another_way_of_rounding_is_refused(built: Path, tmp_path: Path) -> None:
    asked = {"type": "float", "num_bits": 8, "dynamic": False}
    config = {"quantization_config": {"config_groups": {"g": {"input_activations": asked}}}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="rounds its activations in a way"):
        fake_quant.of(tmp_path)
