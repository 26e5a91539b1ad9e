"""Label log-probabilities over packed sequences.

On a CPU the sequences are shared out to lanes: each thread runs packs of its own on its share of
the cores, so that what is not a product, Python included, runs on all cores as well.
"""

import itertools
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from ptsearch.engine import gathered, packed, plain, prefix
from ptsearch.engine import kept as keeping
from ptsearch.engine.kept import Begun, Kept, Piece, Tokens
from ptsearch.engine.memory import LANE, Limits
from ptsearch.engine.plain import Found, Report, Sequences, Target

MIN_SAVING = 64  # tokens that a shared prefix must save to become a segment of its own
MAX_RUN = 512  # longer runs are cut, so that half-empty causal squares stay small
LANES = 4  # at most: Python runs one at a time
FEW = 64  # tokens of a lane, fewer are better run on all cores
ROW = 3  # tokens' worth of work that a sequence is beside its tokens
AGAIN = 0.1  # of all tokens may be computed in more than one lane


def plan(sequences: list[Tokens], limits: Limits) -> prefix.Plan:
    """Shared prefixes of distinct sequences, as the packed path computes them."""
    return prefix.share(sequences, _max_run(limits), MIN_SAVING, limits.align)


def logprobs(
    model: Any, sequences: Sequences, limits: Limits, report: Report, kept: Kept | None = None
) -> Found:
    """log p(target token | sequence up to its position) in nats, for every target.

    What `kept` has of the sequences' prefixes is not computed again, and it keeps more.
    """
    begun = dict.fromkeys(sequences, Begun())
    if kept:
        heads = [key[: min(t.position for t in targets)] for key, targets in sequences.items()]
        begun = dict(zip(sequences, kept.begun(heads), strict=True))
    cores = torch.get_num_threads()
    count = min(cores, LANES, limits.tokens // LANE) if model.device.type == "cpu" else 1
    lanes = list(_split(begun, count))
    if len(lanes) < 2:
        ran = [_lane(model, sequences, begun, kept, limits, report)]
    else:
        ran = _side_by_side(model, sequences, begun, kept, limits, report, lanes)
    if kept:
        for lane in ran:
            kept.add(lane.pieces)
    return dict(itertools.chain.from_iterable(lane.found.items() for lane in ran))


def _side_by_side(  # noqa: PLR0913
    model: Any,
    sequences: Sequences,
    begun: Mapping[Tokens, Begun],
    kept: Kept | None,
    limits: Limits,
    report: Report,
    lanes: Sequence[list[Tokens]],
) -> list["Lane"]:
    """Each lane in a thread of its own, on its share of the cores."""
    cores = torch.get_num_threads()
    limits = limits._replace(tokens=limits.tokens // len(lanes), rows=limits.rows // len(lanes))
    done, lock = [0] * len(lanes), threading.Lock()

    def run(number: int) -> Lane:
        torch.set_num_threads(cores // len(lanes))  # of this thread

        def report_lane(items: int, _total: int) -> None:
            with lock:
                done[number] = items
                report(sum(done), len(sequences))

        mine = {key: sequences[key] for key in lanes[number]}
        return _lane(model, mine, begun, kept, limits, report_lane)

    try:
        with ThreadPoolExecutor(len(lanes)) as threads:
            return list(threads.map(run, range(len(lanes))))
    finally:
        torch.set_num_threads(cores)  # it is what threads to come begin with


def _max_run(limits: Limits) -> int:
    return max(1, min(MAX_RUN, limits.tokens) // limits.align) * limits.align


def _split(begun: Mapping[Tokens, Begun], lanes: int) -> Iterator[list[Tokens]]:
    """The sequences in so many parts of about equally many computed tokens; in one where they are
    few, or where a prefix would be computed in several parts that is much of the whole.

    """
    order = sorted(begun)
    pairs = zip([(), *order], order, strict=False)
    shared = [max(prefix.alike(before, key), len(begun[key].kept)) for before, key in pairs]
    costs = (ROW + len(k) - n for k, n in zip(order, shared, strict=True))
    through = list(itertools.accumulate(costs))
    whole = through[-1] if through else 0
    ends = [0, *through]  # of the computed tokens before each sequence
    shares = [whole * n / lanes for n in range(1, lanes)]
    cuts = [min(range(len(ends)), key=lambda k: abs(ends[k] - share)) for share in shares]
    again = sum(shared[cut] - len(begun[order[cut]].kept) for cut in cuts if cut < len(order))
    if whole < FEW * lanes or again > AGAIN * whole:
        cuts = []
    for low, high in itertools.pairwise([0, *cuts, len(order)]):
        if low < high:
            yield order[low:high]


class Lane(NamedTuple):
    """What a lane gives."""

    found: Found
    pieces: dict[Tokens, Piece]  # of prefixes to keep


@torch.inference_mode()
def _lane(
    model: Any,
    sequences: Sequences,
    begun: Mapping[Tokens, Begun],
    kept: Kept | None,
    limits: Limits,
    report: Report,
) -> Lane:
    keys = list(sequences)
    shared, stored, new = keeping.plan(
        keys, [begun[key] for key in keys], kept, _max_run(limits), MIN_SAVING, limits.align
    )
    store: packed.Store = {}
    for number, tokens in enumerate(stored):
        assert kept
        store[number] = dict(kept.known[tokens].layers)
    computed: packed.Store = {number: {} for numbers in new.values() for number in numbers}
    first = len(stored)
    asked = _targets(shared, keys, sequences)
    rows = [len(asked.get(number, ())) for number in range(first, len(shared.segments))]
    ends = sorted(chain[-1] for chain in shared.chains)
    found: Found = {key: {} for key in keys}
    for pack_part in prefix.packs(shared.segments[first:], rows, limits.tokens, limits.rows):
        part = range(pack_part.start + first, pack_part.stop + first)
        keep = [number for number in part if shared.last[number] > number]
        few = kept is not None and gathered.pays(shared, part, model)
        kind = gathered.Gathered if few else packed.Pack
        pack: packed.Pack | gathered.Gathered = kind(shared, part, keep, store, model)
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
            gone = store.pop(number)
            if number in computed:
                computed[number] = gone
        report(bisect_left(ends, part.stop), len(ends))
    return Lane(found, {b.tokens: keeping.piece(b, computed, path) for b, path in new.items()})


def _targets(
    shared: prefix.Plan, keys: list[Tokens], sequences: Sequences
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
