"""Simultaneous intervals for differences between systems that answered the same items.

Items are resampled whole (a cluster is every sample made of one item), paired across systems, and
within strata. A statistic is linear in rates, a rate is a ratio of sums over clusters; so sums by
cluster are all that is needed, and a resample is a product with its cluster weights.
"""

from math import ceil, log2
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ptsearch.shared import Floats

AT_ONCE = 2**22  # cluster weights held at once, for the memory


class ClusterSums(NamedTuple):
    """What happened in each cluster; a system's rate r is sum(hits) / sum(sizes) over clusters."""

    hits: Floats  # (systems, clusters, rates)
    sizes: Floats  # (clusters, rates), the same for all systems
    strata: NDArray[np.intp]  # (clusters,): clusters are resampled within these


class Intervals(NamedTuple):
    """All (contrasts,), in percent; every true value lies within at once, at the asked level."""

    estimate: Floats
    low: Floats
    high: Floats
    significant: NDArray[np.bool_]  # the interval excludes 0


class Studentised(NamedTuple):
    """Contrasts of rates with their errors, and how far resamples move them in units of these."""

    estimate: Floats  # (contrasts,) in percent
    error: Floats  # (contrasts,) by the influence of each cluster, and one more that differs
    t: Floats  # (resamples, contrasts): (resampled - estimate) / resampled error


