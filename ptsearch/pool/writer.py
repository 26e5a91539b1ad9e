"""What a variant's checkpoint stores: compressed-tensors (`pack-quantized`) or `ptsearch-codes`.

Layout of a quantized linear layer `name` with weight (out, in):
`name.weight_packed` int32 (out, in * bits / 32 rounded up), `name.weight_scale` (out, groups),
`name.weight_shape` int64 (2,), and where asymmetric `name.weight_zero_point` int32
(out * bits / 32 rounded up, groups). Everything else is as in the base model.
"""

import hashlib
import json
from pathlib import Path

import compressed_tensors
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from torch import Tensor

from ptsearch.models import gguf_file
from ptsearch.models.coded import Coded
from ptsearch.quantize import METHODS
from ptsearch.quantize.grid import SCALE_DTYPE, Quantized
from ptsearch.shared import JsonObject
from ptsearch.store import StoredTensor
from ptsearch.variant import Variant


def table_of(folder: Path, files: str = "*.safetensors") -> dict[str, StoredTensor]:
    """Bytes and SHA-256 of every tensor in a checkpoint's safetensors files, or in its GGUF."""
    table = {}
    if (gguf := folder / gguf_file.NAME).is_file():
        with gguf.open("rb") as file:
            for name, tensor in gguf_file.read(gguf).tensors.items():
                file.seek(tensor.start)
                digest = hashlib.sha256(file.read(tensor.bytes)).hexdigest()
                table[name] = StoredTensor(tensor.bytes, digest)
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
        f"{name}.weight_packed": pack_to_int32(quantized.codes, grid.bits).contiguous(),
        f"{name}.weight_scale": grid.scale.to(SCALE_DTYPE),
    }
    if not variant.sym:
        zeros = pack_to_int32(grid.zero.to(torch.int8), grid.bits, packed_dim=0)
        stored[f"{name}.weight_zero_point"] = zeros.contiguous()
    return stored


def scheme_of(variant: Variant) -> QuantizationScheme:
    """How compressed-tensors describes the variant's linears; RPTQ's inputs it cannot describe."""
    per_row = variant.group_size == -1
    inputs = None
    if variant.act_bits != 16 and not METHODS[variant.method].fit_inputs:
        inputs = QuantizationArgs(num_bits=variant.act_bits, strategy="token", dynamic=True)
    weights = QuantizationArgs(
        num_bits=variant.bits,
        symmetric=variant.sym,
        strategy="channel" if per_row else "group",
        group_size=None if per_row else variant.group_size,
        actorder="static" if variant.actorder == "static" else None,
        observer=None,
    )
    return QuantizationScheme(
        targets=["Linear"], weights=weights, input_activations=inputs, format=format_of(variant)
    )


def quantization_config(variant: Variant, dense_linears: list[str]) -> JsonObject:
    """The `quantization_config` of the checkpoint's config.json."""
    config = QuantizationConfig(
        config_groups={"group_0": scheme_of(variant)},
        format=format_of(variant),
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=dense_linears,
    )
    return {**config.model_dump(mode="json"), "version": compressed_tensors.__version__}
