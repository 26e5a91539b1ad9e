"""Many sequences in one forward: their tokens end to end, without padding, shared prefixes once.

transformers runs everything but the attention: `attention` is registered under its attention
interface and given a `Pack`, which says what attends to what. A pack's segments are gathered into
buckets of about equal length that follow the same path of earlier segments. The keys and values of
that path are one matrix product for all rows of a bucket, never a copy for each row.

Shapes: T tokens of a pack, H query heads, K key/value heads of H / K = G queries each, D head
dimension; in a bucket R rows, N = G x longest row queries a key/value head.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ptsearch.engine.kv_cache import KV, Rounding
from ptsearch.engine.prefix import Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    class AttentionLayer(nn.Module):
        """What the attention layers of transformers' models have."""

        layer_idx: int
        config: PretrainedConfig


NAME = "ptsearch_packed"  # in transformers' attention interface
ALIGN = 32  # score rows of a multiple of this take half the time in the CPU's bf16 softmax
# Attention scores of one bucket: a few megabytes stay in a CPU's cache, a GPU wants large products.
SCORES = {"cpu": 2**21, "cuda": 2**26}


class UnsupportedError(Exception):
    """The model's attention does something that the packed path does not know."""


Layers = dict[int, KV]  # layer -> keys and values (K, tokens, D) of a segment
Store = dict[int, Layers]  # segment -> what later segments attend to


class Window(NamedTuple):
    """How one layer turns products into scores."""

    scale: float
    sliding: int | None  # a query sees this many positions, its own included; None = all
    softcap: float | None
    rounding: Rounding | None = None  # of old keys and values; None = all are seen in full


class Attends(Protocol):
    """What `attention` is given: a `Pack`, or a decoding step."""

    def attend(self, layer: int, query: Tensor, own: KV, window: Window) -> Tensor:
        """query: (H, T, D), own: (K, T, D) each -> (T, H, D)."""


class Bucket(NamedTuple):
    """Rows of about equal length behind one path."""

    path: tuple[int, ...]
    past: int  # tokens in the path
    first: Tensor  # (R,) where each row starts in the pack
    length: Tensor  # (R,)
    queries: int  # longest row
    keys: int  # the same, padded so that past + keys is a multiple of ALIGN


class Index(NamedTuple):
    """Rows of (T x heads, D) in the order that the buckets need, and back."""

    query: Tensor
    key: Tensor
    back: Tensor  # (T x H,)


