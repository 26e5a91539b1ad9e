"""In which form a member goes to a target."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ptsearch.config import Config, CostConfig, EngineConfig, StudyConfig
from ptsearch.engine import targets
from ptsearch.store import StoredTensor
from ptsearch.variant import Variant


@pytest.mark.parametrize(
    ("bits", "sym", "inputs", "target", "runs"),
    [
        (4, True, None, "cpu", True),
        (4, False, None, "cpu", True),
        (8, True, None, "cpu", False),
        (8, True, 8, "cpu", True),
        (3, True, None, "cpu", False),
        (3, True, None, "cuda", False),
        (8, True, None, "cuda", True),
        (8, False, None, "cuda", False),
        (4, False, None, "cuda", True),
    ],
)
def test_forms_that_vllm_was_found_to_run(bits, sym, inputs, target, runs) -> None:
    group: dict[str, Any] = {"weights": {"num_bits": bits, "symmetric": sym}}
    if inputs:
        group["input_activations"] = {"num_bits": inputs}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    assert bool(targets.unsupported(config, target)) == (not runs)


def test_older_formats_that_vllm_was_found_to_run() -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "desc_act": True}
    assert "desc_act" in targets.unsupported(gptq, "cpu")
    assert not targets.unsupported(gptq, "cuda")
    assert "awq at 3 bits" in targets.unsupported({"quant_method": "awq", "bits": 3}, "cuda")


def test_a_layout_of_our_own_is_written_dense(tmp_path: Path) -> None:
    variant = Variant("tiny", "0", "rtn", bits=3, group_size=32)
    (tmp_path / "codes.json").write_text("{}")
    assert targets.form_of(variant, tmp_path, "cuda").why == "its layout is specific to ptsearch"
    assert targets.form_of(variant, tmp_path, "local").stored


def config(target: str, engine: str = "transformers", **most: float | None) -> Config:
    study = StudyConfig(kind="pareto", max=dict(most))
    return Config(study=study, cost=CostConfig(target), engine=EngineConfig(engine, url="http://x"))


def test_the_target_is_where_the_engine_runs() -> None:
    assert targets.with_target(config("auto")).cost.target == "local"
    assert targets.with_target(config("auto", "llamacpp")).cost.target == "llamacpp"
    assert targets.with_target(config("auto", "vllm")).cost.target.startswith("vllm_c")


def test_a_target_that_nothing_runs_has_no_latency() -> None:
    elsewhere = targets.with_target(config("vllm_cuda"))
    assert not targets.measured(elsewhere)
    assert elsewhere.study and elsewhere.study.objectives["latency_ms"] is False
    assert targets.measured(targets.with_target(config("vllm_cuda", "vllm")))
    with pytest.raises(ValueError, match=r"latency on vllm_cuda is not measured.*engine=vllm"):
        targets.with_target(config("vllm_cuda", latency_ms=80.0))


@pytest.mark.parametrize(
    ("columns", "group", "why"),
    [(256, 64, ""), (256, 16, "groups of 32, 64 or 128"), (576, 64, "multiples of 128 columns")],
)
def test_marlin_takes_some_shapes(columns: int, group: int, why: str, tmp_path: Path) -> None:
    weights = {"num_bits": 4, "symmetric": True, "group_size": group}
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": weights}},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    packed = {"a.weight_packed": torch.zeros(8, columns // 8, dtype=torch.int32)}
    save_file(packed, tmp_path / "model.safetensors")
    found = targets.not_as_stored(tmp_path, "cuda")
    assert why in found and bool(found) == bool(why)
    assert not targets.not_as_stored(tmp_path, "cpu")


DENSE = {"a.weight": StoredTensor(1000, "a"), "norm.weight": StoredTensor(10, "n")}
PACKED = {
    "a.weight_packed": StoredTensor(250, "p"), "a.weight_scale": StoredTensor(20, "s"),
    "norm.weight": StoredTensor(10, "n"),
}  # fmt: skip


def folder_of(path: Path, quantization: dict[str, Any]) -> Path:
    (path / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    save_file(
        {"a.weight_packed": torch.zeros(8, 72, dtype=torch.int32)}, path / "model.safetensors"
    )
    return path


@pytest.mark.parametrize(
    ("target", "as_stored", "weights", "expected"),
    [
        ("local", True, "group", {"p": 250, "s": 20, "n": 20}),
        ("local", False, "group", {"dense": 2000, "n": 20}),
        ("local", True, "tensor", {"dense": 2000, "n": 20}),  # one scale for all: not kept
        ("vllm_cpu", True, "group", {"x:p": 250, "x:s": 20, "x:n": 20}),
        ("vllm_cuda", True, "group", {"x:dense": 2000, "x:n": 20}),  # 576 columns
        ("llamacpp", True, "group", {"x:dense": 2000, "x:n": 20}),
    ],
)
def test_bytes_in_memory(target, as_stored, weights, expected, tmp_path: Path) -> None:
    scheme = {"num_bits": 4, "symmetric": True, "group_size": 64, "strategy": weights}
    if weights == "tensor":
        del scheme["group_size"]
    folder = folder_of(tmp_path, {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": scheme, "targets": ["Linear"]}},
    })  # fmt: skip
    resident = targets.Resident(target, as_stored, DENSE, 2.0)
    found = resident.tensors("x", folder, PACKED)
    known = {"p", "s", "n"}
    named = {}
    for key, size in found.items():
        own, _, digest = key.rpartition(":")
        named[f"{own}:" * bool(own) + (digest if digest in known else "dense")] = size
    assert named == expected


def test_names_of_another_layout_count_as_a_dense_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = targets.Resident("local", True, DENSE, 2.0).tensors(
        "x", tmp_path, {"blk.0.a.weight": StoredTensor(77, "g")}
    )
    assert list(found.values()) == [2020]
