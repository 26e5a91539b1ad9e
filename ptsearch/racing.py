"""Racing: all variants answer the search half in equal chunks, and one is asked no further when
every ensemble that contains it is, within bounds that hold at all looks together, dominated.

Scores with gaps between groups are no means, so their samples are asked first and whole. What is
left of a score is a weighted sum over strata, each sampled without replacement in a random order.
For the difference of two ensembles, X the weighted differences of their hits and mu their means
given the past, exp(l sum(mu - X) / b - psi(l) sum(X^2) / b^2) is a supermartingale for |X| <= b and
psi(l) = -log(1 - l) - l (Howard et al. 2021, https://doi.org/10.1214/20-AOS1991); the step weights
are chosen so that the means sum to a multiple of the true difference in spite of the missing
replacement (as in Waudby-Smith and Ramdas 2020, https://arxiv.org/abs/2006.04347). By Ville's
inequality it stays under 1 / alpha at all looks with probability 1 - alpha; alpha is shared by all
pairs of ensembles, scores and values of l.
"""

from collections.abc import Sequence
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch import exact, rates
from ptsearch.config import OBJECTIVES
from ptsearch.judge import Judge
from ptsearch.rates import Plan
from ptsearch.study import limits, objectives, the_study
from ptsearch.table import Table
from ptsearch.voting import Codes

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

ALPHA = 0.05  # of stopping, in a study, any variant that is on its front
LOOKS = 4
LAMBDAS = (0.05, 0.15, 0.4)
FEW = 5 * LOOKS  # a smaller stratum is asked whole
MAX_ENSEMBLES = 50_000  # each against each sample: bounds the memory
RIVALS = 100  # ensembles that may dominate: the front so far


class Course(NamedTuple):
    """Who is asked what when; `keys` are the objectives that are scores."""

    plan: Plan
    keys: tuple[str, ...]
    looks: list[Rows]  # rows of the search half that are new at each look
    whole: NDArray[np.bool_]  # (rates,) asked whole at the first look
    rank: NDArray[np.intp]  # (rows,) place in the order of its rate, from 0
    step: Floats  # (rows,) weight of the row's step in the supermartingale
    ensembles: int  # of the variants at the start: what alpha is shared by
    growth: Floats  # (looks,) what the true difference is multiplied by in the sum of means


class Field(NamedTuple):
    """All ensembles of the variants that are still in, and what they cost."""

    masks: exact.Masks
    precision: Floats  # (variants,)
    cost: Floats  # (ensembles, costs), minimized; known beforehand


def race(table: Table, judge: Judge) -> None:
    """Ask all variants, look by look; those without a chance are left out of the table.

    ValueError: limits on scores, or a judge of replies: neither can be bounded.
    """
    wanted = the_study(table.config)
    limited = [n for given in (wanted.min, wanted.max) for n in limits(given)]
    if table.reader or set(limited) - {"memory_gb", "latency_ms"}:
        raise ValueError(
            "study.racing=true needs benchmarks.extract=rules and no limits on scores: "
            "it bounds scores that are not known yet"
        )
    rng = np.random.default_rng(wanted.seed)
    course = plan_course(judge, len(table.variants), LOOKS, rng)
    inside: Rows = np.flatnonzero(judge.mask)
    rows: Rows = np.empty(0, dtype=np.intp)
    labels = list(table.variants)
    total = judge.mask.size
    for look, new in enumerate(course.looks):
        rows = np.concatenate([rows, new])
        said = table.ask(labels, inside[rows])
        labels = list(said)
        codes = np.stack([said[label][judge.mask] for label in labels])
        metas = [table.cost_meta(label) for label in labels]
        field = open_field(judge, [table.variants[label] for label in labels], metas)
        for v in sorted(hopeless(course, look, codes, field), reverse=True):
            reason = f"racing: on no front, asked {rows.size:,} of {total:,} samples"
            table.leave_out(labels.pop(v), reason)
    table.ensure(labels)


