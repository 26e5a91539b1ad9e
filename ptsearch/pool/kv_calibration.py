"""Recording keys and values, and the gradients of the model's loss, to calibrate their rounding.

Shapes as in `engine/attention.py`: R sequences of n tokens, H query heads, K key/value heads of D.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptsearch.engine.kv_attention import attention_layers, rotation
from ptsearch.quantize.kv import KV, Recorded, Rotate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptsearch.engine.attention import AttentionLayer


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