class Pack:
    """One forward over some segments of a plan: their tokens end to end."""

    def __init__(
        self,
        plan: Plan,
        part: Sequence[int],
        keep: Iterable[int],
        store: Store,
        model: "PreTrainedModel",
    ) -> None:
        """The segments in `keep` leave their keys and values in `store`."""
        self.offsets: dict[int, int] = {}  # segment -> its first token in the pack
        ids: list[int] = []
        positions: list[int] = []
        for number in part:
            tokens, start, _ = plan.segments[number]
            self.offsets[number] = len(ids)
            ids.extend(tokens)
            positions.extend(range(start, start + len(tokens)))
        self.ids = torch.tensor([ids], device=model.device)  # (1, T)
        self.positions = torch.tensor([positions], device=model.device)  # (1, T)
        self.store = store
        # segments to keep: first token in the pack, number of tokens
        self.kept = {n: (self.offsets[n], len(plan.segments[n].tokens)) for n in keep}
        self.buckets = list(_buckets(plan, part, self.offsets, model))
        self.indices: dict[tuple[int, int], Index] = {}
        self.biases: dict[tuple[int, int | None], tuple[Tensor, Tensor | None]] = {}

    def attend(self, layer: int, query: Tensor, own: KV, window: Window) -> Tensor:
        heads, tokens, _ = query.shape
        kv_heads = own.keys.shape[0]
        groups = heads // kv_heads
        self._keep(layer, own)
        if (heads, kv_heads) not in self.indices:
            index = index_of(self.buckets, tokens, heads, kv_heads, query.device)
            self.indices[heads, kv_heads] = index
        index = self.indices[heads, kv_heads]
        q = rows_of(query).index_select(0, index.query)
        k = rows_of(own.keys).index_select(0, index.key)
        v = rows_of(own.values).index_select(0, index.key)
        out = v.new_empty(len(q), v.shape[1])
        pasts: dict[tuple[int, ...], KV | None] = {}
        q_low = k_low = 0
        for number, bucket in enumerate(self.buckets):
            if bucket.path not in pasts:
                pasts[bucket.path] = past_of(self.store, bucket.path, layer, window)
            rows = len(bucket.first)
            q_high = q_low + heads * rows * bucket.queries
            k_high = k_low + kv_heads * rows * bucket.keys
            mine = KV(*(p[k_low:k_high].view(kv_heads, rows, bucket.keys, -1) for p in (k, v)))
            softmax_attention(
                q[q_low:q_high].view(kv_heads, rows, groups * bucket.queries, -1),
                both_forms(mine, bucket.past, window),
                pasts[bucket.path],
                self._bias(number, groups, window, q),
                window,
                out[q_low:q_high].view(kv_heads, rows * groups * bucket.queries, -1),
            )
            q_low, k_low = q_high, k_high
        return out.index_select(0, index.back).view(tokens, heads, -1)

    def _keep(self, layer: int, own: KV) -> None:
        """Store copies of what later segments attend to."""
        for segment, (first, count) in self.kept.items():
            spans = (part[:, first : first + count] for part in own)
            copies = (part.clone(memory_format=torch.contiguous_format) for part in spans)
            self.store.setdefault(segment, {})[layer] = KV(*copies)

    def _bias(
        self, number: int, groups: int, window: Window, like: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """0 where a query sees a key, else -inf: (1, N, keys), and (1, N, past) with a window."""
        if (number, window.sliding) not in self.biases:
            bucket = self.buckets[number]
            at = torch.arange(bucket.queries, device=like.device).repeat(groups)[:, None]
            seen, past_seen = sees(bucket.past + at, bucket.past, bucket.keys, window)
            past_bias = None if past_seen is None else as_bias(past_seen, like)
            self.biases[number, window.sliding] = as_bias(seen, like), past_bias
        return self.biases[number, window.sliding]


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
    """transformers' attention interface. query: (1, H, T, D), key and value: (1, K, T, D)."""
    unknown = sorted(k for k in others.keys() - HARMLESS if others[k] is not None)
    if packed is None or attention_mask is not None or unknown:
        raise UnsupportedError(f"its attention is called with {', '.join(unknown) or 'a mask'}")
    if not getattr(module, "is_causal", True):
        raise UnsupportedError("its attention is not causal")
    kinds = getattr(module.config, "layer_types", None)
    kind = kinds[module.layer_idx] if kinds else "full_attention"
    if kind not in KINDS or (kind == "sliding_attention" and sliding_window is None):
        raise UnsupportedError(f"it has layers of {kind}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rounding = getattr(module, "rounding", None)
    window = Window(scale, sliding_window, softcap, rounding)
    out = packed.attend(module.layer_idx, query[0], KV(key[0], value[0]), window)
    return out[None], None


HARMLESS = {
    "dropout",
    "is_causal",
    "output_attentions",
    "output_router_logits",
    "position_ids",
    "use_cache",
}
KINDS = {"full_attention", "sliding_attention"}


def sees(at: Tensor, past: int, own: int, window: Window) -> tuple[Tensor, Tensor | None]:
    """Which keys queries at positions `at` (..., 1) see: (..., own), and (..., past) or None = all.

    Own keys begin at position `past`. Over a rounded cache both are twice as long: what is seen
    rounded, then what is seen in full.
    """
    key = torch.arange(past + own, device=at.device)
    seen = key <= at
    if window.sliding is not None:
        seen = seen & (key > at - window.sliding)
    if window.rounding is None:
        all_past = window.sliding is None or not past or bool(seen[..., :past].all())
        return seen[..., past:], None if all_past else seen[..., :past]
    old = window.rounding.old(at, key)
    forms = (seen & old, seen & ~old)
    past_seen = torch.cat([form[..., :past] for form in forms], -1) if past else None
    return torch.cat([form[..., past:] for form in forms], -1), past_seen


def both_forms(kv: KV, start: int, window: Window) -> KV:
    """Over a rounded cache, keys and values (K, R, n, D) rounded, then in full; else as they are.

    `start`: position of the first.
    """
    if window.rounding is None:
        return kv
    rounded = window.rounding(kv, start)
    return KV(*(torch.cat(forms, 2) for forms in zip(rounded, kv, strict=True)))


def softmax_attention(
    query: Tensor,
    own: KV,
    past: KV | None,
    bias: tuple[Tensor, Tensor | None],
    window: Window,
    out: Tensor,
) -> None:
    """out = softmax(scale Q Kᵀ + bias) V over the keys of the path and the row's own.

    query: (K, R, N, D), own: (K, R, keys, D), past: (K, past, D), bias: to (K x R, N, keys) and
    (K x R, N, past), out: (K, R x N, D). Plain products and a softmax in place: in bf16 on a CPU
    this takes a third of the fused kernel's time.
    """
    kv_heads, rows, queries, _ = query.shape
    n_past = 0 if past is None else past.keys.shape[1]
    n_own = own.keys.shape[2]
    scores = query.new_empty(kv_heads * rows, queries, n_past + n_own)
    on_own, on_past = scores[..., n_past:], scores.view(kv_heads, rows * queries, -1)[..., :n_past]
    q, k, v = query.flatten(0, 1), own.keys.flatten(0, 1), own.values.flatten(0, 1)
    if window.softcap is None:
        torch.baddbmm(bias[0], q, k.mT, alpha=window.scale, out=on_own)
    else:
        torch.bmm(q, k.mT, out=on_own)
    if past is not None:
        keys = past.keys.mT
        scale = window.scale if window.softcap is None else 1
        torch.baddbmm(on_past, query.flatten(1, 2), keys, beta=0, alpha=scale, out=on_past)
    if window.softcap is not None:
        scores.mul_(window.scale / window.softcap).tanh_().mul_(window.softcap)
        on_own += bias[0]
    if bias[1] is not None:
        scores[..., :n_past] += bias[1]
    torch.softmax(scores, -1, out=scores)
    flat = out.view(kv_heads * rows, queries, -1)
    if past is None:
        torch.bmm(scores, v, out=flat)
    elif query.device.type == "cpu" and query.dtype != torch.float32 and queries > v.shape[-1]:
        # oneDNN would copy parts of the scores, which is more than a copy of the values a row.
        values = past.values[:, None].expand(-1, rows, -1, -1)
        torch.bmm(scores, torch.cat([values, own.values], 2).flatten(0, 1), out=flat)
    else:
        torch.bmm(on_past, past.values, out=out)
        flat.baddbmm_(on_own, v)


def _buckets(
    plan: Plan, part: Sequence[int], offsets: Mapping[int, int], model: "PreTrainedModel"
) -> Iterator[Bucket]:
    behind: dict[tuple[int, ...], list[int]] = {}
    for number in part:
        behind.setdefault(plan.segments[number].path, []).append(number)
    lengths = {number: len(plan.segments[number].tokens) for number in part}
    heads = model.config.get_text_config().num_attention_heads
    budget = SCORES[model.device.type] // heads
    for path, numbers in behind.items():
        past = plan.segments[numbers[0]].start
        for rows in _similar(numbers, lengths, past, budget):
            longest = max(lengths[row] for row in rows)
            yield Bucket(
                path,
                past,
                torch.tensor([offsets[row] for row in rows]),
                torch.tensor([lengths[row] for row in rows]),
                longest,
                aligned(past + longest) - past,
            )


def forward(
    model: "PreTrainedModel", ids: Tensor, positions: Tensor, rows: Tensor, attends: Attends
) -> Tensor:
    """Logits at `rows` of the packed tokens. ids, positions: (1, T) -> (rows, vocabulary)."""
    output = model(
        input_ids=ids,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=rows,
        packed=attends,
    )
    logits: Tensor = output.logits[0]
    return logits


def past_of(store: Store, path: Sequence[int], layer: int, window: Window) -> KV | None:
    """Keys and values of a path as they are seen; None for the empty path."""
    past = join(store, path, layer)
    if past is None or window.rounding is None:
        return past
    seen = both_forms(KV(past.keys[:, None], past.values[:, None]), 0, window)
    return KV(seen.keys[:, 0], seen.values[:, 0])


def join(store: Store, path: Sequence[int], layer: int) -> KV | None:
    """Keys and values of a path, in order; None for the empty path."""
    parts = [store[segment][layer] for segment in path]
    if len(parts) <= 1:
        return parts[0] if parts else None
    return KV(torch.cat([p.keys for p in parts], 1), torch.cat([p.values for p in parts], 1))


def as_bias(seen: Tensor, like: Tensor) -> Tensor:
    """0 where seen, else -inf. (N, keys) -> (1, N, keys)."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, -torch.inf
    )[None]


def aligned(length: int) -> int:
    """The next multiple of ALIGN."""
    return -(-length // ALIGN) * ALIGN


def _similar(
    numbers: Sequence[int], lengths: dict[int, int], past: int, budget: int
) -> Iterable[list[int]]:
    """Rows of about equal length, so many that a head's scores stay within the budget."""
    bucket: list[int] = []
    for number in sorted(numbers, key=lambda n: -lengths[n]):
        longest = lengths[bucket[0]] if bucket else 0
        scores = (len(bucket) + 1) * longest * aligned(past + longest)
        if bucket and (
            scores > budget or longest - lengths[number] > max(ALIGN // 2, longest // 4)
        ):
            yield bucket
            bucket = []
        bucket.append(number)
    yield bucket


def index_of(
    buckets: Sequence[Bucket], tokens: int, heads: int, kv_heads: int, device: torch.device
) -> Index:
    """Rows are token x heads + head. A row past a segment's end repeats its last token."""
    groups = heads // kv_heads
    head = torch.arange(heads).view(kv_heads, 1, groups, 1)
    kv_head = torch.arange(kv_heads)[:, None, None]
    queries, keys, real = [], [], []
    for bucket in buckets:
        first, length = bucket.first[:, None], bucket.length[:, None]
        at = torch.arange(bucket.queries)
        query = (first + at.minimum(length - 1))[None, :, None] * heads + head
        queries.append(query.flatten())  # (K, R, G, queries)
        real.append((at < length)[None, :, None].expand_as(query).flatten())
        key = first + torch.arange(bucket.keys).minimum(length - 1)
        keys.append((key * kv_heads + kv_head).flatten())  # (K, R, keys)
    index, valid = torch.cat(queries), torch.cat(real)
    back = torch.empty(tokens * heads, dtype=torch.long)
    back[index[valid]] = torch.arange(len(index))[valid]
    return Index(index.to(device), torch.cat(keys).to(device), back.to(device))


def rows_of(states: Tensor) -> Tensor:
    """(heads, T, D) -> (T x heads, D)."""
    return states.transpose(0, 1).flatten(0, 1)
