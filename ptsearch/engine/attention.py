"""Attention of packed tokens: what is registered under transformers' attention interface.

A forward is given a `packed.Pack` or a `decoding.Step`, which says what attends to what: its
queries are rows of about equal length behind the same path of earlier segments. The keys and values
of a path are one matrix product for all of its rows, never a copy for each row.

Shapes: T tokens of a forward, H query heads, K key/value heads of H / K = G queries each, D head
dimension; in a group of rows R rows of n queries, N = G x n queries per key/value head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ptsearch.quantize.kv import KV, Rounding

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    class AttentionLayer(nn.Module):
        """What the attention layers of transformers' models have."""

        layer_idx: int
        config: PretrainedConfig
        rounding: Rounding  # where `kv_attention` gave it one


NAME = "ptsearch"  # in transformers' attention interface
KINDS = {"full_attention", "sliding_attention"}
# Arguments of a layer's attention that change nothing here.
HARMLESS = {
    "dropout",
    "is_causal",
    "output_attentions",
    "output_router_logits",
    "position_ids",
    "use_cache",
}

Layers = dict[int, KV]  # layer -> keys and values (K, tokens, D) of a segment
Store = dict[int, Layers]  # segment -> what later segments attend to


class UnsupportedError(ValueError):
    """The model's attention does something that is not supported here."""


class Window(NamedTuple):
    """How one layer turns products into scores."""

    scale: float
    sliding: int | None  # a query sees this many positions, its own included; None = all
    softcap: float | None
    rounding: Rounding | None = None  # of old keys and values; None = all are seen in full


class Attends(Protocol):
    """What `attention` is given: a `Pack`, or a decoding step."""

    def attend(self, layer: int, query: Tensor, new: KV, window: Window) -> Tensor:
        """query: (T, H, D), new: (K, T, D) each -> (T, H, D)."""


class Bias(NamedTuple):
    """0 where a query sees a key, else -inf; for all rows alike, or (K x R, ...)."""

    row: Tensor  # (1, N, keys), for the keys of the row itself
    path: Tensor | None  # (1, N, keys of the path); None = all are seen


@dataclass
class Rows:
    """R rows of n queries behind one path."""

    path: tuple[int, ...]
    start: int  # tokens in the path
    tokens: Tensor  # (R, n) which tokens of the forward are the queries
    places: Tensor  # (R, n) where their outputs belong; T: nowhere, it fills up a shorter row
    positions: Tensor  # (R or 1, n) from the start of their sequences
    biases: dict[int | None, Bias] = field(default_factory=dict)  # by sliding window

    def attend(self, query: Tensor, kv: KV, path: KV | None, window: Window, out: Tensor) -> None:
        """out (T + 1, H x D) of these rows. query: (T, H, D).

        kv: the rows' own, (K, R, keys, D); path: (K, start, D).
        """
        (rows, queries), heads = self.tokens.shape, len(kv.keys)
        q = query[self.tokens].unflatten(2, (heads, -1)).permute(2, 0, 3, 1, 4).flatten(2, 3)
        if window.sliding not in self.biases:
            length = len(query[0]) // heads
            at = self.positions.repeat(1, length)[..., None]
            self.biases[window.sliding] = bias_of(at, self.start, kv.keys.shape[2], window, q)
        kv = both_forms(kv, self.start, window)
        result = softmax_attention(q, kv, path, self.biases[window.sliding], window)
        result = result.view(heads, rows, -1, queries, result.shape[-1]).permute(1, 3, 0, 2, 4)
        out.index_copy_(0, self.places.flatten(), result.reshape(rows * queries, -1))


