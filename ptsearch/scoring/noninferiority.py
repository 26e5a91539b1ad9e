"""Whether one system is at most a margin worse than another that answered the same items.

Two bounds of each difference, in percent points, positive where the second system is better:

* `low` is for claiming that a score is kept: its one-sided error is at most 5 % for each score by
  itself, and a pass needs all of them, so the error of the pass is at most 5 % too (an
  intersection-union test, Berger 1982);
* `high` is for claiming that a score is lost: its one-sided error is at most 5 % for all scores
  together, because one of them suffices.

Both are bounds of the studentised bootstrap over items. Where hardly any item differs, a resample
knows nothing of the items that would: `low` is a score bound as Tango's, whose variance is at least
what it would be if that were the true difference. A gap (DPD, EOD) is the largest of signed
differences, and which one that is may be unsure: `low` then is the least over those that it may be
for the second system, `high` the most over those that it may be for the first. The other system's
gap is at least each of its signed differences: that which is largest as observed, or the same one,
whichever bounds better.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.scoring import intervals, rates
from ptsearch.scoring.intervals import ClusterSums
from ptsearch.scoring.rates import Plan
from ptsearch.shared import Floats

LEVEL = 0.95  # one-sided
Z = 1.645  # of a normal distribution, at that level
UNSURE = 2.58  # errors within which another signed difference may be the largest
MOST_SIGNS = 1024  # combinations of signed differences that are looked at
LESS_IS_BETTER = (".dpd", ".eod", "refusal_rate")  # how the keys of such scores end
FACTORS = np.geomspace(1, 1000, 301)  # times the items, for how many would decide
RESAMPLES, BISECTIONS = 2000, 50


class Bounds(NamedTuple):
    """One score's difference, second system less first; higher is better."""

    estimate: float
    low: float
    high: float
    factor: float  # times the items at which it would be decided; inf = beyond what is looked at


class _Family(NamedTuple):
    """Contrasts of one key: as observed, then those that bound it below and above."""

    coefficients: Floats  # (contrasts, systems, rates)
    lower: range  # their places, `pairs` of signs; empty = too many are unsure
    upper: range


