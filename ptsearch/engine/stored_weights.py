"""Linear layers that keep their weights packed and dequantize them in each forward.

Low bits then save memory while a model runs, not only on disk. A forward of many tokens takes
hardly longer, as a few passes over the weights are little beside the product; a token by itself
takes several times as long. Weights of other layouts stay dense.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from compressed_tensors.compressors import unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor, nn
from torch.nn import functional

from ptsearch.engine import memory
from ptsearch.models import checkpoint, loading
from ptsearch.models.layers import give_back

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "weight_packed"
OCTET = 8  # bits; columns of a linear and of a group are a multiple of it
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


class StoredLinear(nn.Module):
    """x -> x Wᵀ + b, with W = scale (code - zero) in groups of columns. x: (..., in) -> (..., out).

    W is computed in float32 and rounded to the type of x, as when the dense weight is loaded.
    """

    def __init__(self, linear: nn.Linear, stored: dict[str, Tensor], bits: int, group: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.group = bits, group
        self.offset = 1 << (bits - 1)  # signed numbers are kept from 0
        signed = unpack_from_int32(stored[PACKED], bits, linear.weight.shape)
        self.codes = nn.Parameter(pack(self._from_zero(signed), bits), requires_grad=False)
        self.scale = nn.Parameter(stored["weight_scale"], requires_grad=False)
        self.zero = None
        if (packed := stored.get("weight_zero_point")) is not None:
            zero = unpack_from_int32(packed, bits, self.scale.shape, packed_dim=0)
            self.zero = nn.Parameter(self._from_zero(zero), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.dense().to(x.dtype), self.bias)

    def dense(self) -> Tensor:
        """W (out, in), float32."""
        W = unpack(self.codes, self.bits).unflatten(1, (-1, self.group)).float()
        W.sub_(self.offset if self.zero is None else self.zero[..., None])
        return W.mul_(self.scale.float()[..., None]).flatten(1)

    def _from_zero(self, signed: Tensor) -> Tensor:
        return (signed.to(torch.int16) + self.offset).to(torch.uint8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers (out, in) of `bits`, uint8, as octets (out, in bits / 8).

    Planes of 8, 4, 2 or 1 bits, the least significant bits first; an octet of a plane of w bits has
    those of 8 / w columns that lie in / (8 / w) apart, so that whole pieces are shifted at once.
    """
    planes, low = [], 0
    for width in PLANES[bits]:
        pieces = (codes >> low & (1 << width) - 1).chunk(OCTET // width, 1)
        planes.append(sum((piece << k * width for k, piece in enumerate(pieces)), 0 * pieces[0]))
        low += width
    return torch.cat(planes, 1)


def unpack(octets: Tensor, bits: int) -> Tensor:
    """The reverse of `pack`."""
    columns = octets.shape[1] // bits
    planes = octets.split([columns * width for width in PLANES[bits]], 1)
    codes, low = planes[0], 0
    for width, plane in zip(PLANES[bits], planes, strict=True):
        pieces = [plane >> k & (1 << width) - 1 for k in range(0, OCTET, width)]
        part = torch.cat(pieces, 1) if width < OCTET else plane
        codes = codes.add_(part, alpha=1 << low) if low else part
        low += width
    return codes


def keep_stored(model: "PreTrainedModel", folder: Path) -> None:
    """Let linears of a model that was loaded from `folder` keep their weights as stored there."""
    quantization = loading.quantization_config(folder)
    if not is_kept(quantization):
        return
    weights = _weights(quantization)
    tensors = checkpoint.tensors_of(model, folder)
    for name, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or f"{name}.{PACKED}" not in tensors.file_of:
            continue
        group = weights.group_size or linear.in_features
        if group % OCTET == 0:
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