def attention(  # noqa: PLR0913 - transformers' signature
    module: "AttentionLayer",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: Attends | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query: (R, H, n, D), key and value: (R, K, n, D).

    R is 1 with `packed`. Without, the rows are whole sequences over a rounded cache.
    UnsupportedError: the layer wants something else.
    """
    rounding = getattr(module, "rounding", None)
    unknown = sorted(k for k in others.keys() - HARMLESS if others[k] is not None)
    whole = rounding is not None and query.shape[2] == key.shape[2]
    if unknown or attention_mask is not None or not (packed or whole):
        raise UnsupportedError(f"its attention is called with {', '.join(unknown) or 'a mask'}")
    if not getattr(module, "is_causal", True):
        raise UnsupportedError("its attention is not causal")
    kinds = getattr(module.config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else "full_attention"
    if kind not in KINDS or (kind == "sliding_attention" and sliding_window is None):
        raise UnsupportedError(f"it has layers of {kind}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = Window(scale, sliding_window, softcap, rounding)
    if packed is None:
        return attend_whole(query, KV(key.transpose(0, 1), value.transpose(0, 1)), window), None
    new = KV(key[0], value[0])
    return packed.attend(module.layer_idx, query[0].transpose(0, 1), new, window)[None], None


def attend_whole(query: Tensor, kv: KV, window: Window) -> Tensor:
    """Attention within whole sequences of equal length. (R, H, n, D), kv: (K, R, n, D)."""
    rows, heads, length, _ = query.shape
    tokens = torch.arange(rows * length, device=query.device).view(rows, length)
    group = Rows((), 0, tokens, tokens, tokens[:1])
    out = query.new_empty(rows * length, heads * kv.values.shape[-1])
    group.attend(query.transpose(1, 2).flatten(0, 1), kv, None, window, out)
    return out.view(rows, length, heads, -1)


def bias_of(at: Tensor, start: int, keys: int, window: Window, query: Tensor) -> Bias:
    """What queries (K, R, N, D) at positions `at` (R or 1, N, 1) see."""

    def bias(seen: Tensor) -> Tensor:
        values = query.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return values.repeat(len(query), 1, 1) if len(values) > 1 else values

    row, path = sees(at, start, keys, window)
    return Bias(bias(row), None if path is None else bias(path))


def sees(at: Tensor, start: int, keys: int, window: Window) -> tuple[Tensor, Tensor | None]:
    """Which keys queries at positions `at` (..., 1) see: their row's, which begin at position
    `start`, (..., keys); and the path's, (..., start), or None = all.

    Over a rounded cache both are twice as long: what is seen rounded, then what is seen in full.
    """
    key = torch.arange(start + keys, device=at.device)
    seen = key <= at
    if window.sliding is not None:
        seen = seen & (key > at - window.sliding)
    if window.rounding is None:
        all_path = window.sliding is None or not start or bool(seen[..., :start].all())
        return seen[..., start:], None if all_path else seen[..., :start]
    old = window.rounding.old(at, key)
    forms = (seen & old, seen & ~old)
    path = torch.cat([form[..., :start] for form in forms], -1) if start else None
    return torch.cat([form[..., start:] for form in forms], -1), path


def both_forms(kv: KV, start: int, window: Window) -> KV:
    """Over a rounded cache, keys and values (K, R, n, D) rounded, then in full; else as they are.

    `start`: position of the first.
    """
    if window.rounding is None:
        return kv
    rounded = window.rounding(kv, start)
    return KV(*(torch.cat(forms, 2) for forms in zip(rounded, kv, strict=True)))


def path_of(store: Store, path: Sequence[int], layer: int, window: Window) -> KV | None:
    """Keys and values of a path as they are seen, (K, tokens, D); None for the empty path."""
    if not path:
        return None
    joined = join(store, path, layer)
    seen = both_forms(KV(joined.keys[:, None], joined.values[:, None]), 0, window)
    return KV(seen.keys[:, 0], seen.values[:, 0])


def join(store: Store, path: Sequence[int], layer: int) -> KV:
    """Keys and values of a path, in order."""
    parts = [store[segment][layer] for segment in path]
    return parts[0] if len(parts) == 1 else KV(*(torch.cat(p, 1) for p in zip(*parts, strict=True)))


def softmax_attention(
    query: Tensor, row: KV, path: KV | None, bias: Bias, window: Window
) -> Tensor:
    """softmax(scale Q Kᵀ + bias) V over the keys of the path and the row's own: (K, R x N, D).

    query: (K, R, N, D), row: (K, R, keys, D), path: (K, tokens, D). Plain products and a softmax in
    place: in bf16 on a CPU this takes a third of the fused kernel's time.
    """
    heads, rows, queries, _ = query.shape
    before = 0 if path is None else path.keys.shape[1]
    scores = query.new_empty(heads * rows, queries, before + row.keys.shape[2])
    on_row, on_path = scores[..., before:], scores.view(heads, rows * queries, -1)[..., :before]
    q, keys, values = query.flatten(0, 1), row.keys.flatten(0, 1), row.values.flatten(0, 1)
    scale = window.scale if window.softcap is None else window.scale / window.softcap
    torch.baddbmm(on_row, q, keys.mT, beta=0, alpha=scale, out=on_row)
    if path is not None:
        q = query.flatten(1, 2)
        torch.baddbmm(on_path, q, path.keys.mT, beta=0, alpha=scale, out=on_path)
    if window.softcap is not None:
        scores.tanh_().mul_(window.softcap)
    on_row += bias.row
    if bias.path is not None:
        scores[..., :before] += bias.path
    torch.softmax(scores, -1, out=scores)
    if path is None:
        return torch.bmm(scores, values).view(heads, rows * queries, -1)
    out = torch.bmm(on_path, path.values)
    out.view(heads * rows, queries, -1).baddbmm_(on_row, values)
    return out
