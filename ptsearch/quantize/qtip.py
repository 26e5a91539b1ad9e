"""QTIP-style (Tseng et al., arXiv 2406.11235): incoherence, then trellis-coded quantization.

The input side is turned by a random orthogonal matrix, which makes weights nearly normal; then
blocks of columns are coded in turn, each after the errors of those before it were fed back (block
LDLQ, algorithm 5). Within a block the codes of 16 x 16 weights are a path through a trellis of
2^STATE_BITS states, bits a weight; the best path is found exactly (Viterbi).
"""

import hashlib
from collections.abc import Sequence
from math import gcd

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsearch.models import coded
from ptsearch.models.coded import Coded
from ptsearch.quantize import gptq
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

LANES = 16  # sequences that are coded side by side: they fill the vector units
VALUES = coded.trellis_values(np.arange(1 << coded.STATE_BITS))


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Coded]]:
    """Each variant's linears; they agree on seed and damp_percent."""
    first, width = variants[0], len(group.H)
    name = next(iter(group.weights))
    digest = hashlib.sha256(f"{first.seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    signs = torch.randint(0, 2, (1, width), generator=generator)
    s = signs[0].float() * 2 - 1
    H = coded.rotate(coded.rotate(group.H, s).T, s)
    factor = gptq.factor((H + H.T) / 2, first.damp_percent, "none")
    stored = coded.pack(signs.numpy(), 1)
    return [
        {
            name: quantize(coded.rotate(W, s), H, factor, v.bits, stored)
            for name, W in group.weights.items()
        }
        for v in variants
    ]


def quantize(W: Tensor, H: Tensor, factor: gptq.Factor, bits: int, signs: Tensor) -> Coded:
    """W (out, in) and H (in, in) are turned already; `signs` (1, in / 8) is what turned them."""
    rows, n = W.shape
    C = gcd(n, coded.BLOCK)
    scale = (W.square().mean(1) * (1 - 4.0**-bits)).sqrt().clamp(min=1e-7).to(torch.float16)
    s = scale.float()[:, None]
    importance = (s.expand(rows, C) / s.mean()).square().contiguous()
    unit = factor.U + torch.eye(n)
    error, found, initial = torch.zeros_like(W), [], []
    for start in range(0, n, C):
        stop = start + C
        feed = torch.linalg.solve_triangular(
            unit[start:stop, start:stop], unit[:start, start:stop], upper=True, left=False
        )
        wanted = W[:, start:stop] + error[:, :start] @ feed
        path = viterbi(
            coded.blocks(wanted / s)[0].numpy(), coded.blocks(importance)[0].numpy(), VALUES, bits
        )
        initial.append(path[:, 0] >> bits)
        found.append(path & ((1 << bits) - 1))
        values = torch.from_numpy(VALUES[path])
        error[:, start:stop] = W[:, start:stop] - coded.unblock(values, (rows, C)) * s
    Q = (W - error) / s
    QH = Q @ H
    fitted = (QH * W).sum(1) / (QH * Q).sum(1)  # the scale of least error for these codes
    usable = fitted.isfinite() & (fitted > 0) & (fitted < 2 * s[:, 0])
    tensors = {
        "codes": coded.pack(np.concatenate(found), bits),
        "initial": torch.from_numpy(np.concatenate(initial).astype(np.int16)),
        "scale": torch.where(usable, fitted, s[:, 0]).to(torch.float16),
        "signs": signs,
    }
    return Coded("trellis", bits, (rows, n), tensors, factor.damp)


def viterbi(
    x: NDArray[np.float32], h: NDArray[np.float32], values: NDArray[np.float32], bits: int
) -> NDArray[np.int64]:
    """States (sequences, length) of least sum_t h_t (x_t - values[s_t])^2, from any first state.

    x, h (sequences, length); values (2^state bits,). After s come (s << bits | b) mod len(values).
    """
    states = np.empty(x.shape, np.int64)
    for first in range(0, len(x), LANES):
        part = slice(first, first + LANES)
        _viterbi(x[part].T.copy(), h[part].T.copy(), values, bits, states[part])
    return states


@numba.njit(nogil=True, cache=True)
def _viterbi(
    x: NDArray[np.float32],  # (length, lanes)
    h: NDArray[np.float32],
    values: NDArray[np.float32],
    bits: int,
    states: NDArray[np.int64],  # (lanes, length)
) -> None:
    length, lanes = x.shape
    tails = len(values) >> bits
    cost = np.zeros((len(values), lanes), np.float32)
    best = np.zeros((tails, lanes), np.float32)  # over the states that end alike
    came = np.zeros((length, tails, lanes), np.uint8)
    for step in range(length):
        if step:
            _least(cost, best, came[step])
        for state in range(len(values)):
            for lane in range(lanes):
                d = x[step, lane] - values[state]
                cost[state, lane] = best[state >> bits, lane] + h[step, lane] * d * d
    for lane in range(lanes):
        state = int(np.argmin(cost[:, lane]))
        for step in range(length - 1, -1, -1):
            states[lane, step] = state
            tail = state >> bits
            state = tail + int(came[step, tail, lane]) * tails


@numba.njit(nogil=True, cache=True)
def _least(cost: NDArray[np.float32], best: NDArray[np.float32], came: NDArray[np.uint8]) -> None:
    tails, lanes = best.shape
    for tail in range(tails):
        for lane in range(lanes):
            best[tail, lane] = cost[tail, lane]
        for top in range(1, len(cost) // tails):
            for lane in range(lanes):
                tried = cost[top * tails + tail, lane]
                less = tried < best[tail, lane]
                best[tail, lane] = tried if less else best[tail, lane]
                came[tail, lane] = np.uint8(top) if less else came[tail, lane]


METHOD = Method("qtip", solve, bits=(2, 4), needs=("hessian",), storage="codes", grouped=False)
