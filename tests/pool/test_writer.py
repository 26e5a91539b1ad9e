"""The stored form, and what compressed-tensors reads from it."""

from typing import Any

import pytest
import torch

from ptsearch.pool import writer
from ptsearch.quantize import rtn


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_compressed_tensors_decompresses_what_was_solved_for(bits: int, sym: bool) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    from ptsearch.variant import Variant

    variant = Variant("m", "r", "rtn", bits=bits, group_size=32, sym=sym)
    config: Any = writer.quantization_config(variant, [])
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    W = torch.randn(9, 96, generator=torch.Generator().manual_seed(bits))
    quantized = rtn.quantize(W, bits, 32, sym)
    stored = writer.tensors("q", quantized, variant)
    local = {name.removeprefix("q."): tensor for name, tensor in stored.items()}
    local["weight_scale"] = local["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    assert torch.equal(compressor.decompress(local, scheme)["weight"], quantized.dense())
