"""Which tokens many sequences share: a radix tree over token ids, cut into segments.

Pure Python over tuples of ids. A segment is a run of tokens that is run through the model once;
it attends to the segments of its `path` and causally to itself. Segments are listed in preorder,
so whatever a segment attends to comes before it.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Tokens = tuple[int, ...]
Path = tuple[int, ...]


class Segment(NamedTuple):
    """One run of tokens and what comes before it."""

    tokens: Tokens
    start: int  # position of the first token in its sequences
    path: Path  # earlier segments, outermost first; they hold positions 0 to start - 1


class Plan(NamedTuple):
    """Segments in preorder, and for each sequence those that spell it."""

    segments: list[Segment]
    chains: list[Path]
    last: list[int]  # per segment: the last one that has it in its path, else itself


def share(sequences: Sequence[Tokens], max_run: int, min_saving: int, align: int = 1) -> Plan:
    """The plan for distinct sequences.

    A common prefix becomes segments of its own where that saves `min_saving` tokens or more;
    shorter ones are repeated, as each further segment costs the attention a product of its own.
    No segment is longer than `max_run`; all start at multiples of `align`, which divides it.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    common = [alike(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
    common = [0, *(count // align * align for count in common)]
    segments: list[Segment] = []
    chains: list[Path] = [()] * len(sequences)

    # Sorted sequences low to high - 1, equal up to `level`; `path` holds `start` tokens of it.
    pending: list[tuple[int, int, int, int, Path]] = [(0, len(order), 0, 0, ())]
    while pending:
        low, high, level, start, path = pending.pop()
        if level > start:
            run = sequences[order[low]][start:level]
            path = append(segments, run, start, path, max_run)
        leaves, branches = _split(common[low:high], level, min_saving)
        for leaf in sorted((order[low + n] for n in leaves), key=lambda n: len(sequences[n])):
            chains[leaf] = append(segments, sequences[leaf][level:], level, path, max_run)
        for first, end, shared in reversed(branches):
            pending.append((low + first, low + end, shared, level, path))
    return plan_of(segments, chains)


def append(segments: list[Segment], tokens: Tokens, start: int, path: Path, max_run: int) -> Path:
    """Add the tokens behind `path`, in segments of at most `max_run`; the path through them."""
    for offset in range(0, len(tokens), max_run):
        segments.append(Segment(tokens[offset : offset + max_run], start + offset, path))
        path = (*path, len(segments) - 1)
    return path


def plan_of(segments: list[Segment], chains: list[Path]) -> Plan:
    last = list(range(len(segments)))
    for index, segment in enumerate(segments):
        for ancestor in segment.path:
            last[ancestor] = index
    return Plan(segments, chains, last)


def alike(a: Tokens, b: Tokens) -> int:
    """How many leading tokens are equal."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def packs(
    sizes: Sequence[int], rows: Sequence[int], max_tokens: int, max_rows: int, within: range
) -> Iterator[range]:
    """Consecutive segments `within` a range, of at most `max_tokens` tokens and `max_rows` rows of
    logits together.

    sizes, rows: per segment of the plan. A segment that is over either limit is alone.
    """
    low, tokens, logits = within.start, 0, 0
    for index in within:
        full = tokens + sizes[index] > max_tokens or logits + rows[index] > max_rows
        if full and index > low:
            yield range(low, index)
            low, tokens, logits = index, 0, 0
        tokens += sizes[index]
        logits += rows[index]
    if low < within.stop:
        yield range(low, within.stop)


def _split(
    common: Sequence[int], level: int, min_saving: int
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Of sorted sequences that are equal up to `level`: those that share nothing worth a segment,
    and runs (first, end, tokens shared) that do. common[k]: tokens that k - 1 and k share.
    """
    leaves: list[int] = []
    branches: list[tuple[int, int, int]] = []
    pending = [(0, len(common), level)]
    while pending:
        low, high, shared = pending.pop()
        starts = [n for n in range(low + 1, high) if common[n] <= shared]
        for first, end in itertools.pairwise([low, *starts, high]):
            if end - first <= 1:
                leaves.extend(range(first, end))
                continue
            least = min(common[first + 1 : end])
            worth = (end - first - 1) * (least - level) >= min_saving
            (branches if worth else pending).append((first, end, least))
    return leaves, sorted(branches)
