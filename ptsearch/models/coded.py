"""Checkpoints in the layout `ptsearch-codes/2`: weights that compressed-tensors cannot express.

The folder of such a variant has safetensors files and `codes.json`, {"format": ..., "linears":
{name: {"kind", "bits", "shape"}}, "weight_map": {tensor: file}}, beside the base model's config and
tokenizer; in layout 1 all tensors are in `codes.safetensors`. A linear `name` is stored as tensors
`name.SUFFIX`, by its kind; all other tensors are as in the base model. Floats are float16, and
whole numbers of b bits are packed along rows, least significant bit first, (rows, n) to uint8
(rows, ceil(n b / 8)).

planes     plane0 ... most significant first (out, in) of 1 bit; scale, offset (out, groups):
           w = scale (c - (2^bits - 1) / 2) + offset, c the number that the planes spell
codebook   codes (out, in) of `bits`; book (out, 2^bits); outlier_counts int32 (out,), then
           outlier_columns int32 and outlier_values, row by row: w = book[code], outliers replaced
trellis    codes (sequences, length) of `bits`, initial int16 (sequences,); scale (out,); signs
           (1, in) of 1 bit: see `trellis_states`, `trellis_values`, `blocks` and `rotate`
"""

import json
from collections.abc import Callable, Mapping
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FORMATS = ("ptsearch-codes/1", "ptsearch-codes/2")  # that are read; the last is written
WEIGHTS = "codes.safetensors"  # of layout 1
INDEX = "codes.json"
STATE_BITS = 10  # of the trellis: 1024 states
BLOCK = 16  # rows and columns that one sequence of the trellis covers, or what divides them


class Entry(NamedTuple):
    """What the index says of a linear."""

    kind: str
    bits: int
    shape: tuple[int, int]  # (out, in)


class Coded(NamedTuple):
    """A quantized weight as it is stored."""

    kind: str
    bits: int
    shape: tuple[int, int]  # (out, in)
    tensors: dict[str, Tensor]  # by suffix
    damp: float = 0.0

    def dense(self) -> Tensor:
        """The weight (out, in) that is stored, float32."""
        return DECODERS[self.kind](self.tensors, self.bits, self.shape)

    def entry(self) -> Entry:
        return Entry(self.kind, self.bits, self.shape)


def decode(tensors: Mapping[str, Tensor], linears: Mapping[str, Entry]) -> dict[str, Tensor]:
    """The same tensors with the weights of `linears` decoded to float32."""
    dense: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, suffix = key.rpartition(".")
        if name in linears and suffix != "bias":
            parts.setdefault(name, {})[suffix] = tensor
        else:
            dense[key] = tensor
    for name, stored in parts.items():
        dense[f"{name}.weight"] = Coded(*linears[name], stored).dense()
    return dense


def read_index(folder: Path) -> dict[str, Entry]:
    """Linear -> how it is stored. ValueError: another version of the layout."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    if index["format"] not in FORMATS:
        raise ValueError(f"{folder} has the layout {index['format']}, known: {', '.join(FORMATS)}")
    return {
        name: Entry(linear["kind"], linear["bits"], tuple(linear["shape"]))
        for name, linear in index["linears"].items()
    }


def write_index(folder: Path, linears: Mapping[str, Entry], weight_map: Mapping[str, str]) -> None:
    entries = {name: entry._asdict() for name, entry in linears.items()}
    index = {"format": FORMATS[-1], "linears": entries, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def pack(codes: NDArray[np.integer], bits: int) -> Tensor:
    """Whole numbers (rows, n) below 2^bits as uint8 (rows, ceil(n bits / 8))."""
    each = codes.astype(np.uint16)[..., None] >> np.arange(bits, dtype=np.uint16) & 1
    spelled = each.astype(np.uint8).reshape(len(codes), -1)
    return torch.from_numpy(np.packbits(spelled, axis=1, bitorder="little"))


def unpack(packed: Tensor, bits: int, n: int) -> NDArray[np.uint16]:
    """The reverse of `pack`: (rows, n)."""
    spelled = np.unpackbits(packed.numpy(), axis=1, count=n * bits, bitorder="little")
    each = spelled.reshape(len(spelled), n, bits).astype(np.uint16)
    codes: NDArray[np.uint16] = (each << np.arange(bits, dtype=np.uint16)).sum(2, dtype=np.uint16)
    return codes


def trellis_values(states: NDArray[np.integer]) -> NDArray[np.float32]:
    """Nearly normal pseudo-random numbers, one for each state: QTIP's code 1MAD (section 3.1)."""
    mixed = (states.astype(np.uint64) * 34038481 + 76625530) & 0xFFFFFFFF
    octets = np.stack([mixed >> np.uint64(shift) & np.uint64(255) for shift in (0, 8, 16, 24)])
    values: NDArray[np.float32] = ((octets.sum(0, dtype=np.float64) - 510) / 147.8).astype(
        np.float32
    )
    return values


