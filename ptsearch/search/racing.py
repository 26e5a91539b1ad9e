"""Racing: all variants answer the search half in equal chunks, and one is asked no further when
every ensemble that contains it is, with bounds that hold at all looks together, dominated.

Scores with gaps between groups are no means, so their samples are asked first and whole. What is
left of a score is a weighted sum over strata, each sampled without replacement in a random order.
Let X be the weighted differences of two ensembles' hits as they come, in units of the largest, and
mu their means given the past: prod(1 - l X) exp(l sum(mu)), 0 < l < 1, is a supermartingale that
starts at 1 (a bet: Waudby-Smith and Ramdas 2020, https://arxiv.org/abs/2010.09686), and so is the
mean over several l. Steps are weighted so that the mu sum to a multiple of the true difference in
spite of the missing replacement. Where the first ensemble is not the worse one, that is at least 0,
and with 0 for it the product ever reaches 1 / alpha with a probability of at most alpha (Ville).

Only the front's members must not be stopped: one ensemble on the front for each of them, and the
best single variant, need a true bound, against those rivals that cost no more. That is what alpha
is shared by.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.aliases import AnswerCodes, Floats
from ptsearch.benchmarks.parsing import UNUSABLE
from ptsearch.config import OBJECTIVES
from ptsearch.evaluation.table import Table
from ptsearch.scoring import rates
from ptsearch.scoring.rates import Plan
from ptsearch.search import enumeration, pareto
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import limits, objectives, study_config

Rows = NDArray[np.intp]

ALPHA = 0.05  # of stopping, in a study, any variant that is on its front
LOOKS = 4
LAMBDAS = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
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
    growth: Floats  # (looks,) what the true difference is multiplied by in the sum of means


class Field(NamedTuple):
    """All ensembles of the variants that are still in, and what they cost."""

    masks: enumeration.Masks
    precision: Floats  # (variants,)
    cost: Floats  # (ensembles, costs), minimized; known beforehand
    enough: Floats  # (ensembles,) log of the evidence against each that a rival needs
    enough_single: float  # the same where a single variant is compared with another

    def without(self, gone: Sequence[int]) -> "Field":
        kept = self.masks & np.uint32(sum(1 << v for v in gone)) == 0
        return self._replace(masks=self.masks[kept], cost=self.cost[kept], enough=self.enough[kept])


def race(table: Table, scorer: EnsembleScorer) -> None:
    """Ask all variants, look by look; those without a chance are left out of the table.

    ValueError: limits on scores, or a judge of replies: neither can be bounded.
    """
    wanted = study_config(table.config)
    limited = [n for given in (wanted.min, wanted.max) for n in limits(given)]
    skilled = wanted.min_skill == "require"
    if table.reader or skilled or set(limited) - {"memory_gb", "latency_ms"}:
        raise ValueError(
            "study.racing=true needs benchmarks.extract=rules and no limits on scores or skill: "
            "it bounds scores that are not known yet"
        )
    if table.config.vote.rule != "majority":
        raise ValueError("study.racing=true bounds the majority vote only: take vote=majority")
    course = plan_course(scorer, LOOKS, np.random.default_rng(wanted.seed))
    inside: Rows = np.flatnonzero(scorer.mask)
    rows: Rows = np.empty(0, dtype=np.intp)
    alive, field = list(table.variants), None
    for look, new in enumerate(course.looks):
        rows = np.concatenate([rows, new])
        said = table.ask(alive, inside[rows])
        if field is None:
            if not said:
                return  # all degenerate
            labels = list(said)
            metas = [table.cost_meta(label) for label in labels]
            field = open_field(scorer, [table.variants[label] for label in labels], metas)
        silent = np.full(scorer.mask.size, UNUSABLE, dtype=np.int16)
        codes = np.stack([said.get(label, silent)[scorer.mask] for label in labels])
        gone = [v for v, label in enumerate(labels) if label not in said]
        gone += hopeless(course, look, codes, field.without(gone))
        field = field.without(gone)
        for label in [labels[v] for v in gone if labels[v] in said]:
            reason = f"racing: on no front, asked {rows.size:,} of {scorer.mask.size:,} samples"
            table.leave_out(label, reason)
        alive = [label for v, label in enumerate(labels) if v not in gone]
    table.ensure(alive)


def plan_course(scorer: EnsembleScorer, looks: int, rng: np.random.Generator) -> Course:
    """Random orders within strata, the same share of each at every look."""
    plan = rates.plan(scorer.asked, scorer.config.trust.weights)
    keys = tuple(n for n in objectives(study_config(scorer.config)) if n in plan.keys)
    columns = [plan.keys.index(key) for key in keys]
    gaps = np.flatnonzero((plan.by_gap[columns] != 0).any(axis=0))
    counted = (plan.by_rate[columns] != 0).any(axis=0)
    whole = counted & (plan.size < FEW)
    whole[np.unique(plan.gaps[gaps])] = True
    n = scorer.asked.gold.size
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
        np.cumsum(mean),
    )  # fmt: skip


def open_field(
    scorer: EnsembleScorer, variants: Sequence[Any], metas: Sequence[dict[str, Any]]
) -> Field:
    """The ensembles that limits on cost allow."""
    wanted = study_config(scorer.config)
    masks = enumeration.enumerate_ensembles(len(variants), wanted.max_members)
    masks = masks[np.bitwise_count(masks) >= wanted.min_members]
    if masks.size > MAX_ENSEMBLES:
        raise ValueError(f"study.racing: {masks.size:,} ensembles are too many to bound each")
    found = enumeration.cost_all(metas, scorer.config.latency.mode, masks)
    cost = dict(zip(("memory_gb", "latency_ms"), found, strict=True))
    allowed = np.ones(masks.size, dtype=bool)
    for name, limit in limits(wanted.max).items():
        allowed &= cost[name] <= limit
    for name, limit in limits(wanted.min).items():
        allowed &= cost[name] >= limit
    costs = [cost[n] for n in objectives(wanted) if OBJECTIVES[n] == "minimize"]
    stacked = np.stack([*costs, np.zeros(masks.size)], axis=1)
    masks, stacked, n = masks[allowed], stacked[allowed], len(variants)
    cheaper = np.array([(stacked <= own).all(axis=1).sum() for own in stacked])
    return Field(
        masks, np.array([v.precision for v in variants]), stacked,
        np.log((n + 1) * cheaper / ALPHA), float(np.log((n + 1) * n / ALPHA)),
    )  # fmt: skip


def hopeless(course: Course, look: int, codes: AnswerCodes, field: Field) -> list[int]:
    """Variants of the field that, by what was answered up to `look`, no ensemble on the front
    contains; the best single variant stays too, because the front is compared with it.

    `codes` (variants, rows of the search half); only rows asked so far are read.
    """
    if look + 1 < len(course.looks):
        lost = outclassed(course, look, codes, field)
    else:
        lost = _outside_front(course, codes, field)
    inside, alive = (
        int(np.bitwise_or.reduce(masks, initial=np.uint32(0)))
        for masks in (field.masks, field.masks[~lost])
    )
    return [v for v in range(len(codes)) if (inside & ~alive) >> v & 1]


def outclassed(course: Course, look: int, codes: AnswerCodes, field: Field) -> NDArray[np.bool_]:
    """(ensembles,): is there evidence enough that a rival is better, at no more cost?"""
    found = Evidence.at(course, look, codes, field)
    estimate = np.concatenate([-found.estimate, field.cost], axis=1)
    rivals = pareto.pareto_front(estimate, ["minimize"] * estimate.shape[1])[:RIVALS]
    dearer = (field.cost[:, None] >= field.cost[rivals]).all(axis=2)  # (ensembles, rivals)
    least = np.min([found.against(k, rivals) for k in range(len(course.keys))], axis=0)
    lost: NDArray[np.bool_] = (dearer & (least >= field.enough[:, None])).any(axis=1)
    singles = np.flatnonzero(np.bitwise_count(field.masks) == 1)
    if singles.size and "trust" in course.keys:
        trust = course.keys.index("trust")
        best = singles[found.estimate[singles, trust].argmax()]
        lost[singles] &= found.against(trust, best[None])[singles, 0] >= field.enough_single
    return lost


class Evidence(NamedTuple):
    """What a look tells of every ensemble's scores."""

    estimate: Floats  # (ensembles, keys), in percent
    known: Floats  # (ensembles, keys): the part of the score that is exact
    hits: NDArray[np.float32]  # (ensembles, counts) of the strata under way
    stake: Floats  # (keys, counts) of a hit, its weighted step in units of the largest
    pull: Floats  # (keys, counts): by what a hit has moved the means after it, in the same units
    unit: Floats  # (keys,) of a known point in the sum of means

    @classmethod
    def at(cls, course: Course, look: int, codes: AnswerCodes, field: Field) -> "Evidence":
        plan = course.plan
        columns = [plan.keys.index(key) for key in course.keys]
        per_hit = 100 * plan.by_rate[columns] / np.maximum(plan.size, 1)  # (keys, rates)
        used = (per_hit != 0).any(axis=0) & ~course.whole
        asked = np.isin(plan.row, np.concatenate(course.looks[: look + 1]))
        under_way = np.flatnonzero(asked & used[plan.rate])
        hits, known = _hits(plan, under_way, codes, field), _known(course, codes, field)
        worth = per_hit[:, plan.rate[under_way]]
        seen = np.bincount(plan.rate, asked & plan.first, minlength=plan.size.size)
        share = (plan.size / np.maximum(seen, 1))[plan.rate[under_way]]
        early = used[plan.rate] & ~np.isin(plan.row, course.looks[-1])
        steps = np.abs(per_hit[:, plan.rate] * course.step[plan.row])[:, early]
        largest = steps.max(axis=1, initial=0.0)[:, None]
        scale = np.divide(1.0, largest, out=np.zeros_like(largest), where=largest > 0)
        step = course.step[plan.row[under_way]]
        return cls(
            known + hits @ (worth * share).T, known, hits, worth * step * scale,
            worth * (_drift(course, under_way) - step) * scale, course.growth[look] * scale[:, 0],
        )  # fmt: skip

    def against(self, key: int, rivals: Rows) -> Floats:
        """(ensembles, rivals): log of the evidence that the ensemble's score is the lower one."""
        if not self.unit[key]:  # all is known
            lower = self.known[:, None, key] < self.known[rivals, key] - 1e-9
            return np.where(lower, np.inf, -np.inf)
        moved = -self.unit[key] * self.known[:, key] - self.hits @ self.pull[key]
        found = []
        for x in LAMBDAS:
            lose, win = np.log1p(-x * self.stake[key]), np.log1p(x * self.stake[key])
            both = (self.hits[rivals] * (lose + win)).astype(np.float32)
            mine, theirs = self.hits @ lose + x * moved, self.hits @ win - x * moved
            found.append(mine[:, None] + theirs[rivals] - self.hits @ both.T)
        return np.asarray(np.logaddexp.reduce(found) - np.log(len(LAMBDAS)))


