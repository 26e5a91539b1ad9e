"""Greedy replies over packed prompts, in waves that fit the token budget.

A wave's prompts are run as packs; then every step adds one token to each row. Rows behind the same
path of shared segments form a group: the path's keys and values are read once for the group, each
row's own ones lie in a buffer that grows to the right. A finished row leaves its group.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptsearch.engine import packed, prefix
from ptsearch.engine.kv_cache import KV
from ptsearch.engine.logprobs import plan
from ptsearch.engine.memory import WAVE, Limits
from ptsearch.engine.packed import Window
from ptsearch.engine.requests import Progress, check_finite, until_eos

if TYPE_CHECKING:
    from ptsearch.engine.local import LocalModel


@dataclass
class Group:
    """Rows that decode together behind one path."""

    path: tuple[int, ...]
    segments: list[int]  # per row: the prompt's own segment, behind the path
    length: Tensor  # (R,) tokens of the row's own, the newest included
    start: int  # position behind the path
    width: int  # of the buffers
    past: dict[int, KV | None] = field(default_factory=dict)  # layer -> the path's
    own: dict[int, KV] = field(default_factory=dict)  # layer -> (K, R, width, D)

    def select(self, rows: Tensor) -> None:
        """Keep these rows only."""
        self.segments = [self.segments[row] for row in rows.tolist()]
        self.length = self.length[rows]
        self.own = {
            layer: KV(kv.keys[:, rows], kv.values[:, rows]) for layer, kv in self.own.items()
        }


@dataclass
class Step:
    """One decoding step: a token of each row of the groups, in order."""

    groups: list[Group]
    store: packed.Store
    biases: dict[tuple[int, int | None], tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, own: KV, window: Window) -> Tensor:
        kv_heads = own.keys.shape[0]
        out = query.new_empty(query.shape[1], query.shape[0], own.values.shape[2])
        low = 0
        for number, group in enumerate(self.groups):
            rows = slice(low, low + len(group.segments))
            low = rows.stop
            q = query[:, rows].unflatten(0, (kv_heads, -1)).transpose(1, 2).contiguous()
            new = KV(own.keys[:, rows], own.values[:, rows])
            kv = self._append(group, layer, new, window)
            answer = q.new_empty(kv_heads, q.shape[1] * q.shape[2], out.shape[2])
            past = group.past[layer]
            if (number, window.sliding) not in self.biases:
                self.biases[number, window.sliding] = _bias(group, window, q)
            bias = self.biases[number, window.sliding]
            seen = packed.both_forms(kv, group.start, window)
            packed.softmax_attention(q, seen, past, bias, window, answer)
            out[rows] = answer.view(q.shape[:3] + answer.shape[2:]).transpose(0, 1).flatten(1, 2)
        return out

    def _append(self, group: Group, layer: int, new: KV, window: Window) -> KV:
        """The rows' own keys and values, with their newest token's."""
        if layer not in group.own:
            group.past[layer] = packed.past_of(self.store, group.path, layer, window)
            own = []
            for part, fresh in enumerate(new):
                shape = (fresh.shape[0], len(group.segments), group.width, fresh.shape[2])
                buffer = fresh.new_zeros(shape)
                for row, segment in enumerate(group.segments):
                    states = self.store[segment][layer][part]
                    buffer[:, row, : states.shape[1]] = states
                own.append(buffer)
            group.own[layer] = KV(*own)
        rows = torch.arange(len(group.segments), device=group.length.device)
        for buffer, fresh in zip(group.own[layer], new, strict=True):
            buffer[:, rows, group.length - 1] = fresh
        return group.own[layer]


@torch.inference_mode()
def generate(
    local: "LocalModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    eos: frozenset[int],
    report: Progress,
) -> list[list[int]]:
    """Greedy replies without their end-of-sequence token."""
    new: dict[tuple[int, ...], int] = {}
    for prompt, count in zip(prompts, max_new_tokens, strict=True):
        new[tuple(prompt)] = max(count, new.get(tuple(prompt), 0))
    distinct = list(new)
    shared = plan(distinct, local.limits)
    asked = {chain[-1]: new[prompt] for prompt, chain in zip(distinct, shared.chains, strict=True)}
    replies: dict[int, list[int]] = {}
    store: packed.Store = {}
    for parts in _waves(shared, asked, local.limits):
        wave = {
            n: [token] for part in parts for n, token in _first(local, shared, part, asked, store)
        }
        decode(local, shared, wave, asked, store, eos)
        replies |= wave
        for number in [n for n in store if shared.last[n] < parts[-1].stop]:
            del store[number]
        report(len(replies) * len(prompts) // len(asked), len(prompts))
    ends = {prompt: chain[-1] for prompt, chain in zip(distinct, shared.chains, strict=True)}
    return [
        until_eos(replies[ends[tuple(prompt)]][:count], eos)
        for prompt, count in zip(prompts, max_new_tokens, strict=True)
    ]


def decode(
    local: "LocalModel",
    shared: prefix.Plan,
    wave: dict[int, list[int]],
    asked: dict[int, int],
    store: packed.Store,
    eos: frozenset[int],
) -> None:
    """Append tokens to each row of `wave` until it ends or has as many as asked."""

    def going(segment: int) -> bool:
        return len(wave[segment]) < asked[segment] and wave[segment][-1] not in eos

    device = local.model.device
    behind: dict[tuple[int, ...], list[int]] = {}
    for segment in filter(going, wave):
        behind.setdefault(shared.segments[segment].path, []).append(segment)
    groups = []
    for path, segments in behind.items():
        lengths = [len(shared.segments[segment].tokens) + 1 for segment in segments]
        longest = max(n + asked[s] for n, s in zip(lengths, segments, strict=True))
        start = shared.segments[segments[0]].start
        groups.append(Group(path, segments, torch.tensor(lengths, device=device), start, longest))
    while groups:
        rows = [segment for group in groups for segment in group.segments]
        ids = torch.tensor([[wave[row][-1] for row in rows]], device=device)
        at = [_end(shared, row) + len(wave[row]) - 1 for row in rows]
        positions = torch.tensor([at], device=device)
        everything = torch.arange(len(rows), device=device)
        step = Step(groups, store)
        model = local.writer(len(wave[rows[0]]))  # all rows have written as much
        tokens = _greedy(packed.forward(model, ids, positions, everything, step))
        for row, token in zip(rows, tokens, strict=True):
            wave[row].append(token)
        for group in groups:
            left = [index for index, row in enumerate(group.segments) if going(row)]
            if len(left) < len(group.segments):
                group.select(torch.tensor(left, dtype=torch.long, device=device))
            group.length += 1
        groups = [group for group in groups if group.segments]


def _first(
    local: "LocalModel",
    shared: prefix.Plan,
    part: range,
    asked: dict[int, int],
    store: packed.Store,
) -> Iterator[tuple[int, int]]:
    """Run one pack: (segment, first new token) of the prompts that end in it."""
    keep = [n for n in part if shared.last[n] > n or asked.get(n, 0) > 1]
    pack = packed.Pack(shared, part, keep, store, local.model)
    ends = [n for n in part if n in asked]
    at = [pack.offsets[n] + len(shared.segments[n].tokens) - 1 for n in ends]
    where = torch.tensor(at, dtype=torch.long, device=local.model.device)
    logits = packed.forward(local.model, pack.ids, pack.positions, where, pack)
    return zip(ends, _greedy(logits), strict=True)


def _waves(shared: prefix.Plan, asked: dict[int, int], limits: Limits) -> Iterator[list[range]]:
    """Packs whose tokens, new ones included, are held together until all their rows have ended."""
    rows = [int(number in asked) for number in range(len(shared.segments))]
    wave: list[range] = []
    held = waiting = 0
    for part in prefix.packs(shared.segments, rows, limits.tokens, limits.rows):
        tokens = sum(len(shared.segments[n].tokens) + asked.get(n, 0) for n in part)
        ends = sum(rows[n] for n in part)
        if wave and (held + tokens > WAVE * limits.tokens or waiting + ends > limits.rows):
            yield wave
            wave, held, waiting = [], 0, 0
        wave.append(part)
        held, waiting = held + tokens, waiting + ends
    if wave:
        yield wave


def _bias(group: Group, window: Window, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """0 where a row's newest token sees a key, else -inf: (K x R, 1, width) and (.., past).

    like: (K, R, ...)
    """
    newest = group.start + group.length[:, None] - 1  # (R, 1)
    seen, past_seen = packed.sees(newest, group.start, group.width, window)
    past_bias = None if past_seen is None else _per_head(past_seen, like)
    return _per_head(seen, like), past_bias


def _per_head(seen: Tensor, like: Tensor) -> Tensor:
    """(R, keys) -> (K x R, 1, keys)."""
    return packed.as_bias(seen, like)[0].repeat(like.shape[0], 1)[:, None]


def _greedy(logits: Tensor) -> list[int]:
    """The most probable token of each row."""
    largest, best = logits.max(-1)
    check_finite(largest)
    tokens: list[int] = best.tolist()
    return tokens


def _end(shared: prefix.Plan, segment: int) -> int:
    """Position behind a segment's last token."""
    return shared.segments[segment].start + len(shared.segments[segment].tokens)