def bounds(
    plan: Plan,
    sums: ClusterSums,
    keys: Sequence[str],
    margin: float,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> dict[str, Bounds]:
    """By key, of the two systems in `sums`; every key must be estimable for both."""
    observed = rates.sides(plan, sums.hits.sum(axis=1))  # (2, gaps, 4)
    used = (plan.by_gap[[plan.keys.index(key) for key in keys]] != 0).any(axis=0)
    may_be = _may_be(plan, sums, observed, used)
    families = [_family(plan, observed.argmax(axis=-1), may_be, key) for key in keys]
    coefficients = np.concatenate([family.coefficients for family in families])
    behind = (sums.sizes[:, np.abs(coefficients).sum(axis=(0, 1)) > 0] > 0).any(axis=1)
    sums = ClusterSums(sums.hits[:, behind], sums.sizes[behind], sums.strata[behind])
    found = intervals.studentised(sums, coefficients, rng, resamples)
    flip = intervals.one_cluster(sums.sizes, coefficients)
    reach = np.maximum(intervals.quantile(found.t, LEVEL), Z)  # of each by itself
    joint = max(Z, float(intervals.quantile((-found.t).max(axis=1), LEVEL)))
    low = _low(found.estimate, found.error**2, flip, reach)
    high = found.estimate + joint * found.error
    bounded, start = {}, 0
    for key, family in zip(keys, families, strict=True):
        below, above = (np.array(part, dtype=int).reshape(2, -1) + start for part in family[1:])
        at = intervals.Flip(flip.mean_square[start], flip.typical[start])
        variance = found.error[start] ** 2 / FACTORS
        less = intervals.Flip(at.mean_square / FACTORS**2, at.typical / FACTORS)
        kept = _low(found.estimate[start], variance, less, reach[start]) > -margin
        lost = found.estimate[start] + joint * np.sqrt(variance) < -margin
        decided = np.flatnonzero(kept | lost)
        bounded[key] = Bounds(
            float(found.estimate[start]),
            float(low[below].max(axis=0).min() if below.size else -np.inf),
            float(high[above].min(axis=0).max() if above.size else np.inf),
            float(FACTORS[decided[0]]) if decided.size else np.inf,
        )
        start += len(family.coefficients)
    return bounded


def _low(estimate: Floats, variance: Floats, flip: intervals.Flip, reach: Floats) -> Floats:
    """The least difference that is not refuted: the L at which estimate - L = reach x error, where
    the error is the observed one or, if that is larger, what it must be if L is true.

    In units of a typical flip, so many losses and gains have happened; the gains that are likeliest
    if the losses are -L more are the root of a quadratic (Tango 1998, section 3,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8%3C891::AID-SIM780%3E3.0.CO;2-B).
    """
    unit, floor = np.maximum(flip.typical, 1e-12), flip.mean_square
    differing = np.maximum(variance - floor, 0) / unit**2
    gains = np.maximum(differing + estimate / unit, 0) / 2
    near, far = np.zeros_like(variance), 10 * reach * (np.sqrt(variance) + reach * unit)
    for _ in range(BISECTIONS):
        middle = (near + far) / 2
        more = np.maximum(middle - estimate, 0) / unit
        part = differing - 2 * more
        expected = more + (part + np.sqrt(part**2 + 8 * gains * more)) / 2
        error = np.sqrt(np.maximum(variance, expected * unit**2 + floor))
        inside = middle < reach * error
        near, far = np.where(inside, middle, near), np.where(inside, far, middle)
    return np.asarray(estimate - far)


def _may_be(
    plan: Plan, sums: ClusterSums, observed: Floats, used: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(systems, gaps, 4): which signed differences may be the largest of a used gap."""
    largest = observed.argmax(axis=-1)
    may_be = np.arange(4) == largest[..., None]
    for gap in np.flatnonzero(used):
        one = plan.gaps[gap]
        ways = 2 if (one[0] == one[1]).all() else 4  # DPD has one difference, not two
        slope = np.zeros((4, plan.size.size))
        for side in range(4):
            plus, minus = one[side // 2] if side % 2 == 0 else one[side // 2][::-1]
            slope[side, [plus, minus]] = 1.0, -1.0
        for system in range(len(sums.hits)):
            alone = sums._replace(hits=sums.hits[system : system + 1])
            less = (slope[largest[system, gap]] - slope[:ways])[:, None]
            found = intervals.studentised(alone, less, np.random.default_rng(0), resamples=0)
            may_be[system, gap, :ways] |= found.estimate <= UNSURE * found.error
    return may_be


def _family(plan: Plan, largest: NDArray[np.intp], may_be: NDArray[np.bool_], key: str) -> _Family:
    """The contrasts that bound one key. `largest` (2, gaps): what is the largest as observed."""
    column, sign = plan.keys.index(key), -1.0 if key.endswith(LESS_IS_BETTER) else 1.0
    first, second = may_be
    below, above = _signs(plan, column, second), _signs(plan, column, first)

    def contrast(sides: NDArray[np.intp]) -> Floats:
        """`sides` (contrasts, 2, gaps)."""
        slope = sign * rates.slopes_on(plan, sides)[:, :, column]  # (contrasts, 2, rates)
        return np.stack([-slope[:, 0], slope[:, 1]], axis=1)

    def pairs(signs: NDArray[np.intp], other: int) -> NDArray[np.intp]:
        """(2 x combinations, 2, gaps): the other system as observed, then with the same signs."""
        both = np.concatenate([np.broadcast_to(largest[other], signs.shape), signs])
        return np.stack([both, np.tile(signs, (2, 1))] if other == 0 else
                        [np.tile(signs, (2, 1)), both], axis=1)  # fmt: skip

    under, over = pairs(below, 0), pairs(above, 1)
    coefficients = contrast(np.concatenate([largest[None], under, over]))
    start = 1 + len(under)
    return _Family(coefficients, range(1, start), range(start, start + len(over)))


def _signs(plan: Plan, column: int, may_be: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(combinations, gaps): of the sides that each gap behind a score may have; none if they are
    more than `MOST_SIGNS`.
    """
    used = plan.by_gap[column] != 0
    choices = [np.flatnonzero(row) if u else [0] for row, u in zip(may_be, used, strict=True)]
    if np.prod([len(each) for each in choices]) > MOST_SIGNS:
        return np.empty((0, len(choices)), dtype=np.intp)
    signs = list(product(*choices))
    return np.array(signs, dtype=np.intp).reshape(len(signs), len(choices))
