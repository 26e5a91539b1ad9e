"""A pack in which every row has its keys side by side: few rows behind many different prefixes.

`packed.Pack` computes a product for each path, which pays where many rows share it. A server's
batch is a few sequences behind as many kept prefixes, for which that makes dozens of small products
a layer. Here a row's keys and values, its path's and its own, are copied next to each other, and
all rows of about equal length are one product. All layers use the same memory for it.

Shapes as in `packed`; S tokens of all paths; in a bucket R rows of M keys, key j of a row being
that of position j of its sequence.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptsearch.engine import elementwise, kernels, packed
from ptsearch.engine.fake_quant import kv_shape
from ptsearch.engine.kv_cache import KV
from ptsearch.engine.packed import Bucket, Forward, Index, Store, Window
from ptsearch.engine.prefix import Plan

COPIED = 2**18  # numbers of keys that are copied in the time that a path's own products take
AT_ONCE = 2**22  # numbers of keys that are copied for one bucket
SETUP = 2**21  # products of a query's and a key's numbers that take as long as a further bucket


class Span(NamedTuple):
    """Consecutive keys of a row: one of the sources' tokens, first to first + count - 1."""

    source: int
    first: int
    tokens: int


class Rows(NamedTuple):
    """A bucket."""

    bucket: Bucket  # without keys
    start: Tensor  # (R,) position of each row's first token
    width: int  # M
    spans: list[list[Span]]  # per row: what its keys are, in order


class Room(NamedTuple):
    """A bucket's part of the memory that all layers use."""

    queries: Tensor  # (K x R, N, D)
    keys: Tensor  # (K x R, M, D), as the values; zero behind a row's last
    values: Tensor
    scores: Tensor  # (K x R, N, M)
    out: Tensor  # (K x R, N, D)


class Layout(NamedTuple):
    """The memory for layers of one shape, and where in it everything goes."""

    order: Index
    queries: Tensor  # (rows, D), of all buckets
    out: Tensor  # the same
    keys: Tensor  # (keys, D), of all buckets, as the values
    values: Tensor
    rooms: list[Room]
    runs: kernels.Places  # as `kernels.gather` takes them


