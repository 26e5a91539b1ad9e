"""HQQ (Badri and Shaji, Half-Quadratic Quantization, 2023) by its own library: no calibration."""

import importlib.util
from collections.abc import Sequence

from torch import Tensor

from ptsearch.models import coded as layout
from ptsearch.models.coded import Coded
from ptsearch.quantize import grid
from ptsearch.quantize.layer import Problem
from ptsearch.variant import Variant


def check_available(variant: Variant) -> None:
    """ValueError unless the library is installed."""
    if importlib.util.find_spec("hqq") is None:
        raise ValueError(f"{variant.label} needs the package hqq: pip install 'ptsearch[hqq]'")


def solve(problem: Problem, variants: Sequence[Variant]) -> list[dict[str, Coded]]:
    """Each variant's linears."""
    return [
        {name: quantize(W, v.bits, v.group_size) for name, W in problem.weights.items()}
        for v in variants
    ]


def quantize(W: Tensor, bits: int, group_size: int) -> Coded:
    """W (out, in) with the library's defaults; its zero points are no whole numbers."""
    from hqq.core.quantize import Quantizer

    size = grid.columns(W.shape[1], group_size)
    found, meta = Quantizer.quantize(
        W.clone(), nbits=bits, group_size=size, axis=1, bitpack=False, device="cpu"
    )
    codes = found.view(W.shape).long()
    scale, zero = (meta[key].float().view(len(W), -1) for key in ("scale", "zero"))
    offset = ((2**bits - 1) / 2 - zero) * scale
    tensors = layout.planes(codes, bits, scale, offset)
    return Coded("planes", bits, (W.shape[0], W.shape[1]), tensors)
