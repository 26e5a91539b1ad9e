"""Loops that torch makes several passes through memory, or many calls, for.

bf16 is the upper half of fp32: a number is widened by a shift, and rounded to even by an addition.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Codes = NDArray[np.uint16]  # bf16 numbers as they are stored
Floats = NDArray[np.float32]
Places = NDArray[np.int64]

LARGEST = np.int16(0x7FFF)
TOGETHER = 256  # numbers that are added up before their sum is added to the whole


# mypy does not know that numba passes an intrinsic's context.
@intrinsic
def _as_float(_context: Any, _bits: Any) -> Any:
    """The fp32 number of 32 bits."""
    return types.float32(types.uint32), lambda _, b, __, args: b.bitcast(args[0], ir.FloatType())


@intrinsic
def _as_bits(_context: Any, _number: Any) -> Any:
    """The 32 bits of an fp32 number."""
    return types.uint32(types.float32), lambda _, b, __, args: b.bitcast(args[0], ir.IntType(32))


@intrinsic
def _copy(_context: Any, _to: Any, _from: Any, _bytes: Any) -> Any:
    """Bytes from one address to another."""

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        to, source = (builder.inttoptr(address, pointer) for address in args[:2])
        cgutils.raw_memcpy(builder, to, source, args[2], 1)  # type: ignore[no-untyped-call]
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@numba.njit(nogil=True, cache=True)
def _move(to: int, source: int, size: int) -> None:
    _copy(to, source, size)  # type: ignore[call-arg]


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
def add(x: Codes, y: Codes) -> None:
    """x += y. (rows, d) each."""
    for t in range(len(x)):
        for j in range(x.shape[1]):
            x[t, j] = _narrow(_widen(x[t, j]) + _widen(y[t, j]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def rotate(x: Codes, cos: Codes, sin: Codes, place: Places, out: Codes) -> None:
    """x cos + (-second half, first half) sin of head h of token t, to row place[t H + h] of out.

    x: (T, H, D); cos, sin: (T, D); out: (rows, D).
    """
    tokens, heads, d = x.shape
    half = d // 2
    for t in range(tokens):
        for h in range(heads):
            row = place[t * heads + h]
            for j in range(half):
                a, b = _widen(x[t, h, j]), _widen(x[t, h, j + half])
                left = _narrow(a * _widen(cos[t, j])), _narrow(-b * _widen(sin[t, j]))
                right = _narrow(b * _widen(cos[t, j + half])), _narrow(a * _widen(sin[t, j + half]))
                out[row, j] = _narrow(_widen(left[0]) + _widen(left[1]))
                out[row, j + half] = _narrow(_widen(right[0]) + _widen(right[1]))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def take(x: Codes, place: Places, out: Codes) -> None:
    """out[i] = x[place[i]]. x: (rows, D), out: (n, D)."""
    size = x.shape[1] * x.itemsize
    for i in range(place.size):
        _move(out.ctypes.data + i * size, x.ctypes.data + place[i] * size, size)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def softmax(x: Codes) -> None:
    """x (rows, keys) -> softmax over the keys, in place; a row with NaN or inf becomes NaN."""
    powers = np.empty(x.shape[1], np.float32)
    for t in range(len(x)):
        _softmax(x[t], np.float32(1), powers)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def softmax_seen(x: Codes, first: Places, end: Places, scale: np.float32) -> None:
    """The same of scale x over the keys first <= key < end; zero elsewhere.

    first, end: (n,), of which row t of x has number t mod n.
    """
    powers = np.empty(x.shape[1], np.float32)
    for t in range(len(x)):
        low, high = first[t % first.size], end[t % end.size]
        x[t, :low] = 0
        _softmax(x[t, low:high], scale, powers)
        x[t, high:] = 0


@numba.njit(fastmath={"reassoc"}, nogil=True, cache=True, error_model="numpy")
def _softmax(x: Codes, scale: np.float32, powers: Floats) -> None:
    largest = _widen(_largest(x))
    total = np.float32(0)
    for j in range(x.size):
        powers[j] = _exp((_widen(x[j]) - largest) * scale)
        total += powers[j]
    share = np.float32(1) / total
    for j in range(x.size):
        x[j] = _narrow(powers[j] * share)


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


@numba.njit(nogil=True, cache=True, error_model="numpy")
def peaks(x: Floats, largest: Floats, where: Places) -> None:
    """The largest number of each column of x (rows, columns), and its first row; NaN if one is."""
    rows, columns = x.shape
    largest[:], where[:] = -np.inf, 0
    for i in range(rows):
        for j in range(columns):
            more = x[i, j] > largest[j] or np.isnan(x[i, j])
            largest[j] = x[i, j] if more else largest[j]
            where[j] = i if more else where[j]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def logsumexp(x: Floats, out: Floats) -> None:
    """log sum exp of each column of x (rows, columns); NaN or inf where one is NaN or inf."""
    rows, columns = x.shape
    largest, total, part = np.full(columns, -np.inf, np.float32), np.zeros_like(out), out
    wrong = np.zeros_like(out)
    for i in range(rows):
        for j in range(columns):
            largest[j] = max(largest[j], x[i, j])
            wrong[j] = x[i, j] if np.isnan(x[i, j]) else wrong[j]
    for low in range(0, rows, TOGETHER):
        part[:] = 0
        for i in range(low, min(rows, low + TOGETHER)):
            for j in range(columns):
                part[j] += _exp(x[i, j] - largest[j])
        for j in range(columns):
            total[j] += part[j]
    for j in range(columns):
        out[j] = largest[j] + np.log(total[j]) + wrong[j]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def gather(runs: Places, sources: Places, heads: int, size: int, out: int) -> None:
    """Copy runs of rows of `size` bytes, of each head, to the address `out`.

    runs (n, 5): the row of `out` that a run's first goes to, of the first head; rows from one head
    of `out` to the next; the source; its first row; how many. sources (s, 3): address, bytes from
    one head to the next, and from one row to the next.
    """
    for head in range(heads):
        for row, apart, source, first, count in runs:
            address, next_head, next_row = sources[source]
            to, at = (
                out + (row + head * apart) * size,
                address + head * next_head + first * next_row,
            )
            if next_row == size:
                _move(to, at, count * size)
            else:
                for k in range(count):
                    _move(to + k * size, at + k * next_row, size)
