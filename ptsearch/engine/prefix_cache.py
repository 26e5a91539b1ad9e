"""Keys and values of common prefixes, kept between calls.

A server's prompts share instructions and demonstrations, and arrive a few at a time: within one
call there is little to share. A prefix that several different sequences had becomes a segment of
its own and its keys and values are kept, on top of a shorter one that is kept already; the least
recently used is dropped when there are too many.
"""

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import NamedTuple

from ptsearch.engine import prefix
from ptsearch.engine.attention import Layers, Store, join
from ptsearch.engine.prefix import Path, Plan, Segment, Tokens

OFTEN = 3  # recent sequences must begin with a prefix for it to be kept
GAIN = 4  # tokens that it must be longer than the kept one it begins with
RECENT = 256  # sequences


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
        self._recent: deque[Tokens] = deque()  # different ones, the oldest first
        self._sorted: list[Tokens] = []  # the same
        self._lock = Lock()

    def beginnings(self, heads: Sequence[Tokens]) -> tuple[list[Beginning], dict[Tokens, Piece]]:
        """How each sequence begins, given up to its first position that is read off; and the kept
        pieces of these beginnings, which may be dropped here before they are used.
        """
        with self._lock:
            beginnings = {head: self._beginning(head) for head in dict.fromkeys(heads)}
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
                    for each in self.lineage(piece.before):  # none is dropped before what needs it
                        self.pieces.move_to_end(each)
            while self.tokens > self.most:
                tokens, piece = self.pieces.popitem(last=False)
                self.tokens -= len(tokens) - len(piece.before)

    def _beginning(self, head: Tokens) -> Beginning:
        """The longest prefix that is kept, or a longer one that OFTEN sequences began with."""
        begun = [tokens for tokens in self.pieces if head[: len(tokens)] == tokens]
        kept = max(begun, key=len, default=())
        at = bisect_left(self._sorted, head)
        if self._sorted[at : at + 1] != [head]:
            self._sorted.insert(at, head)
            self._recent.append(head)
        near = self._sorted[max(0, at - OFTEN + 1) : at + OFTEN]  # no others are more alike
        shared = sorted((prefix.alike(head, other) for other in near), reverse=True)
        often = shared[OFTEN - 1] if len(shared) >= OFTEN else 0
        if len(self._recent) > RECENT:
            self._sorted.remove(self._recent.popleft())
        more = GAIN <= often - len(kept) <= self.most
        return Beginning(head[:often] if more else kept, kept)


def piece(beginning: Beginning, store: Store, path: Path) -> Piece:
    """The end of a prefix to keep, from the segments that it was computed in."""
    return Piece(beginning.kept, {layer: join(store, path, layer) for layer in store[path[0]]})


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
