"""Round to nearest is the best code for each weight, alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.quantize import grid, rtn


@given(st.integers(0, 99), st.integers(2, 5), st.booleans())
def test_no_other_code_is_nearer(seed: int, bits: int, sym: bool) -> None:
    W = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    found = rtn.quantize(W, bits, 32, sym)
    low, high = grid.code_range(bits)
    nearest = torch.full_like(W, torch.inf)
    for code in range(low, high + 1):
        value = grid.dequantize(torch.full(W.shape, code, dtype=torch.int8), found.grid)
        nearest = torch.minimum(nearest, (W - value).abs())
    torch.testing.assert_close((W - found.dense()).abs(), nearest)


def test_more_bits_are_nearer() -> None:
    W = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    errors = [(W - rtn.quantize(W, bits, 64, False).dense()).norm() for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
