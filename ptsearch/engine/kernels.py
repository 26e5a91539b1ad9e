"""Loops over bf16 numbers that torch makes several passes through memory for.

bf16 is the upper half of fp32: a number is widened by a shift, and rounded to even by an addition.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

Codes = NDArray[np.uint16]  # bf16 numbers as they are stored

LARGEST = np.int16(0x7FFF)


# mypy does not know that numba passes an intrinsic's context.
@intrinsic
def _as_float(_context: Any, _bits: Any) -> Any:
    """The fp32 number of 32 bits."""
    return types.float32(types.uint32), lambda _, b, __, args: b.bitcast(args[0], ir.FloatType())


@intrinsic
def _as_bits(_context: Any, _number: Any) -> Any:
    """The 32 bits of an fp32 number."""
    return types.uint32(types.float32), lambda _, b, __, args: b.bitcast(args[0], ir.IntType(32))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _widen(code: np.uint16) -> np.float32:
    number: np.float32 = _as_float(np.uint32(code) << np.uint32(16))  # type: ignore[call-arg]
    return number


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _narrow(number: np.float32) -> np.uint16:
    """Rounded to nearest, ties to even."""
    bits: np.uint32 = _as_bits(number)  # type: ignore[call-arg]
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))


@numba.njit(fastmath={"reassoc"}, nogil=True, cache=True, error_model="numpy")
def norm(x: Codes, weight: Codes, eps: np.float32, out: Codes) -> None:
    """out = weight x / sqrt(mean(x^2) + eps). x, out: (rows, d); weight: (d,)."""
    rows, d = x.shape
    for t in range(rows):
        total = np.float32(0)
        for j in range(d):
            total += _widen(x[t, j]) * _widen(x[t, j])
        scale = np.float32(1) / np.sqrt(total / np.float32(d) + eps)
        for j in range(d):
            normed = _narrow(_widen(x[t, j]) * scale)
            out[t, j] = _narrow(_widen(weight[j]) * _widen(normed))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def rotate(x: Codes, cos: Codes, sin: Codes, out: Codes) -> None:
    """out = x cos + (-second half, first half) sin. x, out: (T, H, D); cos, sin: (T, D)."""
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


@numba.njit(fastmath={"reassoc"}, nogil=True, cache=True, error_model="numpy")
def softmax(x: Codes) -> None:
    """x (rows, keys) -> softmax over the keys, in place; a row with NaN or inf becomes NaN."""
    rows, keys = x.shape
    powers = np.empty(keys, np.float32)
    for t in range(rows):
        largest = _widen(_largest(x[t]))
        total = np.float32(0)
        for j in range(keys):
            powers[j] = _exp(_widen(x[t, j]) - largest)
            total += powers[j]
        share = np.float32(1) / total
        for j in range(keys):
            x[t, j] = _narrow(powers[j] * share)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _largest(codes: Codes) -> np.uint16:
    """The code of the largest number.

    Of negative numbers the larger has the smaller code. Integers, since a loop over the maximum of
    floating-point numbers is not vectorized.
    """
    best = np.int16(-32768)
    for j in range(codes.size):
        key = np.int16(codes[j])
        best = max(best, np.int16(key ^ ((key >> np.int16(15)) & LARGEST)))
    return np.uint16(best ^ ((best >> np.int16(15)) & LARGEST))


@numba.njit(fastmath={"contract"}, nogil=True, cache=True, error_model="numpy")
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
    bits = _as_bits(p) + (_as_bits(shifted) << np.uint32(23))  # type: ignore[call-arg]
    power: np.float32 = _as_float(np.uint32(0) if y < np.float32(-126) else bits)
    return power
