"""Uniform grids: error bounds, and the same numbers as compressed-tensors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ptsearch.quantize import grid

BITS = st.integers(2, 8)
GROUPS = st.sampled_from([32, 64, 128, -1])


def weights(seed: int, rows: int = 5, columns: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.1


@given(st.integers(0, 99), BITS, GROUPS)
def test_asymmetric_rounding_is_off_by_at_most_half_a_step(
    seed: int, bits: int, group_size: int
) -> None:
    W = weights(seed)
    fitted = grid.fit(W, bits, group_size, sym=False)
    back = grid.dequantize(grid.quantize(W, fitted), fitted)
    step = fitted.scale.repeat_interleave(W.shape[1] // fitted.scale.shape[1], 1)
    # the range's ends: the zero point is rounded (half a step) and the scale to 8 bits of mantissa
    slack = step * (0.5 + 2 ** (bits - 8))
    assert ((W - back).abs() <= step / 2 + slack).all()
    inside = (grid.quantize(W, fitted) > grid.code_range(bits)[0]) & (
        grid.quantize(W, fitted) < grid.code_range(bits)[1]
    )
    assert ((W - back).abs() <= step * 0.5001)[inside].all()


@given(st.integers(0, 99), BITS, GROUPS, st.booleans())
def test_a_value_on_the_grid_stays(seed: int, bits: int, group_size: int, sym: bool) -> None:
    W = weights(seed)
    fitted = grid.fit(W, bits, group_size, sym)
    codes = grid.quantize(W, fitted)
    again = grid.quantize(grid.dequantize(codes, fitted), fitted)
    assert torch.equal(codes, again)
    low, high = grid.code_range(bits)
    assert codes.min() >= low
    assert codes.max() <= high


@given(st.integers(0, 99), BITS, GROUPS, st.booleans())
def test_numbers_are_those_of_compressed_tensors(
    seed: int, bits: int, group_size: int, sym: bool
) -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    strategy = "channel" if group_size == -1 else "group"
    size = None if group_size == -1 else group_size
    args = QuantizationArgs(num_bits=bits, symmetric=sym, strategy=strategy, group_size=size)
    W = weights(seed)
    fitted = grid.fit(W, bits, group_size, sym)
    zero = None if sym else fitted.zero.to(torch.int8)
    codes = quantize(W, fitted.scale, zero, args, dtype=torch.int8)
    assert torch.equal(codes, grid.quantize(W, fitted))
    back = dequantize(codes, fitted.scale, zero, args, dtype=torch.float32)
    assert torch.equal(back, grid.dequantize(codes, fitted))


@given(st.integers(0, 99), BITS, st.booleans())
def test_scales_are_as_they_are_stored(seed: int, bits: int, sym: bool) -> None:
    fitted = grid.fit(weights(seed), bits, 64, sym)
    assert torch.equal(fitted.scale, fitted.scale.to(grid.SCALE_DTYPE).float())
    assert torch.equal(fitted.zero, fitted.zero.round())


@given(st.integers(0, 99), st.integers(2, 5), st.booleans())
def test_the_weighted_fit_is_the_best_shrink(seed: int, bits: int, sym: bool) -> None:
    W = weights(seed) ** 3
    h = weights(seed + 1, rows=1)[0].square()

    def errors(fitted: grid.Grid) -> Tensor:  # (out, groups)
        d = grid.dequantize(grid.quantize(W, fitted), fitted) - W
        return (d * d * h).unflatten(1, (-1, 64)).sum(2)

    groups = W.unflatten(1, (-1, 64))
    tried = [
        errors(grid.spanning(groups.amin(2) * shrink, groups.amax(2) * shrink, bits, sym))
        for shrink in grid.SHRINKS
    ]
    found = errors(grid.fit_weighted(W, h, bits, 64, sym))
    torch.testing.assert_close(found, torch.stack(tried).amin(0), rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("sym", [True, False])
def test_zeros_stay_zeros(sym: bool) -> None:
    W = torch.zeros(3, 64)
    fitted = grid.fit(W, 4, 32, sym)
    assert torch.equal(grid.dequantize(grid.quantize(W, fitted), fitted), W)


def test_group_size_must_divide() -> None:
    with pytest.raises(ValueError, match="group_size=128, in_features=576"):
        grid.columns(576, 128)
    assert grid.columns(576, -1) == 576
