"""Rounding while the model runs: the engine against transformers and compressed-tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_build import build_tiny, pool
from test_engine import FP32, LABELS, PROMPTS, one_score, silent
from tiny import write_tiny_model

from ptsearch import build, models
from ptsearch import engine as engines
from ptsearch.engine import runtime
from ptsearch.quantize import activations, smoothquant

ROWS: list[dict[str, Any]] = [
    {"method": "smoothquant", "bits": 8, "act_bits": 8, "group_size": -1},
    {"method": "zeroquant", "bits": 4, "act_bits": 8},
    {"method": "zeroquant", "bits": 8, "act_bits": 4, "sym": False},
    {"method": "rptq", "bits": 4, "act_bits": [16, 8, 4], "damp_percent": 0.05},
]
Scores = list[list[float]]
TOKENWISE = slice(3)  # of pool(ROWS): those that compressed-tensors can run too


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base"), initializer_range=0.1)


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    build_tiny(base, root, pool(ROWS))
    return root


def plain(engine: engines.Engine) -> engines.Engine:
    engine.model.set_attn_implementation("eager")
    return engine._replace(packed=False)


def test_scores_are_those_of_compressed_tensors_itself(tmp_path: Path) -> None:
    """With one layer, as what a flipped rounding changes is rounded anew in the next."""
    base = write_tiny_model(tmp_path / "base", num_hidden_layers=1, initializer_range=0.1)
    variants = pool(ROWS)[TOKENWISE]
    build_tiny(base, tmp_path / "store", variants)
    for variant in variants:
        folder = build.folder_of(tmp_path / "store", variant)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        asked = list(zip(PROMPTS, LABELS, strict=True))
        rounded = [[one_score(theirs.eval(), p, label) for label in labels] for p, labels in asked]
        for module in theirs.modules():
            module.quantization_enabled = False
        full = [[one_score(theirs, p, label) for label in labels] for p, labels in asked]
        engine = engines.load(folder, FP32)
        assert engine.packed
        packed = engines.score(engine, PROMPTS, LABELS, silent)
        for found in (packed, engines.score(plain(engine), PROMPTS, LABELS, silent)):
            assert close(found, rounded) > 0.7
            assert close(found, full) < 0.1


def close(one: Scores, other: Scores) -> float:
    """Share of rows that agree to 1e-4."""
    rows = zip(one, other, strict=True)
    return float(np.mean([np.allclose(a, b, rtol=0, atol=1e-4) for a, b in rows]))


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


def off(found: Scores, expected: Scores, unrounded: Scores) -> float:
    """Mean error, as a share of what rounding changes. It is not 0: the last bit of a float now
    and then decides which way a value is rounded.
    """
    a, b, c = (np.concatenate([np.array(row) for row in rows])
               for rows in (found, expected, unrounded))  # fmt: skip
    return float(np.abs(a - b).mean() / np.abs(b - c).mean())


def test_the_stored_form_says_what_the_format_can_say(built: Path) -> None:
    formats = {}
    for variant in pool(ROWS):
        folder = build.folder_of(built, variant)
        config = models.read_json(folder / "config.json")["quantization_config"]
        group = config["config_groups"]["group_0"]
        formats[variant.label] = (
            config["format"],
            (group["input_activations"] or {}).get("num_bits"),
        )
        assert (folder / runtime.TENSORS).is_file() == (variant.label[-6:-3] in ("-a8", "-a4")
                                                        and variant.method == "rptq")  # fmt: skip
        assert runtime.of(folder).act_bits == variant.act_bits
        (folder / models.META).rename(folder / "aside.json")
        if variant.method != "rptq":  # a stranger's checkpoint says it in its config
            assert runtime.of(folder).act_bits == variant.act_bits
        (folder / "aside.json").rename(folder / models.META)
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
    found = activations.cluster(low, high, 8, seed=0)
    scale, zero = found[activations.SCALE], found[activations.ZERO]
    assert 3 <= len(scale.unique()) <= activations.CLUSTERS
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
        runtime.of(tmp_path)
