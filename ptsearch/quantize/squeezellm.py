"""SqueezeLLM (Kim et al., arXiv 2306.07629): a codebook for each row, and sparse outliers.

The 2^bits values of a row's codebook are the optimum of k-means in one dimension, weighted with the
diagonal of the Fisher information (equation 6); found exactly, by dynamic programming over the
sorted weights. The most sensitive and the largest weights of a matrix (section 4.2) are stored as
they are and left out of the codebook.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsearch.models import coded
from ptsearch.models.coded import Coded
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

SENSITIVE, LARGEST = 0.0005, 0.004  # shares of a matrix: together the paper's 0.45 %
FLOOR = 1e-6  # of the mean sensitivity: what no sample is sensitive to still has a value


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Coded]]:
    """Each variant's linears."""
    return [
        {name: quantize(W, group.fisher[name], v.bits) for name, W in group.weights.items()}
        for v in variants
    ]


def quantize(
    W: Tensor, fisher: Tensor, bits: int, shares: tuple[float, float] = (SENSITIVE, LARGEST)
) -> Coded:
    """W (out, in), fisher (out, in); `shares` of the weights are kept for sensitivity, for size."""
    kept = torch.zeros(W.numel(), dtype=torch.bool)
    for what, share in zip((fisher, W.abs()), shares, strict=True):
        kept[what.flatten().topk(int(share * W.numel())).indices] = True
    kept = kept.view(W.shape)
    weight = fisher + FLOOR * fisher.mean() if bool(fisher.any()) else torch.ones_like(W)
    weight = torch.where(kept, 0.0, weight / weight.mean())
    book = np.zeros((len(W), 1 << bits), np.float32)
    _books(W.double().numpy(), weight.double().numpy(), book)
    stored = torch.from_numpy(book).to(torch.float16)
    middles = (stored[:, 1:].double() + stored[:, :-1].double()) / 2
    found = torch.searchsorted(middles, W.double().contiguous())
    tensors = {
        "codes": coded.pack(found.numpy(), bits),
        "book": stored,
        "outlier_counts": kept.sum(1, dtype=torch.int32),
        "outlier_columns": kept.nonzero()[:, 1].to(torch.int32),
        "outlier_values": W[kept].to(torch.float16),
    }
    return Coded("codebook", bits, (W.shape[0], W.shape[1]), tensors)


@numba.njit(nogil=True, cache=True)
def _books(W: NDArray[np.float64], weight: NDArray[np.float64], book: NDArray[np.float32]) -> None:
    for row in range(len(W)):
        order = np.argsort(W[row])
        book[row] = kmeans(W[row][order], weight[row][order], book.shape[1])


@numba.njit(nogil=True, cache=True)
def kmeans(x: NDArray[np.float64], h: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Rising centres (k,) of least sum_i h_i min_c (x_i - c)^2; x (n,) sorted, h (n,) >= 0.

    least[c][j] = min_i least[c - 1][i] + cost(i, j) over the first j points in c clusters; the best
    i rises with j (Wang and Song, The R Journal 3/2, 2011), so each c takes O(n log n).
    """
    n = len(x)
    sums = np.zeros((3, n + 1))  # of h, h x, h x^2 before each point
    for i in range(n):
        sums[0, i + 1] = sums[0, i] + h[i]
        sums[1, i + 1] = sums[1, i] + h[i] * x[i]
        sums[2, i + 1] = sums[2, i] + h[i] * x[i] * x[i]
    least = np.full(n + 1, np.inf)
    least[0] = 0.0
    came = np.zeros((k + 1, n + 1), np.int32)
    stack = np.empty((64, 4), np.int64)
    for c in range(1, k + 1):
        before, least = least, np.full(n + 1, np.inf)
        stack[0] = 0, n, 0, n
        top = 1
        while top:
            top -= 1
            low, high, first, last = stack[top]
            j = (low + high) // 2
            best = first
            for i in range(first, min(last, j) + 1):
                cost = before[i] + _spread(sums, i, j)
                if cost < least[j]:
                    least[j], best = cost, i
            came[c, j] = best
            if low < j:
                stack[top] = low, j - 1, first, best
                top += 1
            if j < high:
                stack[top] = j + 1, high, best, last
                top += 1
    return _centres(sums, came, x)


@numba.njit(nogil=True, cache=True)
def _spread(sums: NDArray[np.float64], i: int, j: int) -> float:
    """Cost of points i..j in one cluster."""
    total = sums[0, j] - sums[0, i]
    if total <= 0:
        return 0.0
    mass = sums[1, j] - sums[1, i]
    return max(0.0, sums[2, j] - sums[2, i] - mass * mass / total)


@numba.njit(nogil=True, cache=True)
def _centres(
    sums: NDArray[np.float64], came: NDArray[np.int32], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Walk back from the last point; an empty cluster takes its neighbour's centre."""
    k, j = len(came) - 1, len(x)
    centres = np.empty(k)
    for c in range(k, 0, -1):
        i = came[c, j]
        total = sums[0, j] - sums[0, i]
        if total > 0:
            centres[c - 1] = (sums[1, j] - sums[1, i]) / total
        else:
            centres[c - 1] = centres[c] if c < k else x[-1]
        j = i
    return centres


METHOD = Method("squeezellm", solve, needs=("gradients",), storage="codes", grouped=False)
