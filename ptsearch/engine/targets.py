"""In which form a deployment target holds a variant's weights: as stored, or dense.

What vLLM runs as stored was read from its source (0.32) for CUDA and tried on a CPU; see
docs/costs.md for the files.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ptsearch.config import LLAMACPP, LOCAL, MEASURED_BY, VLLM_CPU, VLLM_CUDA, Config
from ptsearch.engine import stored_weights
from ptsearch.models import checkpoint, coded, gguf_file, loading
from ptsearch.store import StoredTensor
from ptsearch.variant import Variant, method_of

HUMMING = "3 bits on CUDA need vLLM's Humming kernels, an extra package"
MARLIN_COLUMNS = 128  # of a linear's inputs, a multiple of it: GPTQ_MARLIN_MIN_THREAD_K
MARLIN_GROUPS = (-1, 32, 64, 128)  # MARLIN_SUPPORTED_GROUP_SIZES


class Form(NamedTuple):
    """How a member is written."""

    stored: bool  # as in the cache, else dense bfloat16
    why: str  # why not as stored; "" where it is


def with_target(config: Config) -> Config:
    """The config with a definite target: where the engine runs. An objective `latency_ms` is off
    where that is not the target, as nothing measures it. ValueError: a limit needs it.
    """
    vllm = VLLM_CUDA if torch.cuda.is_available() else VLLM_CPU
    here = {"transformers": LOCAL, LLAMACPP: LLAMACPP}.get(config.engine.name, vllm)
    target = here if config.cost.target == "auto" else config.cost.target
    config = replace(config, cost=replace(config.cost, target=target))
    if config.study and not measured(config):
        limits = config.study.min.get("latency_ms"), config.study.max.get("latency_ms")
        if any(limit is not None for limit in limits):
            raise ValueError(
                f"study.max.latency_ms: latency on {target} is not measured by "
                f"engine={config.engine.name}; take engine={MEASURED_BY[target]} or no such limit"
            )
        objectives = {**config.study.objectives, "latency_ms": False}
        config = replace(config, study=replace(config.study, objectives=objectives))
    return config


def measured(config: Config) -> bool:
    """Whether the study's engine runs the members as the target does; a gate asks for no costs."""
    target = config.cost.target
    elsewhere = not config.engine.url and not torch.cuda.is_available()
    if config.gate or (target == VLLM_CUDA and elsewhere):
        return False
    return MEASURED_BY[target] == config.engine.name


def form_of(variant: Variant, folder: Path, target: str) -> Form:
    """How an export for `target` (local | llamacpp | cpu | cuda) holds a member.

    ValueError: the target cannot run it.
    """
    if variant.decode_schedule:
        raise ValueError(
            f"member {variant.label} runs two checkpoints in turn and cannot be exported"
        )
    if target == LOCAL:
        return Form(True, "")
    rounded = {"activations": variant.act_bits != 16, "the KV cache": variant.kv_bits != 16}
    if any(rounded.values()):
        what = " and ".join(name for name, used in rounded.items() if used)
        raise ValueError(
            f"member {variant.label} needs {what} rounded at run time, which target {target} does "
            f"not do as the search did: choose export.target={LOCAL}"
        )
    if target == LLAMACPP:
        return Form(True, "")
    why = not_as_stored(folder, target)
    return Form(not why, why)


def not_as_stored(folder: Path, target: str) -> str:
    """Why vLLM on `target` (cpu | cuda) does not run a checkpoint as stored; "" = it does."""
    if (folder / coded.INDEX).is_file():
        return "its layout is specific to ptsearch"
    if (folder / gguf_file.NAME).is_file():
        return "GGUF is llama.cpp's"
    quantization = loading.quantization_config(folder)
    return unsupported(quantization, target) or _shapes(folder, quantization, target)


def unsupported(quantization: Mapping[str, Any], target: str) -> str:
    """Why vLLM 0.32 on cpu or cuda does not run a checkpoint's quantization; "" = it does."""
    method = quantization.get("quant_method", "")
    if not method:
        return ""
    if method == "compressed-tensors":
        return _compressed_tensors(quantization, target)
    bits = quantization.get("bits") or quantization.get("w_bit")
    if quantization.get("desc_act") and target == "cpu":
        return "vLLM's CPU kernels do not take desc_act"
    known = {"gptq": (4,) if target == "cpu" else (4, 8), "awq": (4,)}.get(method, ())
    return "" if bits in known else f"vLLM on {target} has no kernel for {method} at {bits} bits"


