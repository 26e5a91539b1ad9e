"""Where a model rounds its keys and values.

`attach` gives each attention layer of a model its `Rounding`, which `attention` finds there. On the
packed path segments hold whole groups of tokens that are rounded together; any other use of such a
model needs all tokens of a sequence at once (`use_cache=False`).
"""

import inspect
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptsearch.engine import attention
from ptsearch.quantize.kv import Rotate, Rounding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptsearch.engine.attention import AttentionLayer


def attach(
    model: "PreTrainedModel", method: str, bits: int, window: int, tensors: Mapping[str, Tensor]
) -> Rounding:
    """Give each attention layer its rounding; the last one's is returned.

    `tensors`: calibrated, `{layer}.{name}`. ValueError: keys and values cannot be accessed.
    """
    from transformers import AttentionInterface

    for layer in attention_layers(model):
        prefix = f"{layer.layer_idx}."
        calibrated = {
            name.removeprefix(prefix): tensor.to(model.device)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        rotate = rotation(model, layer) if method == "kvquant" else None
        layer.rounding = rounding = Rounding(method, bits, window, calibrated, rotate)
    AttentionInterface.register(attention.NAME, attention.attention)
    model.set_attn_implementation(attention.NAME)
    return rounding


def attention_layers(model: "PreTrainedModel") -> list["AttentionLayer"]:
    """The layers that call transformers' attention interface, in order, found by a trial.

    ValueError: there are none.
    """
    from transformers import AttentionInterface

    layers: list[AttentionLayer] = []

    def note(
        layer: "AttentionLayer",
        query: Tensor,
        _key: Tensor,
        value: Tensor,
        *_: object,
        **__: object,
    ) -> tuple[Tensor, None]:
        layers.append(layer)
        heads = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return heads.transpose(1, 2), None  # one token attends to itself

    AttentionInterface.register("ptsearch_trial", note)
    model.set_attn_implementation("ptsearch_trial")
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    if not layers:
        raise ValueError(
            f"kv_bits: {type(model).__name__} keeps no keys and values that can be rounded here"
        )
    return layers


def rotation(model: "PreTrainedModel", layer: "AttentionLayer") -> Rotate:
    """The position encoding of a layer's keys, by the model's own functions. It is undone by
    turning by the opposite angle. ValueError: there is none in the usual form.
    """
    apply = getattr(sys.modules[type(layer).__module__], "apply_rotary_pos_emb", None)
    named = (part for name, part in model.named_modules() if name.endswith("rotary_emb"))
    angles = next(named, None)
    if apply is None or angles is None:
        raise ValueError(
            f"kvquant rounds keys before their position encoding, which {type(layer).__name__} "
            "does not have in a form known here"
        )
    kinds = getattr(layer.config, "layer_types", None)
    by_kind = "layer_type" in inspect.signature(angles.forward).parameters
    kind = (kinds[layer.layer_idx],) if by_kind and kinds else ()

    def rotate(X: Tensor, start: int, undo: bool) -> Tensor:
        positions = torch.arange(start, start + X.shape[2], device=X.device)[None]
        like = X.new_empty(0, dtype=model.dtype)
        cos, sin = (part.float() for part in angles(like, positions, *kind))
        if undo:
            size = cos.square() + sin.square()  # not 1 where rounded, or scaled
            cos, sin = cos / size, -sin / size
        turned: Tensor = apply(X, X, cos, sin)[1]
        return turned

    return rotate