def trellis_states(
    initial: NDArray[np.integer], codes: NDArray[np.integer], bits: int
) -> NDArray[np.int64]:
    """The states (sequences, length): each step shifts the new bits into the last state."""
    states = np.empty(codes.shape, np.int64)
    state = initial.astype(np.int64)
    for step in range(codes.shape[1]):
        state = (state << bits | codes[:, step]) & ((1 << STATE_BITS) - 1)
        states[:, step] = state
    return states


def blocks(W: Tensor) -> Tensor:
    """(out, in) -> (in / C, out / R, C R): a sequence runs through one block, column by column."""
    R, C = gcd(W.shape[0], BLOCK), gcd(W.shape[1], BLOCK)
    return W.unflatten(1, (-1, C)).unflatten(0, (-1, R)).permute(2, 0, 3, 1).flatten(2)


def unblock(sequences: Tensor, shape: tuple[int, int]) -> Tensor:
    """The reverse of `blocks`; any leading shape that holds the same numbers."""
    R, C = gcd(shape[0], BLOCK), gcd(shape[1], BLOCK)
    return sequences.view(shape[1] // C, shape[0] // R, C, R).permute(1, 3, 0, 2).reshape(shape)


def rotate(X: Tensor, signs: Tensor) -> Tensor:
    """X (..., n) times an orthogonal matrix: signs, then Hadamard (power of two) x cosines."""
    n = X.shape[-1]
    return _mix(X * signs, n & -n)


def unrotate(X: Tensor, signs: Tensor) -> Tensor:
    n = X.shape[-1]
    return _mix(X, n & -n, transposed=True) * signs


def _mix(X: Tensor, power: int, transposed: bool = False) -> Tensor:
    rest = X.shape[-1] // power
    X = X.unflatten(-1, (power, rest))
    if rest > 1:
        k = torch.arange(rest, dtype=torch.float64)
        cosines = torch.cos(torch.pi / rest * (k[:, None] + 0.5) * k) * (2 / rest) ** 0.5
        cosines[:, 0] = (1 / rest) ** 0.5
        X = X @ (cosines.T if transposed else cosines).to(X.dtype)
    half = 1
    while half < power:
        pairs = X.unflatten(-2, (-1, 2, half))
        one, two = pairs.select(-3, 0), pairs.select(-3, 1)
        X = torch.stack((one + two, one - two), -3).flatten(-4, -2)
        half *= 2
    return (X / power**0.5).flatten(-2)


def planes(codes: Tensor, bits: int, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """What is stored of codes (out, in) int64 with scale and offset (out, groups)."""
    packed = {
        f"plane{plane}": pack((codes >> (bits - 1 - plane) & 1).numpy(), 1) for plane in range(bits)
    }
    return {**packed, "scale": scale.to(torch.float16), "offset": offset.to(torch.float16)}


def signs_of(packed: Tensor, n: int) -> Tensor:
    return torch.from_numpy(unpack(packed, 1, n)[0].astype(np.float32)) * 2 - 1


def _planes(tensors: Mapping[str, Tensor], bits: int, shape: tuple[int, int]) -> Tensor:
    codes = np.zeros(shape, np.uint16)
    for plane in range(bits):
        codes += unpack(tensors[f"plane{plane}"], 1, shape[1]) << np.uint16(bits - 1 - plane)
    centred = torch.from_numpy(codes.astype(np.float32)) - (2**bits - 1) / 2
    scale, offset = tensors["scale"].float(), tensors["offset"].float()
    groups = centred.unflatten(1, (scale.shape[1], -1))
    return (groups * scale[..., None] + offset[..., None]).flatten(1)


def _codebook(tensors: Mapping[str, Tensor], bits: int, shape: tuple[int, int]) -> Tensor:
    codes = torch.from_numpy(unpack(tensors["codes"], bits, shape[1]).astype(np.int64))
    W = tensors["book"].float().gather(1, codes)
    rows = torch.arange(shape[0]).repeat_interleave(tensors["outlier_counts"])
    W[rows, tensors["outlier_columns"].long()] = tensors["outlier_values"].float()
    return W


def _trellis(tensors: Mapping[str, Tensor], bits: int, shape: tuple[int, int]) -> Tensor:
    length = gcd(shape[0], BLOCK) * gcd(shape[1], BLOCK)
    codes = unpack(tensors["codes"], bits, length)
    states = trellis_states(tensors["initial"].numpy(), codes, bits)
    W = unblock(torch.from_numpy(trellis_values(states)), shape) * tensors["scale"].float()[:, None]
    return unrotate(W, signs_of(tensors["signs"], shape[1]))


Decoder = Callable[[Mapping[str, Tensor], int, tuple[int, int]], Tensor]
DECODERS: dict[str, Decoder] = {
    "planes": _planes,
    "codebook": _codebook,
    "trellis": _trellis,
}