def _compressed_tensors(quantization: Mapping[str, Any], target: str) -> str:
    for group in quantization["config_groups"].values():
        weights, inputs = group["weights"], group.get("input_activations")
        bits = weights["num_bits"]
        if inputs:
            if (bits, inputs["num_bits"]) != (8, 8):
                return f"vLLM on {target} has no kernel for W{bits}A{inputs['num_bits']}"
        elif target == "cuda" and bits == 3:
            return HUMMING
        elif target == "cuda" and bits == 8 and not weights["symmetric"]:
            return "vLLM on cuda runs 8 bits only with symmetric grids"
        elif bits not in {"cpu": (4,), "cuda": (4, 8)}[target]:
            return f"vLLM on {target} has no kernel for {bits}-bit weights alone"
    return ""


def _shapes(folder: Path, quantization: Mapping[str, Any], target: str) -> str:
    """Why the linears' shapes or groups forbid it: Marlin is vLLM's kernel for bfloat16 on CUDA."""
    if target != "cuda" or quantization.get("format") != "pack-quantized":
        return ""
    weights = quantization["config_groups"]["group_0"]["weights"]
    group, words = weights.get("group_size") or -1, checkpoint.widths(folder, ".weight_packed")
    if group not in MARLIN_GROUPS:
        return f"vLLM's Marlin kernel takes groups of 32, 64 or 128 columns, not {group}"
    columns = {width * 32 // weights["num_bits"] for width in words}
    if odd := sorted(width for width in columns if width % MARLIN_COLUMNS):
        return f"vLLM's Marlin kernel takes multiples of {MARLIN_COLUMNS} columns, not {odd[0]}"
    return ""


def layout(variant: Variant) -> list[object]:
    """What variants whose weights take equally long to read have in common."""
    uniform = method_of(variant.method).storage == "uniform"
    return [variant.bits, variant.group_size, variant.sym] if uniform else []


class Resident(NamedTuple):
    """What tells which tensors a target holds, and how large."""

    target: str
    as_stored: bool  # by the local engine
    dense: Mapping[str, StoredTensor]  # of the base model
    ratio: float  # bytes of a weight in the target's type per stored byte of the base model

    def tensors(
        self, label: str, folder: Path, stored: Mapping[str, StoredTensor]
    ) -> dict[str, int]:
        """Key -> bytes of a variant in memory; members of one process share equal keys."""
        kept, found = self._kept(folder), dict[str, int]()
        decoded: dict[str, list[str]] = {}  # linear -> what its dense weight is made from
        for name, tensor in stored.items():
            linear, same = name.rpartition(".")[0], self.dense.get(name)
            if same and same.bytes == tensor.bytes:  # not quantized
                found[tensor.sha256] = round(self.ratio * tensor.bytes)
            elif kept:
                found[tensor.sha256] = tensor.bytes
            else:
                decoded.setdefault(linear, []).append(tensor.sha256)
        dense = {name: round(self.ratio * tensor.bytes) for name, tensor in self.dense.items()}
        if all(f"{linear}.weight" in dense for linear in decoded):
            found |= {_digest(decoded[linear]): dense[f"{linear}.weight"] for linear in decoded}
        else:  # names of another layout
            found = {_digest(tensor.sha256 for tensor in stored.values()): sum(dense.values())}
        if self.target == LOCAL:
            return found
        return {f"{label}:{key}": size for key, size in found.items()}  # others load their own

    def _kept(self, folder: Path) -> bool:
        where, _ = loading.checkpoint_of(folder)
        if self.target == LLAMACPP:
            return (where / gguf_file.NAME).is_file()
        if self.target != LOCAL:
            return not not_as_stored(where, self.target.removeprefix("vllm_"))
        if not self.as_stored or (where / coded.INDEX).is_file():
            return False
        return stored_weights.is_kept(loading.quantization_config(where))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()
