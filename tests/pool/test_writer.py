"""The stored form: packing, safetensors, and what compressed-tensors reads from it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from ptsearch.pool import writer
from ptsearch.quantize import grid, rtn
from ptsearch.quantize.grid import Grid


@given(st.integers(2, 8), st.integers(1, 9), st.integers(1, 100), st.integers(0, 99))
def test_packing_is_that_of_compressed_tensors(
    bits: int, rows: int, columns: int, seed: int
) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    low, high = grid.code_range(bits)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high + 1, (rows, columns), dtype=torch.int8, generator=generator)
    assert torch.equal(writer.pack(codes, bits), pack_to_int32(codes, bits))
    zeros = writer.packed_zeros(Grid(torch.ones(codes.shape), codes.float(), bits))
    assert torch.equal(zeros, pack_to_int32(codes, bits, packed_dim=0))


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16),  # 6 bytes: nothing may follow it unaligned
        "shape": torch.tensor([5, 7]),
        "scalar": torch.tensor(2.5),
        "packed": torch.arange(10, dtype=torch.int32).view(5, 2),
        "view": torch.arange(12.0).view(3, 4).T,
        "codes": torch.arange(-4, 3, dtype=torch.int8),
    }
    path = tmp_path / "model.safetensors"
    with writer.Writer(path, writer.header_room(tensors, [])) as written:
        for name, tensor in tensors.items():
            written.add(name, tensor)
    back = load_file(path)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert writer.table_of(tmp_path) == written.table


def test_a_failed_write_closes_the_file(tmp_path: Path) -> None:
    file = writer.Writer(tmp_path / "model.safetensors", 1024)
    with pytest.raises(RuntimeError), file:
        raise RuntimeError
    with pytest.raises(ValueError, match="closed"):
        file.add("a", torch.zeros(8))


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_compressed_tensors_decompresses_what_was_solved_for(bits: int, sym: bool) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    from ptsearch.variant import Variant

    variant = Variant("m", "r", "rtn", bits=bits, group_size=32, sym=sym)
    config = writer.quantization_config(variant, [])
    scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
    W = torch.randn(9, 96, generator=torch.Generator().manual_seed(bits))
    quantized = rtn.quantize(W, bits, 32, sym)
    stored = writer.tensors("q", quantized, variant)
    local = {name.removeprefix("q."): tensor for name, tensor in stored.items()}
    local["weight_scale"] = local["weight_scale"].float()
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    assert torch.equal(compressor.decompress(local, scheme)["weight"], quantized.dense())
