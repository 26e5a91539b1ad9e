"""Lazy voting: members are evaluated one after the other until no answer can change the vote.

The labels always equal those of the full vote (`votes.decided`); the saving depends on how often
the first members agree. The cheapest members come first; among equally cheap ones, those that agree
with the vote most often.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.scoring.refusals import VETO
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting.votes import decided


class Plan(NamedTuple):
    """The order of members, and how often each is asked."""

    order: list[int]  # positions of members
    asked: Floats  # (members,) share of samples, by position
    calls: float  # expected members asked


def plan(
    codes: AnswerCodes, precision: Floats, latency: Floats, veto: AnswerCodes | None = None
) -> Plan:
    """For one ensemble; codes (members, samples), the rest (members,) as in `asked_all`."""
    everyone = np.array([(1 << len(codes)) - 1], dtype=np.uint32)
    asked, order = asked_all(codes, precision, latency, everyone, veto)
    return Plan(order[0].tolist(), asked[0], float(asked[0].sum()))


def asked_each(
    codes: AnswerCodes, precision: Floats, order: Sequence[int], veto: AnswerCodes | None = None
) -> NDArray[np.bool_]:
    """(members, samples) whether each member is asked, in `order`, until the vote is decided."""
    ranked = [str(m) for m in np.argsort(-precision, kind="stable")]
    asked = np.zeros(codes.shape, dtype=bool)
    for sample, said in enumerate(codes.T):
        known: dict[str, int] = {}
        for member in order:
            asked[member, sample] = True
            known[str(member)] = int(said[member])
            if decided(known, ranked, 0 if veto is None else int(veto[sample])):
                break
    return asked


def asked_all(
    codes: AnswerCodes,
    precision: Floats,
    latency: Floats,
    masks: NDArray[np.uint32],
    veto: AnswerCodes | None = None,
) -> tuple[Floats, NDArray[np.intp]]:
    """Share of samples (ensembles, variants) for which each variant is asked, 0 outside the mask,
    and variants (ensembles, variants) in the order they are asked, the mask's first.

    `codes` (variants, samples), ballots; bit v of a mask = variant v; `precision` (variants,) as in
    `votes.majority`; `latency` (variants,) of one call; `veto` (samples,) as in `votes.decided`.
    """
    veto = np.zeros(codes.shape[1], dtype=np.int16) if veto is None else np.maximum(veto, 0)
    rows = np.concatenate((codes, veto[None]))
    first, counts = _patterns(rows)
    ranked = np.argsort(-precision, kind="stable")  # the vote's total order
    patterns = np.ascontiguousarray(rows.T[first])
    asked, orders = _asked(masks, patterns, counts.astype(float), ranked, latency)
    return asked / codes.shape[1], orders


def _patterns(codes: AnswerCodes) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of the first occurrence and number of occurrences of each distinct column."""
    least = int(codes.min(initial=0))
    base = int(codes.max(initial=0)) - least + 1
    if base ** len(codes) < 2**62:  # columns as numbers: they sort much faster
        keys = np.zeros(codes.shape[1], dtype=np.int64)
        for row in codes:
            keys = keys * base + (row.astype(np.int64) - least)
        return np.unique(keys, return_index=True, return_counts=True)[1:]
    return np.unique(codes, axis=1, return_index=True, return_counts=True)[1:]


@numba.njit(cache=True, parallel=True)
def _asked(
    masks: NDArray[np.uint32], patterns: AnswerCodes, weight: Floats, ranked: NDArray[np.intp],
    latency: Floats,
) -> tuple[Floats, NDArray[np.intp]]:  # fmt: skip
    """`patterns` (patterns, variants + 1), the veto last; `weight` (patterns,) how often, whole
    numbers, so that ties are ties in any order; `ranked` the variants by precision.
    """
    variants = ranked.size
    asked = np.zeros((masks.size, variants))
    orders = np.empty((masks.size, variants), dtype=np.intp)
    for e in numba.prange(masks.size):
        inside = np.array([(masks[e] >> np.uint32(v)) & np.uint32(1) == 1 for v in ranked])
        members = np.concatenate((ranked[inside], ranked[~inside]))
        n = int(inside.sum())
        agrees = np.zeros(n)
        for p in range(len(weight)):
            said = patterns[p][members[:n]]
            vote = _vote(said, patterns[p, variants])
            for m in range(n):
                agrees[m] += weight[p] * (vote != REFUSED and said[m] == vote)
        turn = np.argsort(-agrees, kind="mergesort")
        turn = turn[np.argsort(latency[members[turn]], kind="mergesort")]
        for p in range(len(weight)):
            said = patterns[p][members[:n]]
            known = np.zeros(n, dtype=np.bool_)
            for m in turn:
                known[m] = True
                asked[e, members[m]] += weight[p]
                if _settled(said, known, patterns[p, variants]):
                    break
        orders[e, :n] = members[:n][turn]
        orders[e, n:] = members[n:]
    return asked, orders


@numba.njit(cache=True)
def _vote(said: AnswerCodes, veto: int) -> int:
    """`votes.vote` of ballots (members,), the most precise first, or VETO."""
    if 0 < veto <= (said == VETO).sum():
        return VETO
    best, most = REFUSED, 0
    for m in range(said.size):
        votes = (said == said[m]).sum()
        if said[m] >= 0 and votes > most:
            best, most = said[m], votes
    return best


@numba.njit(cache=True)
def _settled(said: AnswerCodes, known: NDArray[np.bool_], veto: int) -> bool:
    """`votes.decided` where `known` members have answered."""
    vetoes, pending = (known & (said == VETO)).sum(), (~known).sum()
    if 0 < veto <= vetoes + pending:
        return pending == 0 or vetoes >= veto
    return _decided(said, known)


@numba.njit(cache=True)
def _decided(said: AnswerCodes, known: NDArray[np.bool_]) -> bool:
    """The same where no veto is possible."""
    pending, next_one = 0, said.size
    for m in range(said.size - 1, -1, -1):
        if not known[m]:
            pending, next_one = pending + 1, m
    leader, most = -1, 0
    for m in range(said.size):
        votes = (known & (said == said[m])).sum() if known[m] and said[m] >= 0 else 0
        if votes > most:
            leader, most = m, votes
    if pending == 0 or leader < 0:
        return pending == 0
    if pending > most or (pending == most and next_one < leader):
        return False
    for m in range(said.size):
        if known[m] and said[m] >= 0 and said[m] != said[leader]:
            votes = (known & (said == said[m])).sum() + pending
            if votes > most or (votes == most and min(m, next_one) < leader):
                return False
    return True
