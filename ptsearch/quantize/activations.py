"""Rounding the inputs of linear layers: per token, or per channel with calibrated scales.

Values are rounded and kept as floats (fake-quantized), with the conventions of `grid`.
"""

import torch
from torch import Tensor

from ptsearch.quantize import grid

SCALE, ZERO = "input_scale", "input_zero_point"


def round_tokens(X: Tensor, bits: int) -> Tensor:
    """X (..., in), each token on a symmetric grid that spans it: compressed-tensors' `token`."""
    bottom, top = grid.code_range(bits)
    values = X.float()
    scale = values.abs().amax(-1, keepdim=True) / ((top - bottom) / 2)
    scale = torch.where(scale > 0, scale, torch.finfo(torch.float32).eps)
    return (values / scale).clamp_(bottom, top).round_().mul_(scale).to(X.dtype)


def round_channels(X: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """X (..., in) with one scale and zero point for each channel (in,)."""
    codes = (X.float() / scale + zero).clamp_(*grid.code_range(bits)).round_()
    return codes.sub_(zero).mul_(scale).to(X.dtype)
