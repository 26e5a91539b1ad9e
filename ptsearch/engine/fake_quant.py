"""What a checkpoint asks to be rounded while it runs, and the hooks that do it.

Weights are rounded once and stored; the inputs of linear layers, and past keys and values, are
rounded in each forward pass. A variant's folder says so in its meta.json, any other checkpoint in
the `input_activations` of its quantization config; what was calibrated for it is stored with the
weights in `runtime.safetensors`.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ptsearch import store
from ptsearch.engine import kv_attention
from ptsearch.models import experts, loading
from ptsearch.quantize import activations
from ptsearch.quantize.kv import Rounding
from ptsearch.variant import ACT_BITS, Variant, from_fields, method_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TENSORS = "runtime.safetensors"


class Runtime(NamedTuple):
    """What is rounded; nothing by default."""

    act_bits: int = 16  # of each quantized linear's input
    kv: str = ""  # how keys and values are rounded: kivi | kvquant | wkvquant
    kv_bits: int = 16
    kv_window: int = 0
    first: int = 0  # tokens of a reply after which `then` takes over
    folders: tuple[Path, ...] = ()  # of the two checkpoints, where a reply has two phases
    tensors: Mapping[str, Tensor] = {}  # `{linear}.input_scale`, `{layer}.key_codes`, ...


def of(folder: Path) -> Runtime:
    """What the checkpoint in `folder` asks for."""
    if (folder / store.META).is_file():
        meta = store.read_json(folder / store.META)
        variant = from_fields(meta["variant"])
        if variant.decode_schedule:
            first, *parts = variant.phases()
            return Runtime(first=first, folders=tuple(folder.parent / part.id for part in parts))
        if variant.method != "path":
            return of_variant(variant, folder)
        folder = folder / meta["checkpoint"]
    quantization = loading.quantization_config(folder)
    return Runtime(act_bits=_input_bits(quantization, folder))


def of_variant(variant: Variant, folder: Path) -> Runtime:
    """The same for a variant whose meta.json may not be written yet."""
    path = folder / TENSORS
    return Runtime(
        act_bits=variant.act_bits,
        kv=kv_method(variant),
        kv_bits=variant.kv_bits,
        kv_window=variant.kv_window,
        tensors=load_file(path) if path.is_file() else {},
    )


def kv_method(variant: Variant) -> str:
    """How the variant rounds its cache, "" = not at all; KIVI where its method is none for it."""
    if variant.kv_bits == 16:
        return ""
    return variant.method if method_of(variant.method).kv else "kivi"


def apply(model: "PreTrainedModel", linears: Iterable[str], runtime: Runtime) -> Rounding | None:
    """Make the model round as `runtime` says; `linears`: names of those that a pool quantizes.

    Returns the cache's rounding, if any. ValueError: the model cannot.
    """
    _round_inputs(model, linears, runtime)
    if not runtime.kv:
        return None
    return kv_attention.attach(
        model, runtime.kv, runtime.kv_bits, runtime.kv_window, runtime.tensors
    )


def _round_inputs(model: "PreTrainedModel", names: Iterable[str], runtime: Runtime) -> None:
    if runtime.act_bits == 16:
        return
    if any(experts.is_fused(module) for module in model.modules()):
        raise ValueError("act_bits: the inputs of a mixture's experts cannot be rounded here")
    layers_apart = model.device.type == "meta"  # each is filled in its turn
    device = torch.device("cpu") if layers_apart else model.device
    for name in names:
        scale = runtime.tensors.get(f"{name}.{activations.SCALE}")
        if scale is None:
            rounding = partial(activations.round_tokens, bits=runtime.act_bits)
        else:
            rounding = partial(
                activations.round_channels,
                scale=scale.to(device),
                zero=runtime.tensors[f"{name}.{activations.ZERO}"].to(device),
                bits=runtime.act_bits,
            )
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, rounding=rounding: (rounding(args[0]), *args[1:])
        )


def _input_bits(quantization: Mapping[str, Any], folder: Path) -> int:
    """act_bits of a checkpoint that is not ours. ValueError: inputs are rounded in another way."""
    groups = (quantization.get("config_groups") or {}).values()
    settings = [group.get("input_activations") or {} for group in groups]
    if not any(settings):
        return 16
    kinds = [{key: each.get(key) for key in TOKENWISE} for each in settings]
    bits = {int(each.get("num_bits") or 16) for each in settings}
    if any(kind != TOKENWISE for kind in kinds) or len(bits) > 1 or not bits <= set(ACT_BITS):
        raise ValueError(
            f"{folder} rounds its activations in a way that is not known here: "
            "symmetric integers, dynamic, one scale per token are"
        )
    return bits.pop()


TOKENWISE = {"type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
