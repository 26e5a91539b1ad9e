"""All ensembles of the variants at hand, scored exactly, and the true Pareto front among them.

An ensemble is a bit mask: bit v = variant v. Votes become popcounts. With the variants' bits
ordered by precision, the most precise one highest, the vote on a sample goes to the label l that
maximises (popcount(x) << variants) + x, where x = ensemble & (variants that answer l): first the
number of votes, then whose highest bit is highest, which is the paper's rule for ties.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.scoring import rates, refusals
from ptsearch.scoring.cost import VariantCost
from ptsearch.scoring.scores import Questions, score
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting import lazy
from ptsearch.voting.votes import majority

Masks = NDArray[np.uint32]
WideMasks = NDArray[np.uint32] | NDArray[np.uint64]  # of more than 32 variants

MAX_VARIANTS = 27  # 5 bits of popcount and 27 of mask in 32
MAX_ENSEMBLES = 2**24
CHUNK = 2**16  # masks scored at once: bounds the memory of the counts
BLOCK = 1024  # masks per task: their arrays stay in the first-level cache


def enumerate_ensembles(n_variants: int, max_members: int) -> Masks:
    """All masks of 1 to `max_members` variants, small ensembles first."""
    sizes = range(1, min(max_members, n_variants) + 1)
    number = sum(comb(n_variants, size) for size in sizes)
    if n_variants > MAX_VARIANTS or number > MAX_ENSEMBLES:
        raise ValueError(
            f"{number:,} ensembles of {n_variants} variants are too many to enumerate (at most "
            f"{MAX_VARIANTS} variants and {MAX_ENSEMBLES:,}): lower study.max_members or the pool"
        )
    if number == (1 << n_variants) - 1:
        masks = np.arange(1, 1 << n_variants, dtype=np.uint32)
        return masks[np.argsort(np.bitwise_count(masks), kind="stable")]
    bits = [1 << variant for variant in range(n_variants)]
    chosen = (sum(c) for size in sizes for c in itertools.combinations(bits, size))
    return np.fromiter(chosen, dtype=np.uint32, count=number)


def members(mask: int) -> tuple[int, ...]:
    """Positions of the variants in a mask."""
    return tuple(variant for variant in range(int(mask).bit_length()) if mask >> variant & 1)


def score_all(
    asked: Questions,
    codes: AnswerCodes,
    precision: Floats,
    weights: Mapping[str, float],
    masks: Masks,
) -> dict[str, Floats]:
    """Scores (ensembles,) of every mask: `trust`, `mmlu`, the perspectives, `refusal_rate`, and DPD
    and EOD by parity scenario; equal to `scores.score` of `voting.majority` on the members, with
    refusals as the scenarios take them.

    `codes` (variants, samples) answer `asked`; `precision` (variants,) as in `voting.majority`.
    Under the published rules (ct, dt) the masks are scored one by one, which is slow.
    """
    if len(codes) > MAX_VARIANTS:
        raise ValueError(f"at most {MAX_VARIANTS} variants can be scored at once, got {len(codes)}")
    if not masks.size:
        raise ValueError("there is no ensemble to score")
    if asked.rules != "clean":  # the published rules are no functions of rates
        return _score_each(asked, codes, precision, weights, masks)
    plan = rates.plan(asked, weights)
    patterns = _patterns(plan, asked, codes, precision)
    scores: dict[str, Floats] = {key: np.empty(masks.size) for key in plan.keys}
    for start in range(0, masks.size, CHUNK):
        chunk = slice(start, start + CHUNK)
        hits = _hits(plan, patterns, precision, masks[chunk])
        for key, values in rates.score_counts(plan, hits.T).items():
            scores[key][chunk] = values
    return scores


def cost_all(
    variants: Sequence[VariantCost],
    latency: str,
    masks: Masks,
    answers: tuple[Questions, AnswerCodes, Floats] | None = None,
) -> tuple[Floats, Floats]:
    """`memory_gb` and `latency_ms` (ensembles,) of every mask, as `cost.total_cost` of the members.

    `answers`, the first arguments of `score_all`, are what the lazy latency depends on.
    """
    holders: dict[str, tuple[int, int]] = {}  # checksum -> bytes, mask of the variants that hold it
    for variant, cost in enumerate(variants):
        for digest, size in cost.tensors.items():
            _, held = holders.get(digest, (0, 0))
            holders[digest] = (size, held | 1 << variant)
    stored: dict[int, int] = {}
    for size, held in holders.values():
        stored[held] = stored.get(held, 0) + size
    for variant, cost in enumerate(variants):  # a cache is nobody else's
        stored[1 << variant] = stored.get(1 << variant, 0) + cost.kv_bytes
    total = np.zeros(masks.size, np.int64)
    for held, size in stored.items():
        total += size * ((masks & np.uint32(held)) != 0)
    each = np.array([cost.latency_ms for cost in variants])
    if latency == "lazy":
        if answers is None:
            raise ValueError("the lazy latency depends on the members' answers")
        asked, codes, precision = answers
        known = asked.refusals
        ballots, veto = refusals.ballots(codes, known), known and known.decide
        return total / 1e9, lazy.asked_all(ballots, precision, each, masks, veto)[0] @ each
    times = np.zeros(masks.size)
    for variant, ms in enumerate(each):
        counted = ms * ((masks >> np.uint32(variant)) & np.uint32(1))
        times = np.maximum(times, counted) if latency == "parallel" else times + counted
    return total / 1e9, times


def greedy(value: Callable[[WideMasks], Floats], n_variants: int, max_members: int) -> WideMasks:
    """Forward selection: the masks of its steps, the last one being what it finds.

    `value(masks)` is (masks, k), to be maximized in lexicographic order. Each step adds the best
    variant (the first of equals) while that raises the first column.
    """
    path: list[int] = []
    highest = -np.inf
    while len(path) < min(max_members, n_variants):
        mask = path[-1] if path else 0
        grown = [mask | 1 << v for v in range(n_variants) if not mask >> v & 1]
        values = value(_wide(grown, n_variants))
        best = int(np.lexsort(-values.T[::-1])[0])
        if values[best, 0] <= highest:
            break
        highest = float(values[best, 0])
        path.append(grown[best])
    return _wide(path, n_variants)


class _Patterns(NamedTuple):
    """Distinct votes on what is counted, in masks by precision.

    `labels` (patterns, 1 + 2 x pairs): the variants that hit, then those of each other label, from
    the most, padded with 0 to whole pairs. Where `limit` > 0 refusals are a veto: so many of the
    `declining` variants, and there is no hit. Where `limit` < 0 declining itself hits: if nobody
    gives a label, or if -limit of the variants that hit are there.
    """

    labels: Masks
    pairs: NDArray[np.intp]  # (patterns,) pairs of other labels
    weight: NDArray[np.int32]  # (patterns,) how often
    rate: NDArray[np.intp]  # (patterns,)
    declining: Masks  # (patterns,)
    limit: NDArray[np.int64]  # (patterns,)


def _patterns(
    plan: rates.Plan, asked: Questions, codes: AnswerCodes, precision: Floats
) -> _Patterns:
    ballots = refusals.ballots(codes, asked.refusals)
    n_labels = max(int(ballots.max(initial=0)), int(plan.target.max(initial=0))) + 1
    # by label and sample: who says so; the last row is who declines and has no vote
    voters = np.zeros((n_labels + 1, codes.shape[1]), dtype=np.uint32)
    for answers, bit in zip(ballots, _precision_bits(precision), strict=True):
        voting = np.where((answers == REFUSED) | (answers == refusals.VETO), n_labels, answers)
        usable = np.flatnonzero(voting >= 0)
        voters[voting[usable], usable] |= np.uint32(1 << int(bit))
    others, declining = voters[:-1, plan.row], voters[-1, plan.row]
    counts = np.arange(plan.row.size)
    anyone = plan.target == rates.ANSWERED
    someone = np.bitwise_or.reduce(others)
    hit = np.where(anyone, someone, others[plan.target * ~anyone, counts])
    others[:, anyone] = 0
    others[plan.target[~anyone], counts[~anyone]] = 0
    limit = np.zeros(plan.row.size, dtype=np.int64)
    if asked.refusals is not None:
        decide, code, _ = (column[plan.row] for column in asked.refusals)
        apart = decide != refusals.LABEL  # declining has no vote; it may yet be an answer
        itself, answers = apart & (plan.target == code), apart & anyone & (code >= 0)
        limit = np.maximum(decide, 0) * ~answers
        limit[itself] = np.where(decide > 0, -decide, -MAX_VARIANTS - 1)[itself]
        hit = np.where(itself, declining, np.where(answers, someone | declining, hit))
        others[:, itself] = 0
        others[0, itself] = someone[itself]
    declining = np.where(limit > 0, declining, 0)
    others = np.sort(others, axis=0)[::-1]
    width = 2 * ((int((others > 0).any(axis=1).sum()) + 1) // 2)
    others = np.pad(others, ((0, 1), (0, 0)))[:width]
    rows = np.stack([plan.rate, limit, declining, hit, *others], axis=1)[hit > 0]
    rows, weight = np.unique(rows, axis=0, return_counts=True)
    pairs = ((rows[:, 4:] > 0).sum(axis=1) + 1) // 2
    masks = np.ascontiguousarray(rows[:, 2:].astype(np.uint32))
    return _Patterns(
        np.ascontiguousarray(masks[:, 1:]), pairs, weight.astype(np.int32), rows[:, 0],
        masks[:, 0].copy(), rows[:, 1],
    )  # fmt: skip


def _hits(
    plan: rates.Plan, patterns: _Patterns, precision: Floats, masks: Masks
) -> NDArray[np.int32]:
    shift = np.uint32(len(precision))
    return _count_hits(_by_precision(masks, precision), patterns, plan.size.size, shift)


def _precision_bits(precision: Floats) -> NDArray[np.intp]:
    """(variants,): the bit of each variant, highest for the most precise."""
    bits = np.empty(len(precision), dtype=np.intp)
    bits[np.argsort(-precision, kind="stable")] = np.arange(len(precision))[::-1]
    return bits


def _by_precision(masks: Masks, precision: Floats) -> Masks:
    """The masks with every variant's bit where `_precision_bits` puts it."""
    moved = np.zeros_like(masks)
    for variant, bit in enumerate(_precision_bits(precision)):
        moved |= (masks >> np.uint32(variant) & np.uint32(1)) << np.uint32(bit)
    return moved


