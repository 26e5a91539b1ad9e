"""GPTQ (Frantar et al., arXiv 2210.17323), in the LDL form of QuIP (Chee et al., arXiv 2307.13304).

With H = (U + I) D (U + I)^T, U strictly upper triangular, columns are rounded in turn, each after
the errors of those before it were fed back: q_k = Q(w_k + sum_{j<k} (w_j - q_j) U_jk). That equals
GPTQ's update through the Cholesky factor of the inverse of H (QuIP, theorem 6) and needs no
inverse.

Groups are fitted to the fed-back weights when their first column is reached, or, with
`actorder="static"`, to the original weights before the columns are taken in order of falling
diagonal of H.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsearch.quantize import grid
from ptsearch.quantize.grid import Grid, Quantized
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

LEAF = 64  # columns solved one by one where groups are fixed beforehand
TILE = 256  # rows that are worked on at once: they fill the vector units and fit the cache
AGREE_ON = ("seed", "damp_percent", "actorder")  # one factor serves all group sizes
MIN_DAMP = 1e-4  # where H must be well conditioned
MAX_DAMP = 1.0  # of the mean diagonal; at that H is close to a multiple of the identity


class Factor(NamedTuple):
    """What the solver needs of one H; shared by all bit-widths and group sizes."""

    U: Tensor  # (in, in) strictly upper triangular, rows and columns in the order of `order`
    order: Tensor  # (in,) columns as they are taken
    importance: Tensor  # (in,) diagonal of H, in the original order
    damp: float  # what was added to the diagonal, as a share of its mean


def factor(H: Tensor, damp_percent: float, actorder: str) -> Factor:
    """Factor H (in, in), damped; the damping is raised tenfold until H is positive definite."""
    n = H.shape[0]
    order = torch.arange(n)
    if actorder != "none":
        order = torch.argsort(H.diagonal(), descending=True, stable=True)
    mean = H.diagonal().mean().item()
    if not mean > 0:  # nothing reached this layer: all columns weigh the same, as in rounding
        return Factor(torch.zeros_like(H), order, torch.ones(n), damp_percent)
    importance, damp = H.diagonal().clone(), damp_percent
    backward = order.flip(0)
    reversed_H = H[backward[:, None], backward]  # of this size at most two are held at a time
    while True:
        reversed_H.diagonal().copy_(importance[backward] + damp * mean)
        L, failed = torch.linalg.cholesky_ex(reversed_H)
        if not failed and bool(L.isfinite().all()):
            break
        if damp >= MAX_DAMP:
            raise ValueError(f"H is not positive definite even with {damp=:g}")
        damp = min(max(damp * 10, 1e-3), MAX_DAMP)
    del reversed_H
    U = L.flip(0, 1)  # H = U U^T, U upper triangular; its diagonal becomes D
    U.div_(U.diagonal().clone())
    U.diagonal().zero_()
    return Factor(U, order, importance, damp)


def damped(H: Tensor, damp_percent: float) -> Tensor:
    """H with a share of its mean diagonal added; the identity where nothing reached the layer."""
    mean = H.diagonal().mean().item()
    if not mean > 0:
        return torch.eye(len(H))
    return H + max(damp_percent, MIN_DAMP) * mean * torch.eye(len(H))


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Quantized]]:
    """Each variant's linears; they agree on damp_percent and actorder."""
    shared = factor(group.H, variants[0].damp_percent, variants[0].actorder)
    return [
        {
            name: quantize(
                W, shared, v.bits, v.group_size, v.sym, grid.noise(W, v.rounding_seed, name)
            )
            for name, W in group.weights.items()
        }
        for v in variants
    ]


