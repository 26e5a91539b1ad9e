"""What lies between a layer's products, in one pass over bf16 numbers instead of several.

torch widens, multiplies and rounds in passes of their own, each through memory: on a CPU whose
products run at their peak that is a fifth of the time. These loops round where transformers rounds.
They run on one core; `fits` says where that is all there is.

bf16 is the upper half of fp32: a number is widened by a shift and rounded to even by an addition.
"""

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor, nn

Codes = NDArray[np.uint16]  # bf16 numbers as they are stored

LOOP = {"nogil": True, "cache": True, "error_model": "numpy"}
LARGEST = np.int16(0x7FFF)


def fits(x: Tensor) -> bool:
    """Whether these loops take x: bf16 on the one CPU core that this thread has."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and torch.get_num_threads() == 1


class Norm(nn.Module):
    """x -> weight * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019, eq. 4). x: (..., d).

    As Llama's: rounded before it is multiplied with the weight, and after.
    """

    def __init__(self, norm: Any, eps: float) -> None:
        super().__init__()
        self.norm, self.eps = norm, np.float32(eps)
        self.weight = _codes(norm.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one_pass(x) if fits(x) else self.norm(x)
        return y

    def one_pass(self, x: Tensor) -> Tensor:
        """On one core, whatever there is."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        _norm(_codes(rows), self.weight, self.eps, _codes(out))
        return out.view(x.shape)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned by position: x cos + (-second half, first half) sin (Su et al., 2021, eq. 34).

    x: (1, H, T, D), cos and sin: (1, T, D). As Llama's: each product is rounded, then their sum.
    """
    tokens = x[0].transpose(0, 1)
    out = torch.empty(tokens.shape, dtype=x.dtype)
    _rotate(_codes(tokens), _codes(cos[0]), _codes(sin[0]), _codes(out))
    return out.transpose(0, 1)[None]


def softmax_(scores: Tensor) -> None:
    """scores (R, N, keys) -> their softmax over the keys, in place."""
    if fits(scores):
        _softmax(_codes(scores.view(-1, scores.shape[-1])))
    else:
        torch.softmax(scores, -1, out=scores)


def _codes(x: Tensor) -> Codes:
    return x.view(torch.int16).numpy().view(np.uint16)


@intrinsic
def _as_float(_context: Any, _bits: Any) -> Any:
    """The fp32 number of 32 bits."""
    return types.float32(types.uint32), lambda _, b, __, args: b.bitcast(args[0], ir.FloatType())


@intrinsic
def _as_bits(_context: Any, _number: Any) -> Any:
    """The 32 bits of an fp32 number."""
    return types.uint32(types.float32), lambda _, b, __, args: b.bitcast(args[0], ir.IntType(32))


@numba.njit(**LOOP)
def _widen(code: np.uint16) -> np.float32:
    number: np.float32 = _as_float(np.uint32(code) << np.uint32(16))
    return number


@numba.njit(**LOOP)
def _narrow(number: np.float32) -> np.uint16:
    """Rounded to nearest, ties to even."""
    bits = _as_bits(number)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))


@numba.njit(fastmath={"reassoc"}, **LOOP)
def _norm(x: Codes, weight: Codes, eps: np.float32, out: Codes) -> None:
    rows, d = x.shape
    for t in range(rows):
        total = np.float32(0)
        for j in range(d):
            total += _widen(x[t, j]) * _widen(x[t, j])
        scale = np.float32(1) / np.sqrt(total / np.float32(d) + eps)
        for j in range(d):
            normed = _narrow(_widen(x[t, j]) * scale)
            out[t, j] = _narrow(_widen(weight[j]) * _widen(normed))


@numba.njit(**LOOP)
def _rotate(x: Codes, cos: Codes, sin: Codes, out: Codes) -> None:
    tokens, heads, d = x.shape
    half = d // 2
    for t in range(tokens):
        for h in range(heads):
            for j in range(half):
                a, b = _widen(x[t, h, j]), _widen(x[t, h, j + half])
                left = _narrow(a * _widen(cos[t, j])), _narrow(-b * _widen(sin[t, j]))
                right = _narrow(b * _widen(cos[t, j + half])), _narrow(a * _widen(sin[t, j + half]))
                out[t, h, j] = _narrow(_widen(left[0]) + _widen(left[1]))
                out[t, h, j + half] = _narrow(_widen(right[0]) + _widen(right[1]))


@numba.njit(fastmath={"reassoc"}, **LOOP)
def _softmax(x: Codes) -> None:
    rows, keys = x.shape
    powers = np.empty(keys, np.float32)
    for t in range(rows):
        largest = _widen(_largest(x[t]))
        total = np.float32(0)
        for j in range(keys):
            powers[j] = _exp(_widen(x[t, j]) - largest)
            total += powers[j]
        share = np.float32(1) / total if abs(largest) < np.inf else np.float32(np.nan)
        for j in range(keys):
            x[t, j] = _narrow(powers[j] * share)


@numba.njit(**LOOP)
def _largest(codes: Codes) -> np.uint16:
    """The code of the largest number; a NaN counts as larger than any.

    Of negative numbers the larger has the smaller code. Integers, since a loop over the maximum of
    floating-point numbers is not vectorized.
    """
    best = np.int16(-32768)
    for j in range(codes.size):
        key = np.int16(codes[j])
        best = max(best, np.int16(key ^ ((key >> np.int16(15)) & LARGEST)))
    return np.uint16(best ^ ((best >> np.int16(15)) & LARGEST))


@numba.njit(fastmath={"contract"}, **LOOP)
def _exp(x: np.float32) -> np.float32:
    """e^x for x <= 0, below e^-87 zero: Cephes' exp2f, 2^n times a polynomial of the rest."""
    y = x * np.float32(1.4426950408889634)
    shifted = y + np.float32(12582912)  # 1.5 x 2^23: the last bits are y, rounded
    f = y - (shifted - np.float32(12582912))
    p = np.float32(1.535336188e-4)
    p = p * f + np.float32(1.339887440e-3)
    p = p * f + np.float32(9.618437357e-3)
    p = p * f + np.float32(5.550332471e-2)
    p = p * f + np.float32(2.402264791e-1)
    p = p * f + np.float32(6.931472028e-1)
    p = p * f + np.float32(1)
    bits = _as_bits(p) + (_as_bits(shifted) << np.uint32(23))
    return _as_float(bits if y > np.float32(-126) else np.uint32(0))
