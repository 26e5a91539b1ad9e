"""A pack in which every row has its keys side by side: few rows behind many different prefixes.

`packed.Pack` computes a product for each path, which pays where many rows share it. A server's
batch is a few sequences behind as many kept prefixes, for which that makes dozens of small products
a layer. Here a row's keys and values, its path's and its own, are copied next to each other, and
all rows of about equal length are one product.

Shapes as in `packed`; S tokens of all paths; in a bucket R rows of M keys, key j of a row being
that of position j of its sequence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptsearch.engine import packed
from ptsearch.engine.packed import Bucket, Forward, Index, Store, Window
from ptsearch.engine.prefix import Plan
from ptsearch.engine.runtime import kv_shape
from ptsearch.quantize.cache import KV

COPIED = 2**18  # numbers of keys that are copied in the time that a path's own products take
AT_ONCE = 2**22  # numbers of keys that are copied for one bucket
SETUP = 2**22  # products of a query's and a key's numbers that take as long as a further bucket


class Rows(NamedTuple):
    """A bucket."""

    bucket: Bucket  # without keys
    start: Tensor  # (R,) position of each row's first token
    keys: Tensor  # (R, M) where they lie among the S + T; anything behind a row's last


class Gathered(Forward):
    """One forward, as `packed.Pack`; what is rounded when old it does not know."""

    def __init__(
        self, plan: Plan, part: Sequence[int], keep: Iterable[int], store: Store, model: Any
    ) -> None:
        super().__init__(plan, part, keep, store, model)
        self.before = sorted({number for n in part for number in plan.segments[n].path})
        self.rows = list(_rows(plan, part, self.before, self.offsets, model))
        self.index: Index | None = None
        self.keys: list[Tensor] = []  # per bucket: rows of (K x (S + T), D)
        self.biases: dict[tuple[int, int | None], Tensor] = {}

    def attend(self, layer: int, query: Tensor, own: KV, window: Window) -> Tensor:
        heads, tokens, _ = query.shape
        kv_heads = own.keys.shape[0]
        groups = heads // kv_heads
        self.keep(layer, own)
        parts = [*(self.store[segment][layer] for segment in self.before), own]
        k, v = (torch.cat(each, 1) for each in zip(*parts, strict=True))
        if self.index is None:
            buckets = [rows.bucket for rows in self.rows]
            self.index = packed.index_of(buckets, tokens, heads, kv_heads, query.device)
            head = torch.arange(kv_heads, device=query.device)[:, None] * k.shape[1]
            self.keys = [(head + rows.keys.flatten()).flatten() for rows in self.rows]
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        q = packed.rows_of(query).index_select(0, self.index.query)
        out = v.new_empty(len(q), v.shape[1])
        low = 0
        for number, (bucket, _, keys) in enumerate(self.rows):
            rows, width = keys.shape
            high = low + heads * rows * bucket.queries
            taken = (p.index_select(0, self.keys[number]) for p in (k, v))
            packed.softmax_attention(
                q[low:high].view(kv_heads, rows, groups * bucket.queries, -1),
                KV(*(part.view(kv_heads, rows, width, -1) for part in taken)),
                None,
                (self._bias(number, kv_heads, groups, window, q), None),
                window,
                out[low:high].view(kv_heads, rows * groups * bucket.queries, -1),
            )
            low = high
        return out.index_select(0, self.index.back).view(tokens, heads, -1)

    def _bias(
        self, number: int, kv_heads: int, groups: int, window: Window, like: Tensor
    ) -> Tensor:
        """0 where a query sees a key, else -inf: (K x R, N, M)."""
        if (number, window.sliding) not in self.biases:
            bucket, start, keys = self.rows[number]
            at = torch.arange(bucket.queries).repeat(groups).minimum(bucket.length[:, None] - 1)
            at = (start[:, None] + at)[..., None]
            seen, _ = packed.sees(at, 0, keys.shape[1], window)
            bias = packed.as_bias(seen.to(like.device), like)
            self.biases[number, window.sliding] = bias.expand(kv_heads, -1, -1, -1).flatten(0, 1)
        return self.biases[number, window.sliding]


def pays(plan: Plan, part: Sequence[int], model: Any) -> bool:
    """Whether copying the keys of all paths is less work than a product for each path."""
    heads, width = kv_shape(model.config.get_text_config())
    copied = sum(plan.segments[n].start for n in part)
    return copied * heads * width <= COPIED * len({plan.segments[n].path for n in part})


def _rows(
    plan: Plan, part: Sequence[int], before: Sequence[int], offsets: Mapping[int, int], model: Any
) -> Iterator[Rows]:
    """The buckets. `before`: the segments of all paths, in the order of their tokens."""
    places, end = {}, 0
    for number in before:
        places[number] = end
        end += len(plan.segments[number].tokens)

    def keys(number: int) -> list[int]:
        path = ((places[n], len(plan.segments[n].tokens)) for n in plan.segments[number].path)
        own = (end + offsets[number], len(plan.segments[number].tokens))
        return [at for first, length in (*path, own) for at in range(first, first + length)]

    for numbers, width in _similar(plan, part, model):
        lengths = [len(plan.segments[n].tokens) for n in numbers]
        bucket = Bucket(
            path=(),
            past=0,
            first=torch.tensor([offsets[n] for n in numbers]),
            length=torch.tensor(lengths),
            queries=max(lengths),
            keys=0,
        )
        found = [keys(n) for n in numbers]
        start = torch.tensor([plan.segments[n].start for n in numbers])
        padded = [each + [0] * (width - len(each)) for each in found]
        yield Rows(bucket, start, torch.tensor(padded, device=model.device))


def _similar(plan: Plan, part: Sequence[int], model: Any) -> Iterator[tuple[list[int], int]]:
    """Segments in the buckets of least work, and the keys of each bucket's longest row, padded."""
    config = model.config.get_text_config()
    budget = packed.SCORES[model.device.type] // config.num_attention_heads
    at_once = AT_ONCE // config.hidden_size
    lengths = {n: len(plan.segments[n].tokens) for n in part}
    order = sorted(part, key=lambda n: -lengths[n])
    widths = [packed.aligned(plan.segments[n].start + lengths[n]) for n in order]
    best = [(0, 0)]  # work of the first rows, and how many of them are not in the last bucket
    for end in range(1, len(order) + 1):
        width, found = 0, list[tuple[int, int]]()
        for low in range(end - 1, -1, -1):
            width = max(width, widths[low])
            keys, longest = (end - low) * width, lengths[order[low]]
            if found and (keys * longest > budget or keys > at_once):
                break
            found.append((best[low][0] + SETUP + keys * longest * config.hidden_size, low))
        best.append(min(found))
    end = len(order)
    while end:
        low = best[end][1]
        yield order[low:end], max(widths[low:end])
        end = low
