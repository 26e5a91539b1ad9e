"""Linear layers that keep their weights as they are stored and dequantize them in each forward.

On a CPU low bits then save memory while a model runs, not only on disk. A forward of many tokens
takes hardly longer, as one pass over the weights is little beside the product; a token by itself
takes several times as long. Weights of other layouts, and on other devices, stay dense.
"""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from compressed_tensors.compressors import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ptsearch.engine import memory
from ptsearch.models import checkpoint, loading
from ptsearch.models.layers import give_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "weight_packed"
EIGHT = 8  # codes that are unpacked together
LOW = np.uint64(0xFFFFFFFF)
Octets = NDArray[np.uint8]
Floats = NDArray[np.float32]
Kernel = Callable[[Octets, Floats, Floats, int, Floats], None]


class StoredLinear(nn.Module):
    """x -> x Wᵀ + b, with W = scale (code - zero) in groups of columns. x: (..., in) -> (..., out).

    W is computed in float32 and rounded to the type of x, as when the dense weight is loaded.
    """

    def __init__(self, linear: nn.Linear, stored: dict[str, Tensor], bits: int, group: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.group = bits, group
        scale, zero = stored["weight_scale"], stored.get("weight_zero_point")
        self.weight_packed = nn.Parameter(stored["weight_packed"], requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.weight_zero_point = None
        if zero is not None:
            unpacked = unpack_from_int32(zero, bits, scale.shape, packed_dim=0)
            self.weight_zero_point = nn.Parameter(unpacked, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.dense().to(x.dtype), self.bias)

    def dense(self) -> Tensor:
        """W (out, in), float32."""
        scale = self.weight_scale.float()
        offset = float(1 << (self.bits - 1))  # codes are stored as whole numbers from 0
        zero = torch.full_like(scale, offset)
        if self.weight_zero_point is not None:
            zero += self.weight_zero_point
        W = torch.empty(self.out_features, self.in_features)
        octets = self.weight_packed.numpy().view(np.uint8)
        _kernel(self.bits)(octets, scale.numpy(), zero.numpy(), self.group, W.numpy())
        return W


def keep_stored(model: "PreTrainedModel", folder: Path) -> None:
    """Let linears of a model that was loaded from `folder` keep their weights as stored there."""
    quantization = loading.quantization_config(folder)
    if model.device.type != "cpu" or not is_kept(quantization):
        return
    weights = _weights(quantization)
    tensors = checkpoint.tensors_of(model, folder)
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or f"{name}.{PACKED}" not in tensors.file_of:
            continue
        group = weights.group_size or linear.in_features
        if group % EIGHT == 0:
            found = tensors.under(f"{name}.")
            stored = {key.removeprefix(f"{name}."): found[key] for key in found}
            model.set_submodule(name, StoredLinear(linear, stored, weights.num_bits, group))
    memory.collect(folder)
    give_back()


def is_kept(quantization: Mapping[str, Any]) -> bool:
    """Whether linears of a checkpoint with this quantization config can stay as stored."""
    packed = quantization.get("format") == "pack-quantized" and checkpoint.is_uniform(quantization)
    return packed and _weights(quantization).strategy in ("group", "channel")


def _weights(quantization: Mapping[str, Any]) -> QuantizationArgs:
    return QuantizationArgs.model_validate(quantization["config_groups"]["group_0"]["weights"])


@cache
def _kernel(bits: int) -> Kernel:
    """Compiled for one width, so that all shifts are known.

    octets (out, in bits / 8): a row's codes one behind the other, least significant bit first;
    scale, zero (out, groups); W (out, in) is written. Eight codes are `bits` octets; four of them
    fit a 32-bit register, and are shifted side by side.
    """
    mask, half = np.uint32((1 << bits) - 1), np.uint64(4 * bits)
    shifts = tuple(np.uint32(k * bits) for k in range(4))

    @numba.njit(nogil=True)
    def dequantize(octets: Octets, scale: Floats, zero: Floats, group: int, W: Floats) -> None:
        rows, columns = W.shape
        for row in range(rows):
            for of in range(columns // group):
                s, z = scale[row, of], zero[row, of]
                for block in range(of * group // EIGHT, (of + 1) * group // EIGHT):
                    codes = np.uint64(0)
                    for k in range(bits):
                        codes |= np.uint64(octets[row, block * bits + k]) << np.uint64(8 * k)
                    low, high = np.uint32(codes & LOW), np.uint32((codes >> half) & LOW)
                    for k in range(4):
                        column = block * EIGHT + k
                        W[row, column] = (np.int32(low >> shifts[k] & mask) - z) * s
                        W[row, column + 4] = (np.int32(high >> shifts[k] & mask) - z) * s

    return dequantize
