"""The form in which a target runs a member: as stored, or written as dense bfloat16."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptsearch.config import LOCAL
from ptsearch.models import coded
from ptsearch.variant import Variant

HUMMING = "3 bits on CUDA need vLLM's Humming kernels, an extra package"


class Form(NamedTuple):
    """How a member is written."""

    stored: bool  # as in the cache, else dense bfloat16
    why: str  # why not as stored; "" where it is


def form_of(variant: Variant, checkpoint: Path, target: str) -> Form:
    """ValueError: the target cannot run the member."""
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
            f"member {variant.label} needs {what} rounded at run time, which a vLLM server on "
            f"{target} does not do as the search did: choose export.target={LOCAL}"
        )
    if (checkpoint / coded.INDEX).is_file():
        return Form(False, "its layout is specific to ptsearch")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    why = unsupported(config.get("quantization_config") or {}, target)
    return Form(not why, why)


def unsupported(quantization: Mapping[str, Any], target: str) -> str:
    """Why vLLM 0.32 on cpu or cuda does not run a checkpoint's quantization; "" = it does.

    Tested on CPU; for CUDA read from vLLM's source (experiments/LOG.md).
    """
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