def _score_each(
    asked: Questions,
    codes: AnswerCodes,
    precision: Floats,
    weights: Mapping[str, float],
    masks: Masks,
) -> dict[str, Floats]:
    scored = []
    for mask in masks:
        chosen = list(members(mask))
        voted = majority(refusals.ballots(codes[chosen], asked.refusals), precision[chosen])
        voted = refusals.outcomes(voted, codes[chosen], asked.refusals)
        scored.append(score(asked, voted, weights))
    keys = [key for key in scored[0] if all(key in scores for scores in scored)]
    return {key: np.array([scores[key] for scores in scored]) for key in keys}


def _wide(masks: Sequence[int], n_variants: int) -> WideMasks:
    if n_variants <= 32:
        return np.array(masks, dtype=np.uint32)
    return np.array(masks, dtype=np.uint64)


@numba.njit(cache=True)
def _popcount(mask: np.uint32) -> np.uint32:
    """Number of set bits: sums of pairs, fours and bytes, which LLVM makes one instruction of."""
    pairs = np.uint32(mask - ((mask >> np.uint32(1)) & np.uint32(0x55555555)))
    low, high = pairs & np.uint32(0x33333333), (pairs >> np.uint32(2)) & np.uint32(0x33333333)
    fours = np.uint32(low + high)
    eights = np.uint32(fours + (fours >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    return np.uint32(np.uint32(eights * np.uint32(0x01010101)) >> np.uint32(24))


@numba.njit(cache=True)
def _support(mask: np.uint32, shift: np.uint32) -> np.uint32:
    """What the voters in `mask` weigh: their number, then the most precise of them."""
    return np.uint32(np.uint32(_popcount(mask) << shift) | mask)


@numba.njit(cache=True)
def _raise(best: Masks, masks: Masks, one: np.uint32, two: np.uint32, shift: np.uint32) -> None:
    """`best` = its maximum with the supports of two labels, by ensemble."""
    for i in range(masks.size):
        a = _support(np.uint32(masks[i] & one), shift)
        b = _support(np.uint32(masks[i] & two), shift)
        larger = a if a > b else b
        best[i] = larger if larger > best[i] else best[i]


@numba.njit(cache=True, parallel=True)
def _count_hits(
    masks: Masks, patterns: _Patterns, n_rates: int, shift: np.uint32
) -> NDArray[np.int32]:
    """Hits (rates, ensembles): patterns whose hitting label outweighs every other one."""
    labels, pairs, weight, rate, declining, limit = patterns
    hits = np.zeros((n_rates, masks.size), dtype=np.int32)
    for block in numba.prange((masks.size + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, masks.size)
        inside = masks[start:end].copy()
        best = np.empty(inside.size, dtype=np.uint32)
        for pattern in range(labels.shape[0]):
            best[:] = 0
            for pair in range(pairs[pattern]):
                others = labels[pattern, 1 + 2 * pair : 3 + 2 * pair]
                _raise(best, inside, others[0], others[1], shift)
            hit, times = labels[pattern, 0], weight[pattern]
            counted = hits[rate[pattern], start:end]
            for i in range(inside.size):
                won = _support(np.uint32(inside[i] & hit), shift) > best[i]
                counted[i] += times if won else np.int32(0)
            if limit[pattern] == 0:
                continue
            for i in range(inside.size):
                won = _support(np.uint32(inside[i] & hit), shift) > best[i]
                if limit[pattern] > 0:
                    right = won and _popcount(inside[i] & declining[pattern]) < limit[pattern]
                else:
                    number = _popcount(inside[i] & hit)
                    right = number >= -limit[pattern] or (number > 0 and best[i] == 0)
                counted[i] += times * (np.int32(right) - np.int32(won))
    return hits
