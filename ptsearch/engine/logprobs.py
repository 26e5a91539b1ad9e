"""Label log-probabilities over packed sequences, on a CPU in several lanes."""

import itertools
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from ptsearch.engine import lanes, packed, prefix, prefix_cache
from ptsearch.engine.attention import Store
from ptsearch.engine.memory import Limits
from ptsearch.engine.prefix_cache import Beginning, Kept, Piece
from ptsearch.engine.requests import Logprobs, Progress, Requests, Tokens, logprobs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_SAVING = 64  # tokens that a shared prefix must save to become a segment of its own
MAX_RUN = 512  # longer runs are cut, so that half-empty causal squares stay small
LANE_TOKENS = 64  # with fewer tokens per lane, one lane on all cores is as fast
ROW = 3  # extra work per sequence, in tokens
REPEATED = 0.1  # of all tokens may be computed in more than one lane


def plan(sequences: list[Tokens], limits: Limits) -> prefix.Plan:
    """Shared prefixes of distinct sequences, as the packed path computes them."""
    return prefix.share(sequences, _max_run(limits), MIN_SAVING, limits.align)


def logprobs(
    model: "PreTrainedModel",
    requests: Requests,
    limits: Limits,
    report: Progress,
    kept: Kept | None = None,
) -> Logprobs:
    """log p(token | tokens before it) in nats, for every request.

    What `kept` has of the sequences' prefixes is not computed again, and it keeps more.
    """
    wholes = _wholes(requests)
    beginnings, held = dict.fromkeys(wholes, Beginning()), dict[Tokens, Piece]()
    if kept:
        heads = [_head(whole, prefixes, requests) for whole, prefixes in wholes.items()]
        kept_beginnings, held = kept.beginnings(heads)
        beginnings = dict(zip(wholes, kept_beginnings, strict=True))
    parts = list(_split(beginnings, lanes.count(model, limits)))
    limits = lanes.share(limits, max(1, len(parts)))
    done, lock = [0] * len(parts), threading.Lock()

    def run(number: int) -> Lane:
        def report_lane(items: int, _total: int) -> None:
            with lock:
                done[number] = items
                report(sum(done), len(requests))

        part = {whole: wholes[whole] for whole in parts[number]}
        return _lane(model, part, beginnings, held, limits, report_lane)

    results = lanes.run([partial(run, number) for number in range(len(parts))], len(parts))
    if kept:
        for lane in results:
            kept.add(lane.pieces)
    return dict(itertools.chain.from_iterable(lane.logprobs.items() for lane in results))


def _max_run(limits: Limits) -> int:
    return max(1, min(MAX_RUN, limits.tokens) // limits.align) * limits.align


def _wholes(requests: Requests) -> dict[Tokens, Requests]:
    """Sequences to run, and the requests that are read off in each: one that begins another one is
    read off in that.
    """
    wholes: dict[Tokens, dict[Tokens, Sequence[int]]] = {}
    whole: Tokens = ()
    for tokens in sorted(requests, reverse=True):
        if whole[: len(tokens)] != tokens:
            whole = tokens
        wholes.setdefault(whole, {})[tokens] = requests[tokens]
    return dict(wholes)


def _head(whole: Tokens, read: Requests, requests: Requests) -> Tokens:
    """A sequence up to the first position that is read off: its prompt without the last token."""
    end = min(map(len, read))
    while whole[: end - 1] in requests:  # the prompt with fewer tokens of a label
        end -= 1
    return whole[: end - 1]


def _split(beginnings: Mapping[Tokens, Beginning], parts: int) -> Iterator[list[Tokens]]:
    """The sequences in `parts` parts of about equally many computed tokens; in one part if these
    are few, or if many of them would be computed in several parts.
    """
    order = sorted(beginnings)
    pairs = zip([(), *order], order, strict=False)
    shared = [max(prefix.alike(a, b), len(beginnings[b].kept)) for a, b in pairs]
    costs = (ROW + len(tokens) - n for tokens, n in zip(order, shared, strict=True))
    ends = [0, *itertools.accumulate(costs)]  # the cost of all sequences before each
    shares = [ends[-1] * n / parts for n in range(1, parts)]
    cuts = [min(range(len(ends)), key=lambda k: abs(ends[k] - share)) for share in shares]
    cuts = [cut for cut in cuts if cut < len(order)]
    repeated = sum(shared[cut] - len(beginnings[order[cut]].kept) for cut in cuts)
    if ends[-1] < LANE_TOKENS * parts or repeated > REPEATED * ends[-1]:
        cuts = []
    for low, high in itertools.pairwise([0, *cuts, len(order)]):
        if low < high:
            yield order[low:high]


class Lane(NamedTuple):
    """What a lane returns."""

    logprobs: Logprobs
    pieces: dict[Tokens, Piece]  # of prefixes to keep


@torch.inference_mode()
def _lane(
    model: "PreTrainedModel",
    wholes: Mapping[Tokens, Requests],
    beginnings: Mapping[Tokens, Beginning],
    held: Mapping[Tokens, Piece],
    limits: Limits,
    report: Progress,
) -> Lane:
    begun = {whole: beginnings[whole] for whole in wholes}
    shared, stored, new = prefix_cache.plan(begun, held, _max_run(limits), MIN_SAVING, limits.align)
    store: Store = {n: piece.layers for n, piece in enumerate(stored)}
    reads = _reads(shared, wholes.values())
    sizes = [len(segment.tokens) for segment in shared.segments]
    rows = [len(reads.get(number, ())) for number in range(len(sizes))]
    computed = range(len(stored), len(sizes))
    result = Lane({}, {})
    for part in prefix.packs(sizes, rows, limits.tokens, limits.rows, computed):
        keep = [number for number in part if shared.last[number] > number]
        read = [(n, *each) for n in part for each in reads.get(n, ())]
        places = [(segment, offset) for segment, offset, _, _ in read]
        logits = packed.logits_at(model, shared, part, keep, store, places)
        values = logprobs_of(logits, {tokens: following for _, _, tokens, following in read})
        result.logprobs.update(values)
        for beginning, path in new.items():
            if path[-1] in part:
                result.pieces[beginning.tokens] = prefix_cache.piece(beginning, store, path)
        packed.forget(store, shared, part)
        report(len(result.logprobs), sum(map(len, wholes.values())))
    return result


def _reads(
    shared: prefix.Plan, wholes: Iterable[Requests]
) -> dict[int, list[tuple[int, Tokens, Sequence[int]]]]:
    """segment -> the requests that are read off in it, each behind its offset."""
    reads: dict[int, list[tuple[int, Tokens, Sequence[int]]]] = {}
    for chain, requests in zip(shared.chains, wholes, strict=True):
        starts = [shared.segments[number].start for number in chain]
        for tokens, following in requests.items():
            at = bisect_right(starts, len(tokens) - 1) - 1
            offset = len(tokens) - 1 - starts[at]
            reads.setdefault(chain[at], []).append((offset, tokens, following))
    return reads