def plan_course(judge: Judge, variants: int, looks: int, rng: np.random.Generator) -> Course:
    """Random orders within strata, the same share of each at every look."""
    plan = rates.plan(judge.asked, judge.config.trust.weights)
    keys = tuple(n for n in objectives(the_study(judge.config)) if n in plan.keys)
    columns = [plan.keys.index(key) for key in keys]
    gaps = np.flatnonzero((plan.by_gap[columns] != 0).any(axis=0))
    counted = (plan.by_rate[columns] != 0).any(axis=0)
    whole = counted & (plan.size < FEW)
    whole[np.unique(plan.gaps[gaps])] = True
    n = judge.asked.gold.size
    look_of, rank, step = np.full(n, looks - 1), np.zeros(n, dtype=np.intp), np.zeros(n)
    look_of[plan.row[whole[plan.rate]]] = 0
    pace = np.zeros((plan.size.size, looks))  # sum of 1 / what is left, by rate and look
    orders = {}
    for rate in np.flatnonzero(counted & ~whole):
        rows = rng.permutation(np.unique(plan.row[plan.rate == rate]))
        look_of[rows] = np.arange(rows.size) * looks // rows.size
        rank[rows] = np.arange(rows.size)
        pace[rate] = np.bincount(look_of[rows], 1 / (rows.size - rank[rows]), looks)
        orders[rate] = rows
    mean = pace[list(orders)].mean(axis=0) if orders else np.ones(looks)
    for rate, rows in orders.items():
        step[rows] = (mean / pace[rate])[look_of[rows]]
    return Course(
        plan, keys, [np.flatnonzero(look_of == look) for look in range(looks)], whole, rank, step,
        sum(comb(variants, n) for n in range(1, the_study(judge.config).max_members + 1)),
        np.cumsum(mean),
    )  # fmt: skip


def open_field(judge: Judge, variants: Sequence[Any], metas: Sequence[dict[str, Any]]) -> Field:
    """The ensembles that limits on cost allow."""
    wanted = the_study(judge.config)
    masks = exact.enumerate_ensembles(len(variants), wanted.max_members)
    masks = masks[np.bitwise_count(masks) >= wanted.min_members]
    if masks.size > MAX_ENSEMBLES:
        raise ValueError(f"study.racing: {masks.size:,} ensembles are too many to bound each")
    found = exact.cost_all(metas, judge.config.latency.mode, masks)
    cost = dict(zip(("memory_gb", "latency_ms"), found, strict=True))
    allowed = np.ones(masks.size, dtype=bool)
    for name, limit in limits(wanted.max).items():
        allowed &= cost[name] <= limit
    for name, limit in limits(wanted.min).items():
        allowed &= cost[name] >= limit
    costs = [cost[n] for n in objectives(wanted) if OBJECTIVES[n] == "minimize"]
    stacked = np.stack([*costs, np.zeros(masks.size)], axis=1)
    return Field(masks[allowed], np.array([v.precision for v in variants]), stacked[allowed])


def hopeless(course: Course, look: int, codes: Codes, field: Field) -> list[int]:
    """Variants that, by what was answered up to `look`, no ensemble on the front contains; the best
    single variant stays too, because the front is compared with it.

    `codes` (variants, rows of the search half); only rows asked so far are read.
    """
    bounds = Bounds.at(course, look, codes, field)
    estimate = np.concatenate([-bounds.estimate, field.cost], axis=1)
    rivals = exact.pareto_front(estimate, ["minimize"] * estimate.shape[1])[:RIVALS]
    out = np.zeros(field.masks.size, dtype=bool)
    for rival, highest in zip(rivals, bounds.highest_gains(rivals), strict=True):
        dearer = (field.cost >= field.cost[rival]).all(axis=1)
        strictly = (field.cost > field.cost[rival]).any(axis=1) | (highest < 0).any(axis=1)
        out |= dearer & (highest <= 0).all(axis=1) & strictly
    singles = np.flatnonzero(np.bitwise_count(field.masks) == 1)
    if singles.size and "trust" in course.keys:
        trust = course.keys.index("trust")
        best = singles[bounds.estimate[singles, trust].argmax()]
        out[singles] &= bounds.highest_gains(np.array([best]))[0, singles, trust] < 0
    alive = np.bitwise_or.reduce(field.masks[~out], initial=np.uint32(0))
    return [v for v in range(len(codes)) if not int(alive) >> v & 1]


