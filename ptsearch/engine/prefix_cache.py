"""Prefixes that call after call begins with: their keys and values stay between calls.

A server's prompts share instructions and demonstrations, and arrive a few at a time: within one
call there is little to share. A prefix that several different sequences had becomes a segment of
its own and its keys and values are kept, on top of a shorter one that is kept already; the least
recently used is dropped when there are too many.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import NamedTuple

from ptsearch.engine import prefix
from ptsearch.engine.attention import Layers, Store, join
from ptsearch.engine.prefix import Path, Plan, Segment, Tokens

OFTEN = 3  # times that another sequence must have begun with a prefix before it is kept
GAIN = 4  # tokens that it must be longer than the kept one it begins with
COUNTED = 2**17  # prefixes that are counted


class Piece(NamedTuple):
    """The end of a kept prefix."""

    before: Tokens  # the kept prefix that it continues; () = none
    layers: Layers  # of its own tokens


class Beginning(NamedTuple):
    """How a sequence begins."""

    tokens: Tokens = ()  # a prefix that is kept, or will be once it is computed
    kept: Tokens = ()  # the part of it that is kept


class CachedPlan(NamedTuple):
    """A plan whose first segments are computed already."""

    plan: Plan
    stored: list[Piece]  # of the first segments
    new: dict[Beginning, Path]  # prefixes to keep -> the segments behind their kept part


class Kept:
    """Keys and values of at most `most` tokens, of one model; for several threads at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.pieces: OrderedDict[Tokens, Piece] = OrderedDict()  # least recently used first
        self.tokens = 0  # of all pieces
        # hash of a prefix -> how often another sequence had it, and the last one's hash
        self._counts: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._prefixes: dict[int, Tokens] = {}  # hash -> kept prefix
        self._lock = Lock()

    def beginnings(self, heads: Sequence[Tokens]) -> tuple[list[Beginning], dict[Tokens, Piece]]:
        """How each sequence, given without what is asked of it, begins; and what is kept of them,
        which stays theirs when it is dropped here. Their prefixes are counted.
        """
        hashes = {head: _hashes(head) for head in heads}
        with self._lock:
            beginnings = {head: self._beginning(head, hashes[head]) for head in hashes}
            held = {}
            for beginning in set(beginnings.values()):
                for tokens in self.lineage(beginning.kept):
                    self.pieces.move_to_end(tokens)
                    held[tokens] = self.pieces[tokens]
        return [beginnings[head] for head in heads], held

    def lineage(self, tokens: Tokens) -> Iterator[Tokens]:
        """A kept prefix and those that it continues, the longest first."""
        while tokens:
            yield tokens
            tokens = self.pieces[tokens].before

    def add(self, pieces: Mapping[Tokens, Piece]) -> None:
        """Keep the ends of prefixes, as long as there is room."""
        with self._lock:
            for tokens, piece in pieces.items():
                if tokens not in self.pieces and (not piece.before or piece.before in self.pieces):
                    self.pieces[tokens] = piece
                    self.tokens += len(tokens) - len(piece.before)
                    self._prefixes[_hashes(tokens)[-1]] = tokens
                    for each in self.lineage(piece.before):  # none is dropped before what needs it
                        self.pieces.move_to_end(each)
            while self.tokens > self.most:
                tokens, piece = self.pieces.popitem(last=False)
                self.tokens -= len(tokens) - len(piece.before)
                del self._prefixes[_hashes(tokens)[-1]]

    def _beginning(self, head: Tokens, hashes: Sequence[int]) -> Beginning:
        """The longest prefix that is kept, or a longer one that many began with."""
        candidates = (self._prefixes.get(key, ()) for key in reversed(hashes))
        kept = next(
            (tokens for tokens in candidates if tokens and head[: len(tokens)] == tokens), ()
        )
        often = 0
        for length in range(len(kept) + GAIN, len(head) + 1):
            count, last = self._counts.pop(hashes[length - 1], (0, 0))
            count += last != hashes[-1]
            self._counts[hashes[length - 1]] = count, hashes[-1]
            often = length if count >= OFTEN else often
        while len(self._counts) > COUNTED:
            self._counts.popitem(last=False)
        more = often and often - len(kept) <= self.most
        return Beginning(head[:often] if more else kept, kept)


def piece(beginning: Beginning, store: Store, path: Path) -> Piece:
    """The end of a prefix to keep, from the segments that it was computed in."""
    return Piece(beginning.kept, {layer: join(store, path, layer) for layer in store[path[0]]})


@lru_cache(maxsize=256)  # all members of an ensemble are asked the same
def _hashes(tokens: Tokens) -> list[int]:
    """Of each prefix, beginning with one token."""
    key, hashes = 0, []
    for token in tokens:
        key = hash((key, token))
        hashes.append(key)
    return hashes


def plan(
    beginnings: Mapping[Tokens, Beginning],
    held: Mapping[Tokens, Piece],
    max_run: int,
    min_saving: int,
    align: int = 1,
) -> CachedPlan:
    """The plan of distinct sequences, each longer than its beginning, behind what is held of them.

    What follows each beginning is shared as usual.
    """
    stored = sorted(held, key=len)  # each behind the one that it continues
    runs = [(tokens, held[tokens].before, len(tokens)) for tokens in stored]
    to_keep = [each for each in dict.fromkeys(beginnings.values()) if each.tokens != each.kept]
    segments: list[Segment] = []
    paths: dict[Tokens, Path] = {(): ()}
    for tokens, before, run in [*runs, *((*each, max_run) for each in to_keep)]:
        start = len(before)
        paths[tokens] = prefix.append(segments, tokens[start:], start, paths[before], run)
    new = {each: paths[each.tokens][len(paths[each.kept]) :] for each in to_keep}
    chains: dict[Tokens, Path] = {}
    for tokens in dict.fromkeys(each.tokens for each in beginnings.values()):
        members = [key for key, beginning in beginnings.items() if beginning.tokens == tokens]
        rest = prefix.share([key[len(tokens) :] for key in members], max_run, min_saving, align)
        root, shift = paths[tokens], len(segments)
        for each in rest.segments:
            path = (*root, *(n + shift for n in each.path))
            segments.append(Segment(each.tokens, each.start + len(tokens), path))
        for key, chain in zip(members, rest.chains, strict=True):
            chains[key] = (*root, *(n + shift for n in chain))
    in_order = [chains[key] for key in beginnings]
    return CachedPlan(prefix.plan_of(segments, in_order), [held[t] for t in stored], new)
