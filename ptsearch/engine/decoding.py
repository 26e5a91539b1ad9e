"""Greedy replies over packed prompts, in waves that fit the token budget.

A wave's prompts are run as packs; then every step adds one token to each row. Rows behind the same
path of shared segments form a group: the path's keys and values are read once per group, those of
each row are in a buffer that grows to the right. A finished row is dropped from its group.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptsearch.engine import attention, packed, prefix
from ptsearch.engine.attention import Rows, Store, Window
from ptsearch.engine.logprobs import plan
from ptsearch.engine.memory import WAVE
from ptsearch.engine.requests import Progress, check_finite, longest, until_eos
from ptsearch.quantize.kv import KV

if TYPE_CHECKING:
    from ptsearch.engine.local import LocalModel


class Group:
    """Rows that decode together behind one path."""

    def __init__(
        self,
        shared: prefix.Plan,
        segments: list[int],
        most: Mapping[int, int],
        device: torch.device,
    ) -> None:
        """`segments`: the last one of each row's prompt; `most`: new tokens for each."""
        _, self.start, self.path = shared.segments[segments[0]]
        self.segments = segments
        lengths = [len(shared.segments[n].tokens) + 1 for n in segments]
        self.length = torch.tensor(lengths, device=device)  # (R,) behind the path, new ones counted
        self.width = max(length + most[n] for length, n in zip(lengths, segments, strict=True))
        self.path_kv: dict[int, KV | None] = {}  # by layer
        self.row_kv: dict[int, KV] = {}  # by layer; (K, R, width, D)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        if len(rows) < len(self.segments):
            self.segments = [self.segments[row] for row in rows]
            self.length = self.length[rows]
            for layer, kv in self.row_kv.items():
                self.row_kv[layer] = KV(kv.keys[:, rows], kv.values[:, rows])

    def append(self, layer: int, new: KV, store: Store, window: Window) -> KV:
        """The rows' keys and values with their newest token's, (K, R, D) each."""
        if layer not in self.row_kv:
            self.path_kv[layer] = attention.path_of(store, self.path, layer, window)
            buffers = KV(
                *(part.new_zeros(*part.shape[:2], self.width, part.shape[2]) for part in new)
            )
            for row, segment in enumerate(self.segments):
                for buffer, states in zip(buffers, store[segment][layer], strict=True):
                    buffer[:, row, : states.shape[1]] = states
            self.row_kv[layer] = buffers
        rows = torch.arange(len(self.segments), device=self.length.device)
        for buffer, states in zip(self.row_kv[layer], new, strict=True):
            buffer[:, rows, self.length - 1] = states
        return self.row_kv[layer]


class Step:
    """One decoding step: a token of each row of the groups, in order."""

    def __init__(self, groups: Sequence[Group], store: Store) -> None:
        self.store = store
        self.groups: list[tuple[Group, Rows]] = []
        self.tokens = 0
        for group in groups:
            tokens = torch.arange(self.tokens, self.tokens + len(group.segments))[:, None]
            tokens = tokens.to(group.length.device)
            newest = group.start + group.length[:, None] - 1
            self.groups.append((group, Rows(group.path, group.start, tokens, tokens, newest)))
            self.tokens += len(tokens)
        self.positions = torch.cat([rows.positions for _, rows in self.groups]).T  # (1, T)

    def attend(self, layer: int, query: Tensor, new: KV, window: Window) -> Tensor:
        """query: (T, H, D), new: (K, T, D) each -> (T, H, D)."""
        out = query.new_empty(len(query), query.shape[1] * new.values.shape[-1])
        for group, rows in self.groups:
            newest = KV(*(part[:, rows.tokens[:, 0]] for part in new))
            kv = group.append(layer, newest, self.store, window)
            rows.attend(query, kv, group.path_kv[layer], window, out)
        return out.view(len(query), query.shape[1], -1)


@torch.inference_mode()
def generate(
    local: "LocalModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    eos: frozenset[int],
    report: Progress,
) -> list[list[int]]:
    """Greedy replies without their end-of-sequence token."""
    counts = longest(prompts, max_new_tokens)
    shared = plan(list(counts), local.limits)
    ends = {prompt: chain[-1] for prompt, chain in zip(counts, shared.chains, strict=True)}
    most = {ends[prompt]: counts[prompt] for prompt in counts}
    replies: dict[int, list[int]] = {}
    store: Store = {}
    sizes = [len(segment.tokens) for segment in shared.segments]
    rows = [int(number in most) for number in range(len(sizes))]
    held = [size + most.get(number, 0) for number, size in enumerate(sizes)]
    tokens, most_rows, _ = local.limits
    for wave in prefix.packs(held, rows, WAVE * tokens, most_rows, range(len(sizes))):
        started: dict[int, list[int]] = {}
        for part in prefix.packs(sizes, rows, tokens, most_rows, wave):
            started |= _first(local, shared, part, most, store)
        decode(local, shared, started, most, store, eos)
        replies |= started
        packed.forget(store, shared, wave)
        report(len(replies) * len(prompts) // len(most), len(prompts))
    return [
        until_eos(replies[ends[tuple(prompt)]][:count], eos)
        for prompt, count in zip(prompts, max_new_tokens, strict=True)
    ]


def decode(
    local: "LocalModel",
    shared: prefix.Plan,
    replies: dict[int, list[int]],
    most: Mapping[int, int],
    store: Store,
    eos: frozenset[int],
) -> None:
    """Append tokens to each row of `replies` until it ends or has its most."""

    def continues(segment: int) -> bool:
        return len(replies[segment]) < most[segment] and replies[segment][-1] not in eos

    device = local.model.device
    behind: dict[tuple[int, ...], list[int]] = {}
    for segment in filter(continues, replies):
        behind.setdefault(shared.segments[segment].path, []).append(segment)
    groups = [Group(shared, segments, most, device) for segments in behind.values()]
    while groups:
        rows = [segment for group in groups for segment in group.segments]
        ids = torch.tensor([[replies[row][-1] for row in rows]], device=device)
        step = Step(groups, store)
        model = local.writer(len(replies[rows[0]]))  # all rows have written as much
        every = torch.arange(len(rows), device=device)
        tokens = _greedy(packed.forward(model, ids, step.positions, every, step))
        for row, token in zip(rows, tokens, strict=True):
            replies[row].append(token)
        for group in groups:
            group.keep([k for k, segment in enumerate(group.segments) if continues(segment)])
            group.length += 1
        groups = [group for group in groups if group.segments]


def _first(
    local: "LocalModel", shared: prefix.Plan, part: range, most: Mapping[int, int], store: Store
) -> dict[int, list[int]]:
    """Run one pack: segment -> first new token, of the prompts that end in it."""
    keep = [n for n in part if shared.last[n] > n or most.get(n, 0) > 1]
    ends = [(n, len(shared.segments[n].tokens) - 1) for n in part if n in most]
    tokens = _greedy(packed.logits_at(local.model, shared, part, keep, store, ends))
    return {segment: [token] for (segment, _), token in zip(ends, tokens, strict=True)}


def _greedy(logits: Tensor) -> list[int]:
    """The most probable token of each row."""
    largest, best = logits.max(-1)
    check_finite(largest)
    tokens: list[int] = best.tolist()
    return tokens