class Gathered(Forward):
    """One forward, as `packed.Pack`; what is rounded when old it does not know."""

    def __init__(
        self, plan: Plan, part: Sequence[int], keep: Iterable[int], store: Store, model: Any
    ) -> None:
        super().__init__(plan, part, keep, store, model)
        self.before = sorted({number for n in part for number in plan.segments[n].path})
        self.rows = list(_rows(plan, part, self.before, self.offsets, model))
        self.windows: dict[int, Window] = {}  # how each layer attends
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._seen: dict[tuple[int, int, int | None], tuple[Tensor, Tensor]] = {}

    def attend(self, layer: int, query: Tensor, own: KV, window: Window) -> Tensor:
        heads, tokens, _ = query.shape
        self.windows[layer] = window
        self.keep(layer, own)
        layout = self.layout(heads, own.keys)
        sources = [*(self.store[segment][layer] for segment in self.before), own]
        _take([kv.keys for kv in sources], layout.runs, layout.keys)
        _take([kv.values for kv in sources], layout.runs, layout.values)
        rows = packed.rows_of(query)
        torch.index_select(rows, 0, layout.order.query, out=layout.queries)
        for number, room in enumerate(layout.rooms):
            torch.bmm(room.queries, room.keys.mT, out=room.scores)
            scale = window.scale
            if window.softcap is not None:
                room.scores.mul_(scale / window.softcap).tanh_().mul_(window.softcap)
                scale = 1.0
            first, end = self.seen(number, heads // len(own.keys), window)
            elementwise.softmax_seen_(room.scores, first, end, scale)
            torch.bmm(room.scores, room.values, out=room.out)
        return layout.out.index_select(0, layout.order.back).view(tokens, heads, -1)

    def layout(self, heads: int, own: Tensor) -> Layout:
        """For layers with so many heads of queries, and keys (K, T, D)."""
        shape = (heads, *own.shape)
        if shape not in self._layouts:
            self._layouts[shape] = _layout(self.rows, heads, own)
        return self._layouts[shape]

    def seen(self, number: int, groups: int, window: Window) -> tuple[Tensor, Tensor]:
        """The first key that each query of a bucket sees, and the one behind its last: (R x N,);
        none for a query that only fills its row.
        """
        at = (number, groups, window.sliding)
        if at not in self._seen:
            bucket, start, *_ = self.rows[number]
            query = torch.arange(bucket.queries).repeat(groups)
            end = (start[:, None] + query + 1) * (query < bucket.length[:, None])
            end = end.flatten().to(self.ids.device)
            first = end - (end if window.sliding is None else end.clamp(max=window.sliding))
            self._seen[at] = first, end
        return self._seen[at]


def pays(plan: Plan, part: Sequence[int], model: Any) -> bool:
    """Whether copying the keys of all paths is less work than a product for each path."""
    heads, width = kv_shape(model.config.get_text_config())
    copied = sum(plan.segments[n].start for n in part)
    return copied * heads * width <= COPIED * len({plan.segments[n].path for n in part})


def _rows(
    plan: Plan, part: Sequence[int], before: Sequence[int], offsets: Mapping[int, int], model: Any
) -> Iterator[Rows]:
    """The buckets. The sources of keys are the segments `before`, and this forward's own tokens."""
    lengths = {n: len(plan.segments[n].tokens) for n in (*before, *part)}
    source = {number: place for place, number in enumerate(before)}

    def spans(number: int) -> list[Span]:
        path = [Span(source[n], 0, lengths[n]) for n in plan.segments[number].path]
        return [*path, Span(len(before), offsets[number], lengths[number])]

    for numbers, width in _similar(plan, part, model):
        bucket = Bucket(
            path=(),
            past=0,
            first=torch.tensor([offsets[n] for n in numbers]),
            length=torch.tensor([lengths[n] for n in numbers]),
            queries=max(lengths[n] for n in numbers),
            keys=0,
        )
        start = torch.tensor([plan.segments[n].start for n in numbers])
        yield Rows(bucket, start, width, [spans(n) for n in numbers])


def _layout(rows: Sequence[Rows], heads: int, own: Tensor) -> Layout:
    kv_heads, tokens, width = own.shape
    index = packed.index_of([b for b, *_ in rows], tokens, heads, kv_heads, own.device)
    queries, out = (own.new_zeros(len(index.query), width) for _ in range(2))
    count = sum(kv_heads * len(spans) * m for _, _, m, spans in rows)
    keys, values = (own.new_zeros(count, width) for _ in range(2))
    rooms, runs, low, first = [], list[list[int]](), 0, 0
    for bucket, _, m, spans in rows:
        batch = kv_heads * len(spans)
        high, end = low + heads * len(spans) * bucket.queries, first + batch * m
        each = (part[low:high].view(batch, -1, width) for part in (queries, out))
        kv = (part[first:end].view(batch, m, width) for part in (keys, values))
        asked, answer = each
        scores = own.new_empty(batch, asked.shape[1], m)
        rooms.append(Room(asked, next(kv), next(kv), scores, answer))
        for row, parts in enumerate(spans):
            to = first + row * m
            for span in parts:
                runs.append([to, len(spans) * m, *span])
                to += span.tokens
        low, first = high, end
    return Layout(index, queries, out, keys, values, rooms, np.array(runs))


def _take(sources: Sequence[Tensor], runs: kernels.Places, out: Tensor) -> None:
    """Copy runs of tokens from the sources (K, tokens, D) to rows of `out` (rows, D)."""
    heads, _, width = sources[-1].shape
    if out.device.type == "cpu":
        size = out.itemsize
        table = [[x.data_ptr(), x.stride(0) * size, x.stride(1) * size] for x in sources]
        kernels.gather(runs, np.array(table), heads, width * size, out.data_ptr())
        return
    starts = np.cumsum([0, *(x.shape[1] for x in sources)])
    index = np.zeros(len(out), np.int64)  # what is behind a row's last key is not seen
    for row, apart, source, first, count in runs:
        for head in range(heads):
            low, at = row + head * apart, head * starts[-1] + starts[source] + first
            index[low : low + count] = np.arange(at, at + count)
    taken = torch.from_numpy(index).to(out.device)
    torch.index_select(torch.cat(list(sources), 1).flatten(0, 1), 0, taken, out=out)


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