def max_t_intervals(
    sums: ClusterSums,
    coefficients: Floats,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Intervals:
    """Studentised max-t bootstrap over clusters: estimate -+ q x error, q the `level` quantile of
    the largest |resampled - estimate| / resampled error over all contrasts (Romano and Wolf 2005,
    https://doi.org/10.1111/j.1468-0262.2005.00615.x).

    `coefficients` and errors as in `studentised`. ValueError: a contrast has too few clusters to
    show even a unanimous difference.
    """
    _check(sums, coefficients, level)
    estimate, error, t = studentised(sums, coefficients, rng, resamples)
    reach = quantile(np.abs(t).max(axis=1), level) * error
    low, high = estimate - reach, estimate + reach
    return Intervals(estimate, low, high, (low > 0) | (high < 0))


def studentised(
    sums: ClusterSums, coefficients: Floats, rng: np.random.Generator, resamples: int = 2000
) -> Studentised:
    """Contrasts and their resamples.

    A contrast is the sum of `coefficients` (contrasts, systems, rates) x rates in percent; an
    error is that of its linear part, the influence of the clusters. To each variance that of one
    more cluster which differs is added (Agresti and Min 2005, https://doi.org/10.1002/sim.1781):
    where few clusters differ, resamples in which none does would else have no error at all.
    """
    asked = np.abs(coefficients).sum(axis=(0, 1)) > 0
    used = np.flatnonzero(asked & (sums.sizes.sum(axis=0) > 0))  # a rate over nobody stays 0
    hits, sizes, coefficients = sums.hits[..., used], sums.sizes[:, used], coefficients[..., used]
    contrasts, systems, rates = coefficients.shape
    weights = coefficients.reshape(contrasts, -1)
    total = sizes.sum(axis=0)
    rate = 100 * hits.sum(axis=1) / total  # (systems, rates)
    estimate = weights @ rate.ravel()
    stacked = np.moveaxis(hits, 0, 1)  # (clusters, systems, rates)
    influence = (100 * stacked - rate * sizes[:, None]) / total
    influence = influence.reshape(len(sizes), -1) @ weights.T  # (clusters, contrasts)
    floor = one_cluster(sizes, coefficients).mean_square
    table = np.concatenate([stacked.reshape(len(sizes), -1), sizes], axis=1)
    error = np.sqrt(floor + _variance(np.ones((1, len(sizes))), influence, sums.strata)[0])

    t = np.zeros((resamples, contrasts))
    step = max(1, AT_ONCE // len(sizes))
    for start in range(0, resamples, step):
        drawn = _resample(sums.strata, min(step, resamples - start), rng)
        again = (drawn @ table).reshape(len(drawn), systems + 1, rates)
        with np.errstate(invalid="ignore"):
            rates_again = 100 * again[:, :-1] / again[:, -1:]
        rates_again = np.where(again[:, -1:] > 0, rates_again, rate)
        moved = rates_again.reshape(len(drawn), -1) @ weights.T - estimate
        errors = np.sqrt(floor + _variance(drawn, influence, sums.strata))
        np.divide(moved, errors, out=t[start : start + step], where=errors > 0)
    return Studentised(estimate, error, t)


def quantile(values: Floats, level: float) -> Floats:
    """Along the first axis, the value that as many of so many resamples reach."""
    place = min(ceil((len(values) + 1) * level), len(values)) - 1
    return np.asarray(np.partition(values, place, axis=0)[place])


def clusters_needed(contrasts: int, level: float) -> int:
    """Clusters below which not even a unanimous difference is significant: a sign test's p-value,
    2^(1 - n), by Bonferroni over the contrasts.
    """
    return 1 + ceil(log2(contrasts / (1 - level)))


def _check(sums: ClusterSums, coefficients: Floats, level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if not len(coefficients):
        raise ValueError("there is nothing to compare: no contrasts")
    used = np.abs(coefficients).sum(axis=1) > 0  # (contrasts, rates)
    used = used[used.any(axis=1)]  # a score that is a constant has nothing behind it
    behind = (sums.sizes > 0).astype(np.int64) @ used.T.astype(
        np.int64
    ) > 0  # (clusters, contrasts)
    fewest = int(behind.sum(axis=0).min(initial=len(sums.sizes)))
    needed = clusters_needed(len(coefficients), level)
    if fewest < needed:
        raise ValueError(
            f"{len(coefficients)} simultaneous {100 * level:g} % intervals need at least {needed} "
            f"items behind every score, and one has {fewest}: raise benchmarks.limit or lower the "
            "level"
        )


class Flip(NamedTuple):
    """What a contrast changes by if one cluster's answers flip, (contrasts,), in percent."""

    mean_square: Floats
    typical: Floats  # of clusters that flip at random: variance per point of the contrast


def one_cluster(sizes: Floats, coefficients: Floats) -> Flip:
    """`sizes` (clusters, rates), `coefficients` (contrasts, systems, rates)."""
    total = np.maximum(sizes.sum(axis=0), 1)
    flip = sizes / total @ (100 * np.abs(coefficients).max(axis=1)).T
    touched = np.maximum((flip > 0).sum(axis=0), 1)
    squares = (flip**2).sum(axis=0)
    sums = flip.sum(axis=0)
    return Flip(
        squares / touched, np.divide(squares, sums, out=np.zeros_like(sums), where=sums > 0)
    )


def _variance(drawn: Floats, influence: Floats, strata: NDArray[np.intp]) -> Floats:
    """(resamples, contrasts): variance of the weighted sums of influences, centred by stratum."""
    variance = np.zeros((len(drawn), influence.shape[1]))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        weights, own = drawn[:, inside], influence[inside]
        centred = weights @ own**2 - (weights @ own) ** 2 / inside.size
        variance += np.maximum(centred, 0) * inside.size / max(inside.size - 1, 1)
    return variance


def _resample(strata: NDArray[np.intp], resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, clusters): how often each cluster is drawn, with replacement, in its stratum."""
    drawn = np.empty((resamples, strata.size))
    for stratum in np.unique(strata):
        inside = np.flatnonzero(strata == stratum)
        place = rng.integers(0, inside.size, (resamples, inside.size))
        place += inside.size * np.arange(resamples)[:, None]
        counts = np.bincount(place.ravel(), minlength=resamples * inside.size)
        drawn[:, inside] = counts.reshape(resamples, inside.size)
    return drawn
