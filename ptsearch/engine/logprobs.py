"""Label log-probabilities over packed sequences, on a CPU in several lanes."""

import itertools
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from ptsearch.engine import lanes, packed, prefix
from ptsearch.engine import prefix_cache as keeping
from ptsearch.engine.memory import Limits
from ptsearch.engine.prefix_cache import Begun, Held, Kept, Piece, Tokens
from ptsearch.engine.requests import Progress, Sequences, Target, TargetLogprobs, token_logprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_SAVING = 64  # tokens that a shared prefix must save to become a segment of its own
MAX_RUN = 512  # longer runs are cut, so that half-empty causal squares stay small
FEW = 64  # tokens of a lane, fewer are better run on all cores
ROW = 3  # tokens' worth of work that a sequence is beside its tokens
AGAIN = 0.1  # of all tokens may be computed in more than one lane


def plan(sequences: list[Tokens], limits: Limits) -> prefix.Plan:
    """Shared prefixes of distinct sequences, as the packed path computes them."""
    return prefix.share(sequences, _max_run(limits), MIN_SAVING, limits.align)


def logprobs(
    model: "PreTrainedModel",
    sequences: Sequences,
    limits: Limits,
    report: Progress,
    kept: Kept | None = None,
) -> TargetLogprobs:
    """log p(target token | sequence up to its position) in nats, for every target.

    What `kept` has of the sequences' prefixes is not computed again, and it keeps more.
    """
    begun, held = dict.fromkeys(sequences, Begun()), None
    if kept:
        heads = [key[: min(t.position for t in targets)] for key, targets in sequences.items()]
        begins, held = kept.begun(heads)
        begun = dict(zip(sequences, begins, strict=True))
    parts = list(_split(begun, lanes.count(model, limits)))
    mine = lanes.share(limits, max(1, len(parts)))
    done, lock = [0] * len(parts), threading.Lock()

    def run(number: int) -> Lane:
        def report_lane(items: int, _total: int) -> None:
            with lock:
                done[number] = items
                report(sum(done), len(sequences))

        asked = {key: sequences[key] for key in parts[number]}
        return _lane(model, asked, begun, held, mine, report_lane)

    ran = lanes.run([partial(run, number) for number in range(len(parts))], len(parts))
    if kept:
        for lane in ran:
            kept.add(lane.pieces)
    return dict(itertools.chain.from_iterable(lane.found.items() for lane in ran))


def _max_run(limits: Limits) -> int:
    return max(1, min(MAX_RUN, limits.tokens) // limits.align) * limits.align


def _split(begun: Mapping[Tokens, Begun], parts: int) -> Iterator[list[Tokens]]:
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
    shares = [whole * n / parts for n in range(1, parts)]
    cuts = [min(range(len(ends)), key=lambda k: abs(ends[k] - share)) for share in shares]
    again = sum(shared[cut] - len(begun[order[cut]].kept) for cut in cuts if cut < len(order))
    if whole < FEW * parts or again > AGAIN * whole:
        cuts = []
    for low, high in itertools.pairwise([0, *cuts, len(order)]):
        if low < high:
            yield order[low:high]


class Lane(NamedTuple):
    """What a lane gives."""

    found: TargetLogprobs
    pieces: dict[Tokens, Piece]  # of prefixes to keep


@torch.inference_mode()
def _lane(
    model: "PreTrainedModel",
    sequences: Sequences,
    begun: Mapping[Tokens, Begun],
    held: Held | None,
    limits: Limits,
    report: Progress,
) -> Lane:
    keys = list(sequences)
    shared, stored, new = keeping.plan(
        keys, [begun[key] for key in keys], held or {}, _max_run(limits), MIN_SAVING, limits.align
    )
    store: packed.Store = {n: piece.layers for n, piece in enumerate(stored)}
    computed: packed.Store = {number: {} for numbers in new.values() for number in numbers}
    first = len(stored)
    asked = _targets(shared, keys, sequences)
    rows = [len(asked.get(number, ())) for number in range(first, len(shared.segments))]
    ends = sorted(chain[-1] for chain in shared.chains)
    found: TargetLogprobs = {key: {} for key in keys}
    for pack_part in prefix.packs(shared.segments[first:], rows, limits.tokens, limits.rows):
        part = range(pack_part.start + first, pack_part.stop + first)
        keep = [number for number in part if shared.last[number] > number]
        pack = packed.Pack(shared, part, keep, store, model)
        at = [
            (pack.offsets[n] + offset, asked[n][offset])
            for n in part
            for offset in asked.get(n, ())
        ]
        where = torch.tensor([row for row, _ in at], dtype=torch.long, device=model.device)
        logits = packed.forward(model, pack.ids, pack.positions, where, pack)
        flat = [(row, key, target) for row, (_, uses) in enumerate(at) for key, target in uses]
        values = token_logprobs(
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
