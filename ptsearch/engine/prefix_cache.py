"""Prefixes that call after call begins with: their keys and values stay between calls.

A server's prompts share instructions and demonstrations, and arrive a few at a time: within one
call there is little to share. A prefix that several different sequences had becomes a segment of
its own and what it leaves is kept, on top of a shorter one that is kept already; the least recently
used goes when there are too many.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from ptsearch.engine import prefix
from ptsearch.engine.packed import Layers, Store, join
from ptsearch.engine.prefix import Plan, Segment

OFTEN = 3  # times that another sequence must have begun with a prefix before it is kept
GAIN = 4  # tokens that it must be longer than the kept one it begins with
COUNTED = 2**17  # prefixes that are counted

Tokens = tuple[int, ...]
Held = Mapping[Tokens, "Piece"]  # what is kept of some sequences; it stays theirs when it goes


class Piece(NamedTuple):
    """The end of a kept prefix."""

    before: Tokens  # the kept prefix that it goes on from; () = none
    layers: Layers  # of its own tokens


class Begun(NamedTuple):
    """How a sequence begins."""

    tokens: Tokens = ()  # a prefix that is kept, or will be once it is computed
    kept: Tokens = ()  # the part of it that is kept


class Laid(NamedTuple):
    """A plan whose first segments are there already."""

    plan: Plan
    stored: list[Piece]  # of the first segments
    new: dict[Begun, tuple[int, ...]]  # prefixes to keep -> the segments behind their kept part


class Kept:
    """Keys and values of at most `most` tokens, of one model; for several threads at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: OrderedDict[Tokens, Piece] = OrderedDict()  # least recently used first
        self.tokens = 0  # of all pieces
        # hash of a prefix -> how often another sequence had it, and the last one's hash
        self._counts: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._hashes: dict[int, Tokens] = {}
        self._lock = Lock()

    def begun(self, heads: Sequence[Tokens]) -> tuple[list[Begun], Held]:
        """How each sequence, given without what is asked of it, begins; it is counted."""
        keys = {head: _hashes(head) for head in dict.fromkeys(heads)}
        with self._lock:
            found = {head: self._begun(head, keys[head]) for head in keys}
            held = {}
            for begin in set(found.values()):
                for tokens in self.lineage(begin.kept):
                    self.known.move_to_end(tokens)
                    held[tokens] = self.known[tokens]
        return [found[head] for head in heads], held

    def lineage(self, tokens: Tokens) -> Iterator[Tokens]:
        """A kept prefix and those that it goes on from, the longest first."""
        while tokens:
            yield tokens
            tokens = self.known[tokens].before

    def add(self, pieces: Mapping[Tokens, Piece]) -> None:
        """Keep the ends of prefixes, as long as there is room."""
        with self._lock:
            for tokens, piece in pieces.items():
                if tokens not in self.known and (not piece.before or piece.before in self.known):
                    self.known[tokens] = piece
                    self.tokens += len(tokens) - len(piece.before)
                    self._hashes[_hashes(tokens)[-1]] = tokens
                    for each in self.lineage(piece.before):  # none goes before what needs it
                        self.known.move_to_end(each)
            while self.tokens > self.most:
                tokens, piece = self.known.popitem(last=False)
                self.tokens -= len(tokens) - len(piece.before)
                del self._hashes[_hashes(tokens)[-1]]

    def _begun(self, head: Tokens, keys: Sequence[int]) -> Begun:
        """The longest prefix that is kept, or a longer one that many began with."""
        known = (self._hashes.get(key, ()) for key in reversed(keys))
        best = next((tokens for tokens in known if tokens and head[: len(tokens)] == tokens), ())
        often = 0
        for length in range(len(best) + GAIN, len(head) + 1):
            count, last = self._counts.pop(keys[length - 1], (0, 0))
            count += last != keys[-1]
            self._counts[keys[length - 1]] = count, keys[-1]
            often = length if count >= OFTEN else often
        while len(self._counts) > COUNTED:
            self._counts.popitem(last=False)
        more = often and often - len(best) <= self.most
        return Begun(head[:often] if more else best, best)


def piece(begun: Begun, store: Store, path: Sequence[int]) -> Piece:
    """The end of a prefix to keep, from the segments that it was computed in."""
    joined = {layer: join(store, path, layer) for layer in store[path[0]]}
    return Piece(begun.kept, {layer: kv for layer, kv in joined.items() if kv is not None})


@lru_cache(maxsize=256)  # all members of an ensemble are asked the same
def _hashes(tokens: Tokens) -> list[int]:
    """Of each prefix, beginning with one token."""
    key, found = 0, []
    for token in tokens:
        key = hash((key, token))
        found.append(key)
    return found


def plan(
    sequences: Sequence[Tokens],
    begun: Sequence[Begun],
    held: Held,
    max_run: int,
    min_saving: int,
    align: int = 1,
) -> Laid:
    """The plan of distinct sequences, behind what is held of them.

    What lies behind each prefix is shared as usual. Sequence i begins with begun[i], and is longer.
    """
    stored = {tokens: held[tokens].before for tokens in _needed(begun, held)}
    segments: list[Segment] = []
    paths: dict[Tokens, tuple[int, ...]] = {(): ()}
    runs = [(tokens, before, len(tokens)) for tokens, before in stored.items()]
    runs += [(*begin, max_run) for begin in dict.fromkeys(begun) if begin.tokens != begin.kept]
    for tokens, before, run in runs:
        start = len(before)
        paths[tokens] = prefix.append(segments, tokens[start:], start, paths[before], run)
    new = {b: paths[b.tokens][len(paths[b.kept]) :] for b in begun if b.tokens != b.kept}
    chains: list[tuple[int, ...]] = [()] * len(sequences)
    for tokens in dict.fromkeys(begin.tokens for begin in begun):
        members = [i for i, begin in enumerate(begun) if begin.tokens == tokens]
        rest = prefix.share(
            [sequences[i][len(tokens) :] for i in members], max_run, min_saving, align
        )
        root, shift = paths[tokens], len(segments)
        for segment in rest.segments:
            path = root + tuple(number + shift for number in segment.path)
            segments.append(Segment(segment.tokens, segment.start + len(tokens), path))
        for i, chain in zip(members, rest.chains, strict=True):
            chains[i] = root + tuple(number + shift for number in chain)
    return Laid(prefix.plan_of(segments, chains), [held[tokens] for tokens in stored], new)


def _needed(begun: Sequence[Begun], held: Held) -> list[Tokens]:
    """Of all that is held what these begin with; each behind the one that it goes on from."""
    needed = set[Tokens]()
    for tokens in {begin.kept for begin in begun}:
        while tokens and tokens not in needed:
            needed.add(tokens)
            tokens = held[tokens].before
    return sorted(needed, key=len)