class Bounds(NamedTuple):
    """What is known of every ensemble's scores at a look."""

    estimate: Floats  # (ensembles, keys), in percent
    known: Floats  # (ensembles, keys): the part of the score that is exact
    hits: NDArray[np.float32]  # (ensembles, counts) of the strata under way
    worth: Floats  # (keys, counts) of a hit in the score
    drift: Floats  # (counts,) of a hit in the estimate without replacement, times its worth
    step: Floats  # (counts,)
    largest: Floats  # (keys,) what one step of the whole race can move at most
    unseen: Floats  # (keys,) the most that the rest can change a difference by
    growth: float
    threshold: float  # log(1 / alpha) of one pair, score and lambda

    @classmethod
    def at(cls, course: Course, look: int, codes: Codes, field: Field) -> "Bounds":
        plan = course.plan
        asked = np.isin(plan.row, np.concatenate(course.looks[: look + 1]))
        columns = [plan.keys.index(key) for key in course.keys]
        per_hit = 100 * plan.by_rate[columns] / np.maximum(plan.size, 1)  # (keys, rates)
        used = (per_hit != 0).any(axis=0)
        under_way = np.flatnonzero(asked & (used & ~course.whole)[plan.rate])
        final = look + 1 == len(course.looks)
        hits = _hits(plan, under_way, codes, field)
        worth = per_hit[:, plan.rate[under_way]]
        known = _known(course, codes, field)
        seen = np.array([np.unique(plan.row[asked & (plan.rate == r)]).size
                         for r in range(plan.size.size)])  # fmt: skip
        unseen = np.where(used & ~course.whole & (not final), plan.size - seen, 0)
        share = np.where(seen > 0, plan.size / np.maximum(seen, 1), 0.0)[plan.rate[under_way]]
        early = np.isin(plan.row, np.concatenate([np.empty(0, dtype=np.intp), *course.looks[:-1]]))
        moves = np.abs(per_hit[:, plan.rate] * course.step[plan.row])[:, early]
        pairs = 2.0 * np.log(course.ensembles)
        return cls(
            known + hits @ (worth * share).T, known, hits, worth,
            _drift(course, under_way), course.step[plan.row[under_way]],
            moves.max(axis=1, initial=0.0),
            np.abs(per_hit) @ unseen, float(course.growth[look]),
            float(pairs + np.log(len(columns) * len(LAMBDAS) / ALPHA)),
        )  # fmt: skip

    def highest_gains(self, rivals: Rows) -> Floats:
        """(rivals, ensembles, keys): upper bounds of each ensemble's score minus the rival's."""
        found = []
        theirs = self.hits[rivals]  # (rivals, counts)
        for k, worth in enumerate(self.worth):
            certain = self.known[:, k] + self.hits @ worth
            plain = certain - certain[rivals, None] + self.unseen[k]
            size = float(self.largest[k])
            if not self.unseen[k] or not size:
                found.append(np.round(plain, 9))
                continue
            square = ((self.step * worth / size) ** 2).astype(np.float32)
            common = (theirs * square) @ self.hits.T  # (rivals, ensembles)
            alone = self.hits @ square
            spread = np.maximum(alone + alone[rivals, None] - 2 * common, 0.0)
            # The least over lambda: pointwise, as all of them hold together.
            reach = np.full(spread.shape, np.inf)
            for x in LAMBDAS:
                np.minimum(reach, (self.threshold + (-np.log1p(-x) - x) * spread) / x, out=reach)
            drawn = self.known[:, k] + self.hits @ (self.drift * worth) / self.growth
            fair = drawn - drawn[rivals, None] + size * reach / self.growth
            found.append(np.minimum(plain, fair))
        return np.stack(found, axis=2)


def _hits(plan: Plan, counts: Rows, codes: Codes, field: Field) -> NDArray[np.float32]:
    """(ensembles, counts): does the vote hit the count's target?"""
    alone = plan._replace(
        row=plan.row[counts], target=plan.target[counts], first=plan.first[counts],
        rate=np.arange(counts.size), size=np.ones(counts.size, dtype=np.int64),
    )  # fmt: skip
    return exact.count_hits(alone, codes, field.precision, field.masks).T.astype(np.float32)


def _known(course: Course, codes: Codes, field: Field) -> Floats:
    """(ensembles, keys): constants, rates asked whole, and gaps."""
    plan = course.plan
    counts = np.flatnonzero(course.whole[plan.rate])
    part = plan._replace(row=plan.row[counts], target=plan.target[counts],
                         first=plan.first[counts], rate=plan.rate[counts])  # fmt: skip
    hits = exact.count_hits(part, codes, field.precision, field.masks)
    found = rates.score_counts(plan, np.where(course.whole[:, None], hits, 0).T)
    return np.stack([found[key] for key in course.keys], axis=1)


def _drift(course: Course, counts: Rows) -> Floats:
    """(counts,): coefficient of a hit in sum(step x (hit + hits before it / what was left))."""
    plan = course.plan
    rows, rate = plan.row[counts], plan.rate[counts]
    found = course.step[rows].copy()
    for r in np.unique(rate):
        places = np.flatnonzero(rate == r)
        own = np.unique(rows[places])
        order = own[np.argsort(course.rank[own])]
        pull = course.step[order] / (plan.size[r] - course.rank[order])
        later = np.cumsum(pull[::-1])[::-1] - pull
        after = dict(zip(order.tolist(), later.tolist(), strict=True))
        found[places] += [after[row] for row in rows[places].tolist()]
    return found
