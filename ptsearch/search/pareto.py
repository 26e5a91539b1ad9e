"""The Pareto front and the hypervolume that it dominates."""

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptsearch.shared import Floats


def pareto_front(values: ArrayLike, directions: Sequence[str]) -> NDArray[np.intp]:
    """Indices, ascending, of the rows of `values` (n, k) that no other row dominates.

    `directions`: minimize or maximize, for each of the k objectives. Equal rows are all kept.
    """
    values = _minimized(values, directions)
    # Ranks make sums exact: whatever dominates a row has a smaller sum and comes before it.
    columns = [np.unique(column, return_inverse=True)[1] for column in values.T]
    ranks = np.stack(columns, axis=1).astype(np.int64)
    order = np.argsort(ranks.sum(axis=1), kind="stable")
    return np.sort(order[_undominated(ranks[order], True)])


def hypervolume(values: ArrayLike, reference: ArrayLike) -> float:
    """Volume that the rows of `values` (n, k), all minimized, dominate up to `reference` (k,).

    By exclusive volumes, one objective less at each level (While, Bradstreet and Barone 2012,
    https://doi.org/10.1109/TEVC.2010.2077298). Rows not better than `reference` add nothing.
    """
    reference = np.asarray(reference, dtype=np.float64)
    points = _minimized(values, ["minimize"] * reference.size)
    points = np.unique(points[(points < reference).all(axis=1)], axis=0)
    if not len(points):
        return 0.0
    return float(_volume(points[pareto_front(points, ["minimize"] * reference.size)], reference))


def _minimized(values: ArrayLike, directions: Sequence[str]) -> Floats:
    """`values` (n, k) with the maximized columns negated."""
    signs = {"minimize": 1.0, "maximize": -1.0}
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != len(directions):
        raise ValueError(
            f"values must be (n, {len(directions)}), one column a direction, got {values.shape}"
        )
    if np.isnan(values).any():
        raise ValueError("an objective is NaN: it cannot be compared")
    return np.ascontiguousarray(values * [signs[direction] for direction in directions])


@numba.njit(cache=True)
def _undominated(points: NDArray[np.int64] | Floats, keep_equal: bool) -> NDArray[np.bool_]:
    """(n,): rows of `points` (n, k), sorted by sum, that no row before them dominates.

    With `keep_equal` off, equal rows but the first count as dominated too.
    """
    n, k = points.shape
    front = np.empty_like(points)
    kept = np.zeros(n, dtype=np.bool_)
    size = 0
    for i in range(n):
        for j in range(size):
            as_good, better = True, not keep_equal
            for d in range(k):
                as_good &= front[j, d] <= points[i, d]
                better |= front[j, d] < points[i, d]
            if as_good and better:
                for d in range(k):  # what dominates much is asked early
                    front[j, d], front[j // 2, d] = front[j // 2, d], front[j, d]
                break
        else:
            front[size] = points[i]
            size += 1
            kept[i] = True
    return kept


@numba.njit(cache=True)
def _volume(points: Floats, reference: Floats) -> float:
    """Hypervolume of `points` (n, k), each better than `reference` in every objective."""
    n, k = points.shape
    if k == 1:
        return float(reference[0] - points[:, 0].min())
    volume = 0.0
    if k == 2:
        lowest = reference[1]
        for i in np.argsort(points[:, 0]):
            if points[i, 1] < lowest:
                volume += (reference[0] - points[i, 0]) * (lowest - points[i, 1])
                lowest = points[i, 1]
        return volume
    points = points[np.argsort(-points[:, k - 1])]  # the worst in the last objective first
    for i in range(n):
        exclusive = np.prod(reference[: k - 1] - points[i, : k - 1])
        if i + 1 < n:
            rest = np.maximum(points[i + 1 :, : k - 1], points[i, : k - 1])
            rest = rest[np.argsort(rest.sum(axis=1))]
            exclusive -= _volume(rest[_undominated(rest, False)], reference[: k - 1])
        volume += (reference[k - 1] - points[i, k - 1]) * exclusive
    return volume
