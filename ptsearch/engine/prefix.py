"""Which tokens many sequences share: a radix tree over token ids, cut into segments.

Pure Python over tuples of ids. A segment is a run of tokens that is run through the model once;
it attends to the segments of its `path` and causally to itself. Segments are listed in preorder,
so whatever a segment attends to comes before it.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """One run of tokens and what comes before it."""

    tokens: tuple[int, ...]
    start: int  # position of the first token in its sequences
    path: tuple[int, ...]  # earlier segments, outermost first; they hold positions 0 to start - 1


class Plan(NamedTuple):
    """Segments in preorder, and for each sequence those that spell it."""

    segments: list[Segment]
    chains: list[tuple[int, ...]]
    last: list[int]  # per segment: the last one that has it in its path, else itself


class _Branch(NamedTuple):
    """Sorted sequences low to high - 1, equal up to `level`; `path` holds `start` tokens of it."""

    low: int
    high: int
    level: int
    start: int
    path: tuple[int, ...]


def share(
    sequences: Sequence[tuple[int, ...]], max_run: int, min_saving: int, align: int = 1
) -> Plan:
    """The plan for distinct sequences.

    A common prefix becomes segments of its own where that saves `min_saving` tokens or more;
    shorter ones are repeated, as each further segment costs the attention a product of its own.
    No segment is longer than `max_run`; all start at multiples of `align`, which divides it.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    common = [alike(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
    common = [0, *(count // align * align for count in common)]
    segments: list[Segment] = []
    chains: list[tuple[int, ...]] = [()] * len(sequences)

    stack = [_Branch(0, len(order), 0, 0, ())] if order else []
    while stack:
        branch = stack.pop()
        if branch.level > branch.start:
            run = sequences[order[branch.low]][branch.start : branch.level]
            path = append(segments, run, branch.start, branch.path, max_run)
            branch = branch._replace(start=branch.level, path=path)
        leaves, branches = _split(branch, common, min_saving)
        for leaf in sorted(leaves, key=lambda leaf: len(sequences[order[leaf]])):
            sequence = sequences[order[leaf]]
            rest, start = sequence[branch.start :], branch.start
            chains[order[leaf]] = append(segments, rest, start, branch.path, max_run)
        stack.extend(reversed(branches))

    return plan_of(segments, chains)


def append(
    segments: list[Segment],
    tokens: tuple[int, ...],
    start: int,
    path: tuple[int, ...],
    max_run: int,
) -> tuple[int, ...]:
    """Add the tokens behind `path`, in segments of at most `max_run`; the path through them."""
    for offset in range(0, len(tokens), max_run):
        segments.append(Segment(tokens[offset : offset + max_run], start + offset, path))
        path = (*path, len(segments) - 1)
    return path


def plan_of(segments: list[Segment], chains: list[tuple[int, ...]]) -> Plan:
    last = list(range(len(segments)))
    for index, segment in enumerate(segments):
        for ancestor in segment.path:
            last[ancestor] = index
    return Plan(segments, chains, last)


def alike(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many leading tokens are equal."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def packs(
    segments: Sequence[Segment], rows: Sequence[int], max_tokens: int, max_rows: int
) -> Iterator[range]:
    """Consecutive segments of at most `max_tokens` tokens and `max_rows` rows of logits together.

    `rows`: per segment. A segment that is over either limit stands alone.
    """
    low = tokens = logits = 0
    for index, segment in enumerate(segments):
        full = (
            tokens + len(segment.tokens) > max_tokens or logits + rows[index] > max_rows
        ) and index > low
        if full:
            yield range(low, index)
            low, tokens, logits = index, 0, 0
        tokens += len(segment.tokens)
        logits += rows[index]
    if low < len(segments):
        yield range(low, len(segments))


def _split(
    branch: _Branch, common: Sequence[int], min_saving: int
) -> tuple[list[int], list[_Branch]]:
    """Sequences that stand alone below `branch`, and the prefixes worth a segment.

    common[k]: tokens that sorted sequences k - 1 and k share.
    """
    leaves: list[int] = []
    branches: list[_Branch] = []
    todo = [(branch.low, branch.high, branch.level)]
    while todo:
        low, high, level = todo.pop()
        for first, end in _runs(low, high, level, common):
            if end - first == 1:
                leaves.append(first)
                continue
            shared = min(common[first + 1 : end])
            if (end - first - 1) * (shared - branch.start) >= min_saving:
                branches.append(branch._replace(low=first, high=end, level=shared))
            else:
                todo.append((first, end, shared))
    return leaves, sorted(branches)


def _runs(low: int, high: int, level: int, common: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Maximal runs of neighbours that share more than `level` tokens."""
    first = low
    for index in range(low + 1, high):
        if common[index] <= level:
            yield first, index
            first = index
    yield first, high