def _outside_front(course: Course, codes: AnswerCodes, field: Field) -> NDArray[np.bool_]:
    """(ensembles,), once all is answered: all but the front and the best single variant."""
    hits = enumeration.count_hits(course.plan, codes, field.precision, field.masks)
    scores = rates.score_counts(course.plan, hits.T)
    values = np.stack([-scores[key] for key in course.keys] + list(field.cost.T), axis=1)
    outside = np.ones(field.masks.size, dtype=bool)
    outside[pareto.pareto_front(values, ["minimize"] * values.shape[1])] = False
    singles = np.flatnonzero(np.bitwise_count(field.masks) == 1)
    if singles.size:
        outside[singles[scores["trust"][singles].argmax()]] = False
    return outside


def _hits(plan: Plan, counts: Rows, codes: AnswerCodes, field: Field) -> NDArray[np.float32]:
    """(ensembles, counts): does the vote hit the count's target?"""
    alone = plan._replace(
        row=plan.row[counts], target=plan.target[counts], first=plan.first[counts],
        rate=np.arange(counts.size), size=np.ones(counts.size, dtype=np.int64),
    )  # fmt: skip
    return enumeration.count_hits(alone, codes, field.precision, field.masks).T.astype(np.float32)


def _known(course: Course, codes: AnswerCodes, field: Field) -> Floats:
    """(ensembles, keys): constants, rates asked whole, and gaps."""
    plan = course.plan
    counts = np.flatnonzero(course.whole[plan.rate])
    part = plan._replace(row=plan.row[counts], target=plan.target[counts],
                         first=plan.first[counts], rate=plan.rate[counts])  # fmt: skip
    hits = enumeration.count_hits(part, codes, field.precision, field.masks)
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
