"""Writing a variant as a compressed-tensors checkpoint (`pack-quantized`), tensor by tensor.

Layout of a quantized linear layer `name` with weight (out, in):
`name.weight_packed` int32 (out, in * bits / 32 rounded up), `name.weight_scale` (out, groups),
`name.weight_shape` int64 (2,), and where asymmetric `name.weight_zero_point` int32
(out * bits / 32 rounded up, groups). Everything else is as in the base model.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import compressed_tensors
import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptsearch.models.coded import Coded
from ptsearch.quantize import METHODS
from ptsearch.quantize.grid import SCALE_DTYPE, Grid, Quantized
from ptsearch.store import StoredTensor
from ptsearch.variant import Variant

WEIGHTS = "model.safetensors"
DTYPES = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNMENT = 8  # bytes: a tensor must start at a multiple of its element size


class Grown(NamedTuple):
    """What is in a file that is not finished."""

    end: int  # bytes of tensors
    header: dict[str, Any]
    table: dict[str, StoredTensor]
    odd: dict[str, Tensor]


class Writer:
    """A safetensors file that grows by one tensor at a time; a context manager.

    The header is written last, into room that was left for it, so that nothing waits in memory.
    """

    def __init__(self, path: Path, room: int, grown: Grown | None = None) -> None:
        """`room`: bytes for the header, a multiple of 8; `grown`: the file is there, go on."""
        self._path = path
        self._room = room
        self._file: BinaryIO = path.open("r+b" if grown else "wb")
        start = grown or Grown(0, {"__metadata__": {"format": "pt"}}, {}, {})
        self._end, self._header = start.end, start.header
        self.table = start.table  # name -> bytes, SHA-256
        self._odd = start.odd  # would leave the next tensor unaligned: written last
        self._file.seek(8 + room + self._end)
        self._file.truncate()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and not self._file.closed:
                self._finish()
        finally:
            self._file.close()

    def grown(self) -> Grown:
        """What another writer needs to go on from here."""
        if not self._file.closed:
            self._file.flush()
        return Grown(self._end, self._header, self.table, self._odd)

    def give_up(self) -> None:
        """Free the room that the file takes."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        if tensor.nbytes % ALIGNMENT:
            self._odd[name] = tensor.clone()
        else:
            self._write(name, tensor)

    def _write(self, name: str, tensor: Tensor) -> None:
        raw = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
        self._file.write(raw.data)
        self._header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._end, self._end + tensor.nbytes],
        }
        self._end += tensor.nbytes
        self.table[name] = StoredTensor(tensor.nbytes, hashlib.sha256(raw.data).hexdigest())

    def _finish(self) -> None:
        for name, tensor in sorted(self._odd.items(), key=lambda item: -item[1].element_size()):
            self._write(name, tensor)
        header = json.dumps(self._header, separators=(",", ":")).encode()
        assert len(header) <= self._room, f"header has {len(header)} bytes, room is {self._room}"
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))


def header_room(stored: Collection[str], linears: Collection[str]) -> int:
    """Room for the header of a checkpoint with these tensors of the base model, linears packed."""
    names = len(stored) + 9 * len(linears)  # at most 8 bit planes, scale and offset for a weight
    longest = max(map(len, stored)) + len("_zero_point")
    return -(-(256 + names * (longest + 160)) // ALIGNMENT) * ALIGNMENT


def table_of(folder: Path, files: str = "*.safetensors") -> dict[str, StoredTensor]:
    """Bytes and SHA-256 of every tensor in a checkpoint's safetensors files."""
    table = {}
    for path in sorted(folder.glob(files)):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, stop = entry["data_offsets"]
                file.seek(8 + size + start)
                digest = hashlib.sha256(file.read(stop - start)).hexdigest()
                table[name] = StoredTensor(stop - start, digest)
    return table


def format_of(variant: Variant) -> str:
    """Kernels for rounded activations want whole bytes, which 8 bits are anyway."""
    whole_bytes = variant.bits == 8 and variant.act_bits != 16
    return "int-quantized" if whole_bytes else "pack-quantized"


def tensors(name: str, quantized: Quantized | Coded, variant: Variant) -> dict[str, Tensor]:
    """What is stored for one linear layer."""
    if isinstance(quantized, Coded):
        return {f"{name}.{suffix}": tensor for suffix, tensor in quantized.tensors.items()}
    grid = quantized.grid
    if format_of(variant) == "int-quantized":
        stored = {
            f"{name}.weight": quantized.codes,
            f"{name}.weight_scale": grid.scale.to(SCALE_DTYPE),
        }
        if not variant.sym:
            stored[f"{name}.weight_zero_point"] = grid.zero.to(torch.int8)
        return stored
    stored = {
        f"{name}.weight_shape": torch.tensor(quantized.codes.shape),
        f"{name}.weight_packed": pack(quantized.codes, grid.bits),
        f"{name}.weight_scale": grid.scale.to(SCALE_DTYPE),
    }
    if not variant.sym:
        stored[f"{name}.weight_zero_point"] = packed_zeros(grid)
    return stored


def packed_zeros(grid: Grid) -> Tensor:
    """Zero points, packed along the rows."""
    return pack(grid.zero.T.to(torch.int8).contiguous(), grid.bits).T.contiguous()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Rows of signed codes (rows, n) int8 as little-endian bit streams, (rows, words) int32."""
    packed = np.zeros((codes.shape[0], -(-codes.shape[1] * bits // 32)), np.uint32)
    _pack(codes.contiguous().numpy(), bits, packed)
    return torch.from_numpy(packed.view(np.int32))


def quantization_config(variant: Variant, dense_linears: list[str]) -> dict[str, Any]:
    """The `quantization_config` of the checkpoint's config.json."""
    weights = {
        "num_bits": variant.bits,
        "type": "int",
        "symmetric": variant.sym,
        "strategy": "channel" if variant.group_size == -1 else "group",
        "group_size": None if variant.group_size == -1 else variant.group_size,
        "dynamic": False,
        "actorder": "static" if variant.actorder == "static" else None,
        "observer": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "version": compressed_tensors.__version__,
        "format": format_of(variant),
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": _input_activations(variant),
                "format": format_of(variant),
            }
        },
        "ignore": dense_linears,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _input_activations(variant: Variant) -> dict[str, Any] | None:
    """As the format says it; clusters of channels (RPTQ) it cannot say."""
    if variant.act_bits == 16 or METHODS[variant.method].fit_inputs:
        return None
    return {
        "num_bits": variant.act_bits,
        "type": "int",
        "symmetric": True,
        "strategy": "token",
        "dynamic": True,
    }


@numba.njit(nogil=True, cache=True)
def _pack(codes: NDArray[np.int8], bits: int, packed: NDArray[np.uint32]) -> None:
    offset = 1 << (bits - 1)
    for row in range(codes.shape[0]):
        held, filled, word = np.uint64(0), 0, 0
        for column in range(codes.shape[1]):
            held |= np.uint64(np.int64(codes[row, column]) + offset) << np.uint64(filled)
            filled += bits
            if filled >= 32:
                packed[row, word] = np.uint32(held & np.uint64(0xFFFFFFFF))
                held >>= np.uint64(32)
                filled -= 32
                word += 1
        if filled:
            packed[row, word] = np.uint32(held)
