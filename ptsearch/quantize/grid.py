"""Uniform grids with the conventions of the compressed-tensors format.

A weight w of a group with scale s and zero point z has the signed code
q = round(clamp(w / s + z, -2^(bits-1), 2^(bits-1) - 1)) and the value (q - z) s. Scales are rounded
to the dtype they are stored in before anything is solved, so the checkpoint holds exactly what was
solved for. Shapes: W (out, in); scale, zero (out, groups), groups = in / group_size.
"""

import hashlib
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SCALE_DTYPE = torch.bfloat16
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55)  # of a group's span


class Grid(NamedTuple):
    """Where the codes of a weight lie; float32 tensors, zeros are whole numbers."""

    scale: Tensor  # (out, groups), positive, representable in SCALE_DTYPE
    zero: Tensor  # (out, groups)
    bits: int


class Quantized(NamedTuple):
    """A quantized weight."""

    codes: Tensor  # (out, in) int8
    grid: Grid
    damp: float = 0.0  # damping that was needed, as a share of H's mean diagonal (GPTQ)

    def dense(self) -> Tensor:
        """The weight (out, in) that the codes stand for, float32."""
        return dequantize(self.codes, self.grid)


def code_range(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def columns(in_features: int, group_size: int) -> int:
    """Columns in one group; -1 = the whole row."""
    size = in_features if group_size == -1 else group_size
    if in_features % size:
        raise ValueError(f"group_size must divide in_features, got {group_size=}, {in_features=}")
    return size


def fit(W: Tensor, bits: int, group_size: int, sym: bool) -> Grid:
    """The grid that spans each group's range, zero included."""
    return spanning(*ranges(W, group_size), bits, sym)


def fit_weighted(W: Tensor, importance: Tensor, bits: int, group_size: int, sym: bool) -> Grid:
    """For each group the span, shrunk by one of SHRINKS, of least error sum_k h_k (w_k - q_k)^2.

    importance: h (in,), such as the diagonal of H. Clipping the few largest weights buys a finer
    grid for all others.
    """
    low, high = ranges(W, group_size)
    shrinks = torch.tensor(SHRINKS)[:, None, None]
    tried = spanning(low * shrinks, high * shrinks, bits, sym)
    best = np.empty(low.shape, np.int64)
    _least_error(
        W.contiguous().numpy(),
        importance.contiguous().numpy(),
        (tried.scale.numpy(), tried.zero.numpy()),
        *code_range(bits),
        best,
    )
    chosen = torch.from_numpy(best)[None]
    return Grid(tried.scale.gather(0, chosen)[0], tried.zero.gather(0, chosen)[0], bits)


def spanning(low: Tensor, high: Tensor, bits: int, sym: bool) -> Grid:
    """The grid of groups with these ranges; low, high (out, groups)."""
    bottom, top = code_range(bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    span = torch.maximum(-low, high) * 2 if sym else high - low
    scale = (span / (top - bottom)).to(SCALE_DTYPE).float()
    scale = torch.where(scale > 0, scale, torch.finfo(SCALE_DTYPE).eps)
    zero = torch.zeros_like(scale) if sym else (bottom - low / scale).round().clamp(bottom, top)
    return Grid(scale, zero, bits)


def ranges(W: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Least and largest weight of each group, (out, groups)."""
    groups = W.unflatten(1, (-1, columns(W.shape[1], group_size)))
    low, high = torch.aminmax(groups, dim=2)
    return low, high


def quantize(W: Tensor, grid: Grid, noise: Tensor | None = None) -> Tensor:
    """AnswerCodes (out, in) int8, each weight rounded to the nearest.

    With noise (out, in), uniform in [0, 1), up or down at random: right in the mean over noises
    for every weight that lies within the grid.
    """
    groups = W.unflatten(1, (grid.scale.shape[1], -1))
    scaled = groups / grid.scale[..., None] + grid.zero[..., None]
    scaled = scaled.clamp_(*code_range(grid.bits)).flatten(1)
    return (scaled.round_() if noise is None else (scaled + noise).floor_()).to(torch.int8)


def noise(W: Tensor, rounding_seed: int | None, name: str) -> Tensor | None:
    """Uniform numbers (out, in) of this seed for the linear of this name; none without a seed."""
    if rounding_seed is None:
        return None
    digest = hashlib.sha256(f"{rounding_seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(W.shape, generator=generator)


def dequantize(codes: Tensor, grid: Grid) -> Tensor:
    """Weights (out, in) float32."""
    groups = codes.unflatten(1, (grid.scale.shape[1], -1)).float()
    return ((groups - grid.zero[..., None]) * grid.scale[..., None]).flatten(1)


@numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"})
def _least_error(
    W: NDArray[np.float32],
    importance: NDArray[np.float32],
    tried: tuple[NDArray[np.float32], ...],  # scales and zeros, each (tries, out, groups)
    low: int,
    high: int,
    best: NDArray[np.int64],  # (out, groups): which try
) -> None:
    scales, zeros = tried
    tries, rows, groups = scales.shape
    size = W.shape[1] // groups
    bottom, top = np.float32(low), np.float32(high)
    for row in range(rows):
        for group in range(groups):
            weights = W[row, group * size : (group + 1) * size]
            h = importance[group * size : (group + 1) * size]
            least = np.float32(np.inf)
            best[row, group] = 0
            for k in range(tries):
                scale, zero = scales[k, row, group], zeros[k, row, group]
                error = np.float32(0)
                for i in range(size):
                    code = np.rint(min(max(weights[i] / scale + zero, bottom), top))
                    d = (code - zero) * scale - weights[i]
                    error += h[i] * d * d
                if error < least:
                    least = error
                    best[row, group] = k
