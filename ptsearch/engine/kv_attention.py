"""Where a model rounds its keys and values, and what is recorded to calibrate that.

`attach` gives each attention layer of a model its `Rounding`, which `attention` finds there. On the
packed path segments hold whole groups of tokens that are rounded together; any other use of such a
model needs all tokens of a sequence at once (`use_cache=False`).
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptsearch.engine import attention
from ptsearch.quantize.kv import KV, Recorded, Rotate, Rounding

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


def record(
    model: "PreTrainedModel", chunks: Tensor, before_position: bool, tokens: int
) -> dict[int, Recorded]:
    """Layer -> about `tokens` keys and values of chunks (n, length), and the loss's gradients.

    The whole model is in memory, with the activations of one chunk.
    """
    from transformers import AttentionInterface

    layers = attention_layers(model)
    rotations = {each.layer_idx: rotation(model, each) for each in layers if before_position}
    current: dict[int, KV] = {}

    def keep(
        layer: "AttentionLayer", query: Tensor, key: Tensor, value: Tensor, *_: object, **how: Any
    ) -> tuple[Tensor, None]:
        key.retain_grad()
        value.retain_grad()
        current[layer.layer_idx] = KV(key, value)
        return causal_attention(query, key, value, **how), None

    AttentionInterface.register("ptsearch_record", keep)
    model.set_attn_implementation("ptsearch_record")
    model.get_input_embeddings().weight.requires_grad_(True)  # the graph begins there
    stride = max(1, chunks.numel() // tokens)
    parts: dict[int, list[Recorded]] = {each.layer_idx: [] for each in layers}
    for ids in chunks:
        model(input_ids=ids[None], labels=ids[None], use_cache=False).loss.backward()
        for layer, kv in current.items():
            parts[layer].append(_recorded(kv, stride, rotations.get(layer)))
        model.zero_grad(set_to_none=True)
    return {
        layer: Recorded(*map(_joined, zip(*some, strict=True))) for layer, some in parts.items()
    }


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> Tensor:
    """Attention over an unrounded cache, to differentiate. (R, H, n, D) -> (R, n, H, D)."""
    groups = query.shape[1] // key.shape[1]
    at = torch.arange(key.shape[2], device=key.device)
    seen = at <= at[:, None]
    if sliding_window is not None:
        seen &= at > at[:, None] - sliding_window
    scores = query @ key.repeat_interleave(groups, 1).mT
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores if softcap is None else (scores / softcap).tanh() * softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2)


def _recorded(kv: KV, stride: int, rotate: Rotate | None) -> Recorded:
    """Every `stride`-th token, after the backward pass."""
    gradients = [t.grad for t in kv if t.grad is not None]
    tensors = [t.float().transpose(0, 1) for t in (*kv, *gradients)]  # (K, R, n, D)
    if rotate:  # a gradient turns as what it belongs to
        tensors[0], tensors[2] = (rotate(tensors[n], 0, True) for n in (0, 2))
    some = [t.detach()[:, :, ::stride].flatten(1, 2) for t in tensors]
    return Recorded(KV(*some[:2]), KV(*some[2:]))


def _joined(parts: Sequence[KV]) -> KV:
    return KV(*(torch.cat(tensors, 1) for tensors in zip(*parts, strict=True)))