def quantize(
    W: Tensor,
    factor: Factor,
    bits: int,
    group_size: int,
    sym: bool,
    noise: Tensor | None = None,
) -> Quantized:
    """W (out, in) float32, rounded with error feedback; `noise` as in `grid.quantize`."""
    rows, n = W.shape
    size = grid.columns(n, group_size)
    fixed = size == n or bool((factor.order != torch.arange(n)).any())
    if fixed:
        fitted = grid.fit_weighted(W, factor.importance, bits, group_size, sym)
        scale, zero = fitted.scale.T.contiguous(), fitted.zero.T.contiguous()
    else:  # filled group by group
        scale, zero = torch.empty(n // size, rows), torch.empty(n // size, rows)
    Wt = W.T[factor.order].contiguous()
    updated, error = Wt.clone(), torch.empty_like(Wt)
    codes = torch.empty(n, rows, dtype=torch.int8)
    state = _State(
        Wt.numpy(),
        updated.numpy(),
        error.numpy(),
        codes.numpy(),
        factor.U.numpy(),
        np.empty((0, 0), np.float32)
        if noise is None
        else noise.T[factor.order].contiguous().numpy(),
        (scale.numpy(), zero.numpy(), (factor.order // size).numpy()),
    )
    leaf = LEAF if fixed else size

    for start, middle, stop in _halves(0, n, leaf):
        if middle < stop:
            updated[middle:stop].addmm_(factor.U[start:middle, middle:stop].T, error[start:middle])
            continue
        if not fixed:
            # where this group would go if nothing in it were rounded: what GPTQ fits it to
            fed_back = updated[start:stop] - Wt[start:stop]
            within = factor.U[start:stop, start:stop].T
            moved = torch.linalg.solve_triangular(within, fed_back, upper=False, unitriangular=True)
            group = grid.fit_weighted(
                (Wt[start:stop] + moved).T, factor.importance[start:stop], bits, -1, sym
            )
            scale[start // size], zero[start // size] = group.scale[:, 0], group.zero[:, 0]
        _solve_leaf(state, *grid.code_range(bits), start, stop)

    ordered = torch.empty_like(codes)
    ordered[factor.order] = codes
    return Quantized(
        ordered.T.contiguous(), Grid(scale.T.contiguous(), zero.T.contiguous(), bits), factor.damp
    )


def _halves(start: int, stop: int, leaf: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, stop) of each leaf in turn, and (start, middle, stop) where the errors of a
    first half reach the second in one matrix product.
    """
    leaves = -(-(stop - start) // leaf)
    if leaves <= 1:
        yield start, stop, stop
        return
    middle = start + leaves // 2 * leaf
    yield from _halves(start, middle, leaf)
    yield start, middle, stop
    yield from _halves(middle, stop, leaf)


class _State(NamedTuple):
    """Arrays of one solution, (in, out) where not said, columns in the order they are taken."""

    W: NDArray[np.float32]
    updated: NDArray[np.float32]  # W with the errors so far fed back
    error: NDArray[np.float32]  # W - value of the code
    codes: NDArray[np.int8]
    U: NDArray[np.float32]  # (in, in)
    noise: NDArray[np.float32]  # in [0, 1), or empty: round to nearest
    grid: tuple[NDArray[np.generic], ...]  # scale, zero (groups, out), columns' groups (in,)


@numba.njit(nogil=True, cache=True)
def _solve_leaf(state: _State, low: int, high: int, start: int, stop: int) -> None:
    """Round columns start..stop one after the other; rows are independent."""
    W, updated, error, codes, U, noise, (scale, zero, group_of) = state
    nearest = noise.size == 0
    bottom, top = np.float32(low), np.float32(high)
    rows = W.shape[1]
    for first in range(0, rows, TILE):
        last = min(rows, first + TILE)
        for k in range(start, stop):
            g = group_of[k]
            for r in range(first, last):
                wanted = updated[k, r] / scale[g, r] + zero[g, r]
                inside = min(max(wanted, bottom), top)
                code = np.rint(inside) if nearest else np.floor(inside + noise[k, r])
                codes[k, r] = np.int8(code)
                error[k, r] = W[k, r] - (code - zero[g, r]) * scale[g, r]
            for later in range(k + 1, stop):
                u = U[k, later]
                for r in range(first, last):
                    updated[later, r] += error[k, r] * u


METHOD = Method("gptq", solve, needs=("hessian",), stochastic=True, agree_on=AGREE_ON)
