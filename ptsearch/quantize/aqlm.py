"""AQLM-style (Egiazarian et al., arXiv 2401.06118): sums of codebook entries for 8 weights at once.

Minimised is tr(dW H dW^T) (equation 2), in turns over the codes, group of columns by group with all
others fixed (for one group that is the nearest sum of entries in the metric of H's block, found by
beam search), and over the codebooks (conjugate gradients; the problem is linear in them).
"""

from collections.abc import Sequence
from math import gcd

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsearch.models.coded import Coded
from ptsearch.quantize import gptq
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

GROUP = 8  # weights that share codes of 8 bits: one bit a weight for each codebook
ENTRIES = 256
BEAM = 4
PANEL = 64  # columns between two products with all columns before them
ROUNDS = 2  # of codes, then codebooks; the codes have the last word
STEPS = 8  # of conjugate gradients
SAMPLED = 16384  # vectors that the first codebooks are made of
LLOYD = 8  # steps of k-means for them


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Coded]]:
    """Each variant's linears; they agree on seed and damp_percent."""
    H = gptq.damped(group.H, variants[0].damp_percent)
    return [
        {name: quantize(W, H, v.bits, v.seed) for name, W in group.weights.items()}
        for v in variants
    ]


def quantize(W: Tensor, H: Tensor, bits: int, seed: int) -> Coded:
    """W (out, in), H (in, in) positive definite; `bits` codebooks, drawn with `seed`."""
    rows, n = W.shape
    size = gcd(n, GROUP)
    scale = W.square().mean(1).sqrt().clamp(min=1e-7).to(torch.float16)
    s = scale.float()[:, None]
    # tr(dW H dW^T) counts a row by its scale: rows are solved in units of it
    target, importance = W / s, s.square()
    books, codes = first_books(target.reshape(-1, size), bits, seed)
    codes = codes.view(rows, n // size, bits)
    for _ in range(ROUNDS):
        choose_codes(target, H, books, codes)
        books = fit_books(target, H, books, codes, importance)
    books = books.to(torch.float16)
    choose_codes(target, H, books.float(), codes)
    tensors = {"codes": codes, "books": books, "scale": scale}
    return Coded("additive", bits, (rows, n), tensors)


def values(books: Tensor, codes: Tensor) -> Tensor:
    """(out, in): the sums that codes (out, groups, books) stand for."""
    picked = [book[codes[..., m].long()] for m, book in enumerate(books)]
    return torch.stack(picked).sum(0).flatten(1)


def first_books(vectors: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(books (count, ENTRIES, size), codes (vectors, count) uint8): k-means of what is left."""
    generator = torch.Generator().manual_seed(seed)
    some = vectors[torch.randperm(len(vectors), generator=generator)[:SAMPLED]]
    books, codes = [], []
    for _ in range(count):
        book = some[torch.arange(ENTRIES) % len(some)].clone()
        for _ in range(LLOYD):
            nearest = _nearest(some, book)
            number = torch.bincount(nearest, minlength=ENTRIES)[:, None]
            total = torch.zeros_like(book).index_add_(0, nearest, some)
            book = torch.where(number > 0, total / number.clamp(min=1), book)
        code = _nearest(vectors, book)
        some = some - book[_nearest(some, book)]
        vectors = vectors - book[code]
        books.append(book)
        codes.append(code.to(torch.uint8))
    return torch.stack(books), torch.stack(codes, 1)


def choose_codes(W: Tensor, H: Tensor, books: Tensor, codes: Tensor, beam: int = BEAM) -> None:
    """One sweep over the groups of columns, in place: never a larger error than before."""
    size, n = books.shape[2], W.shape[1]
    gradient = (W - values(books, codes)) @ H
    changes = torch.zeros_like(W)
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        panel = gradient[:, start:stop] - changes[:, :start] @ H[:start, start:stop]
        for first in range(start, stop, size):
            columns, group = slice(first, first + size), first // size
            block = H[columns, columns]
            old = values(books, codes[:, group : group + 1])
            wanted = old + torch.linalg.solve(block, panel[:, first - start :][:, :size].T).T
            metric = torch.linalg.cholesky(block)  # |d metric|^2 = d H d^T
            found = codes[:, group].contiguous()
            turned = (books @ metric).mT.contiguous().numpy()
            _search((wanted @ metric).numpy(), turned, beam, found.numpy())
            codes[:, group] = found
            changes[:, columns] = values(books, found[:, None]) - old
            panel -= changes[:, columns] @ H[columns, start:stop]


def fit_books(W: Tensor, H: Tensor, books: Tensor, codes: Tensor, importance: Tensor) -> Tensor:
    """The books after STEPS of conjugate gradients; importance (out, 1) of the rows."""

    def down(G: Tensor) -> Tensor:
        """The reverse of `values`: sums over all weights that use an entry."""
        sums = torch.zeros_like(books)
        _add_by_entry(G.reshape(-1, books.shape[2]).numpy(), flat.numpy(), sums.numpy())
        return sums

    flat = codes.flatten(0, 1).contiguous()
    residual = down((W - values(books, codes)) @ H * importance)
    direction, norm = residual.clone(), residual.square().sum()
    for _ in range(STEPS):
        if not norm > 0:
            break
        image = down(values(direction, codes) @ H * importance)
        step = norm / (direction * image).sum()
        books = books + step * direction
        residual = residual - step * image
        direction, norm = _turned(residual, direction, norm)
    return books


def _turned(residual: Tensor, direction: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    new = residual.square().sum()
    return residual + new / norm * direction, new


def _nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """Index of each vector's nearest entry."""
    length = book.square().sum(1)
    parts = [(length - 2 * part @ book.T).argmin(1) for part in vectors.split(1 << 16)]
    return torch.cat(parts)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _search(
    wanted: NDArray[np.float32],  # (rows, size)
    books: NDArray[np.float32],  # (books, size, entries)
    beam: int,
    codes: NDArray[np.uint8],  # (rows, books): replaced where something nearer is found
) -> None:
    count, size, entries = books.shape
    left, new_left = np.zeros((beam, size), np.float32), np.zeros((beam, size), np.float32)
    picked, new_picked = np.zeros((beam, count), np.uint8), np.zeros((beam, count), np.uint8)
    distance, cost = np.empty(entries, np.float32), np.empty(beam, np.float32)
    source = np.empty((beam, 2), np.int64)  # of the best so far: place in the beam, entry
    for row in range(len(wanted)):
        kept = 1
        left[0] = wanted[row]
        for m in range(count):
            cost[:] = np.inf
            for b in range(kept):
                distance[:] = 0
                for i in range(size):
                    for c in range(entries):
                        d = left[b, i] - books[m, i, c]
                        distance[c] += d * d
                _keep_best(distance, b, cost, source)
            kept = min(beam, kept * entries)
            for b in range(kept):
                origin, entry = source[b]
                new_picked[b] = picked[origin]
                new_picked[b, m] = entry
                new_left[b] = left[origin] - books[m, :, entry]
            left, new_left = new_left, left
            picked, new_picked = new_picked, picked
        before = wanted[row].copy()
        for m in range(count):
            before -= books[m, :, codes[row, m]]
        if cost[0] < (before * before).sum():
            codes[row] = picked[0]


@numba.njit(nogil=True, cache=True)
def _keep_best(
    distance: NDArray[np.float32],
    b: int,
    cost: NDArray[np.float32],  # (beam,) rising
    source: NDArray[np.int64],  # (beam, 2)
) -> None:
    last = len(cost) - 1
    for c in range(len(distance)):
        if distance[c] < cost[last]:
            place = last
            while place and distance[c] < cost[place - 1]:
                cost[place], source[place] = cost[place - 1], source[place - 1]
                place -= 1
            cost[place], source[place, 0], source[place, 1] = distance[c], b, c


@numba.njit(nogil=True, cache=True)
def _add_by_entry(
    vectors: NDArray[np.float32],  # (n, size)
    codes: NDArray[np.uint8],  # (n, books)
    sums: NDArray[np.float32],  # (books, entries, size): added to
) -> None:
    for k in range(len(vectors)):
        for m in range(codes.shape[1]):
            for i in range(vectors.shape[1]):
                sums[m, codes[k, m], i] += vectors[k, i]


METHOD = Method("aqlm", solve, bits=(2, 4), needs=("hessian",), storage="codes", grouped=False)
