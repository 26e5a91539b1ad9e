"""Prefixes that call after call begins with: their keys and values stay between calls.

A server's prompts share instructions and demonstrations, and arrive a few at a time: within one
call there is little to share. A prefix that several sequences had is computed once more and kept;
the least recently used goes when there are too many.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from ptsearch.engine import packed, prefix
from ptsearch.engine.prefix import Plan, Segment
from ptsearch.quantize.cache import KV

OFTEN = 3  # sequences that must have begun with a prefix before it is kept
GAIN = 32  # tokens that it must be longer than the kept one it begins with
COUNTED = 2**16  # prefixes that are counted

Tokens = tuple[int, ...]


class Kept:
    """At most `most` tokens' keys and values of one model."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: OrderedDict[int, int] = OrderedDict()  # hash of a prefix -> sequences
        self.known: OrderedDict[Tokens, dict[int, KV]] = OrderedDict()  # layer -> (K, tokens, D)

    def prefixes(self, model: Any, heads: Sequence[Tokens], max_run: int) -> list[Tokens]:
        """For each sequence without what is asked of it: its longest kept prefix, or ()."""
        for head in dict.fromkeys(heads):  # labels of several tokens repeat a prompt
            best, often = self._longest(head), self._count(head)
            if len(often) - len(best) >= GAIN and len(often) <= self.most:
                self.known[often] = _computed(model, often, max_run)
        while sum(map(len, self.known)) > self.most:
            self.known.popitem(last=False)
        found = [self._longest(head) for head in heads]
        for tokens in set(found) - {()}:
            self.known.move_to_end(tokens)
        return found

    def _longest(self, head: Tokens) -> Tokens:
        fitting = (tokens for tokens in self.known if head[: len(tokens)] == tokens)
        return max(fitting, key=len, default=())

    def _count(self, head: Tokens) -> Tokens:
        """Count the prefixes of a sequence; the longest that many began with."""
        often = key = 0
        for length, token in enumerate(head, start=1):
            key = hash((key, token))
            if length >= GAIN:
                self.counts[key] = count = self.counts.pop(key, 0) + 1
                often = length if count >= OFTEN else often
        while len(self.counts) > COUNTED:
            self.counts.popitem(last=False)
        return head[:often]


def plan(
    sequences: Sequence[Tokens],
    prefixes: Sequence[Tokens],
    max_run: int,
    min_saving: int,
    align: int = 1,
) -> tuple[Plan, list[Tokens]]:
    """The plan of distinct sequences, and the prefixes that are its first segments.

    Those are in the store already; what lies behind each is shared as usual. Sequence i begins
    with prefixes[i], is longer than that, and () is none.
    """
    known = [tokens for tokens in dict.fromkeys(prefixes) if tokens]
    segments = [Segment(tokens, 0, ()) for tokens in known]
    chains: list[tuple[int, ...]] = [()] * len(sequences)
    for tokens in dict.fromkeys(prefixes):
        members = [i for i, mine in enumerate(prefixes) if mine == tokens]
        rest = prefix.share(
            [sequences[i][len(tokens) :] for i in members], max_run, min_saving, align
        )
        root, shift = ((known.index(tokens),) if tokens else ()), len(segments)
        for segment in rest.segments:
            path = root + tuple(number + shift for number in segment.path)
            segments.append(Segment(segment.tokens, segment.start + len(tokens), path))
        for i, chain in zip(members, rest.chains, strict=True):
            chains[i] = root + tuple(number + shift for number in chain)
    last = list(range(len(segments)))
    for index, segment in enumerate(segments):
        for ancestor in segment.path:
            last[ancestor] = index
    return Plan(segments, chains, last), known


@torch.inference_mode()
def _computed(model: Any, tokens: Tokens, max_run: int) -> dict[int, KV]:
    """Keys and values of a prefix in every layer, each in one piece."""
    shared = prefix.share([tokens], max_run, 1)
    store: packed.Store = {}
    for number in range(len(shared.segments)):
        part = packed.arrange(shared, range(number, number + 1), [number], store, model)
        none = torch.zeros(0, dtype=torch.long, device=model.device)
        packed.forward(model, part.ids, part.positions, none, part)
    path = range(len(shared.segments))
    joined = {layer: packed.join(store, path, layer) for layer in store[0]}
    return {layer: kv for layer, kv in joined.items() if kv is not None}
