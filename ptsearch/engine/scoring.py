"""Label log-probabilities over packed sequences.

On a CPU the sequences are shared out to lanes: each thread runs packs of its own on its share of
the cores, so that what is not a product, Python included, runs on all cores as well.
"""

import itertools
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from ptsearch.engine import kept as keeping
from ptsearch.engine import packed, plain, prefix
from ptsearch.engine.kept import Kept
from ptsearch.engine.memory import LANE, Limits
from ptsearch.engine.plain import Found, Report, Sequences, Target

MIN_SAVING = 64  # tokens that a shared prefix must save to become a segment of its own
MAX_RUN = 512  # longer runs are cut, so that half-empty causal squares stay small
LANES = 4  # at most: Python runs one at a time


def plan(sequences: list[tuple[int, ...]], limits: Limits) -> prefix.Plan:
    """Shared prefixes of distinct sequences, as the packed path computes them."""
    longest = max(1, min(MAX_RUN, limits.tokens) // limits.align) * limits.align
    return prefix.share(sequences, longest, MIN_SAVING, limits.align)


def logprobs(
    model: Any, sequences: Sequences, limits: Limits, report: Report, kept: Kept | None = None
) -> Found:
    """log p(target token | sequence up to its position) in nats, for every target.

    What `kept` has of the sequences' prefixes is not computed again.
    """
    cores = torch.get_num_threads()
    count = min(cores, LANES, limits.tokens // LANE) if model.device.type == "cpu" else 1
    lanes = [] if kept else list(_split(sequences, count, limits.tokens))
    if len(lanes) < 2:
        return _lane(model, sequences, limits, report, kept)
    limits = limits._replace(tokens=limits.tokens // len(lanes), rows=limits.rows // len(lanes))
    done, lock = [0] * len(lanes), threading.Lock()

    def run(number: int) -> Found:
        torch.set_num_threads(cores // len(lanes))  # of this thread

        def report_lane(items: int, _total: int) -> None:
            with lock:
                done[number] = items
                report(sum(done), len(sequences))

        return _lane(model, lanes[number], limits, report_lane)

    try:
        with ThreadPoolExecutor(len(lanes)) as threads:
            found = list(threads.map(run, range(len(lanes))))
    finally:
        torch.set_num_threads(cores)  # it is what threads to come begin with
    return dict(itertools.chain.from_iterable(part.items() for part in found))


def _split(sequences: Sequences, lanes: int, tokens: int) -> Iterator[Sequences]:
    """So many parts, of about equally many computed tokens; one where all fit a forward."""
    order = sorted(sequences)
    pairs = zip([(), *order], order, strict=False)
    costs = [len(key) - prefix.alike(before, key) for before, key in pairs]
    through = list(itertools.accumulate(costs))
    lanes = lanes if through and through[-1] > tokens else 1
    cuts = [bisect_left(through, through[-1] * n / lanes) for n in range(1, lanes)]
    for low, high in itertools.pairwise([0, *cuts, len(order)]):
        if low < high:
            yield {key: sequences[key] for key in order[low:high]}


@torch.inference_mode()
def _lane(
    model: Any, sequences: Sequences, limits: Limits, report: Report, kept: Kept | None = None
) -> Found:
    keys = list(sequences)
    store: packed.Store = {}
    shared, first = plan(keys, limits), 0
    if kept:
        heads = [key[: min(target.position for target in sequences[key])] for key in keys]
        max_run = min(MAX_RUN, limits.tokens)
        prefixes = kept.prefixes(model, heads, max_run)
        shared, known = keeping.plan(keys, prefixes, max_run, MIN_SAVING)
        store |= {number: dict(kept.known[tokens]) for number, tokens in enumerate(known)}
        first = len(known)
    asked = _targets(shared, keys, sequences)
    rows = [len(asked.get(number, ())) for number in range(first, len(shared.segments))]
    ends = sorted(chain[-1] for chain in shared.chains)
    found: Found = {key: {} for key in keys}
    for pack_part in prefix.packs(shared.segments[first:], rows, limits.tokens, limits.rows):
        part = range(pack_part.start + first, pack_part.stop + first)
        keep = [number for number in part if shared.last[number] > number]
        pack = packed.arrange(shared, part, keep, store, model)
        at = [
            (pack.offsets[n] + offset, asked[n][offset])
            for n in part
            for offset in asked.get(n, ())
        ]
        where = torch.tensor([row for row, _ in at], dtype=torch.long, device=model.device)
        logits = packed.forward(model, pack.ids, pack.positions, where, pack)
        flat = [(row, key, target) for row, (_, uses) in enumerate(at) for key, target in uses]
        values = plain.token_logprobs(
            logits, [row for row, _, _ in flat], [target.token for _, _, target in flat]
        )
        for (_, key, target), value in zip(flat, values, strict=True):
            found[keys[key]][target] = value
        for number in [number for number in store if shared.last[number] < part.stop]:
            del store[number]
        report(bisect_left(ends, part.stop), len(ends))
    return found


def _targets(
    shared: prefix.Plan, keys: list[tuple[int, ...]], sequences: Sequences
) -> dict[int, dict[int, list[tuple[int, Target]]]]:
    """segment -> offset in it -> (sequence, target) pairs that are read off there."""
    asked: dict[int, dict[int, list[tuple[int, Target]]]] = {}
    for index, (key, chain) in enumerate(zip(keys, shared.chains, strict=True)):
        starts = [shared.segments[number].start for number in chain]
        for target in sequences[key]:
            at = bisect_right(starts, target.position) - 1
            row = asked.setdefault(chain[at], {}).setdefault(target.position - starts[at], [])
            row.append((index, target))
    return asked
