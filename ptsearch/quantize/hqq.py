"""HQQ (Badri and Shaji, Half-Quadratic Quantization, 2023) by its own library: no calibration."""

from collections.abc import Sequence

from torch import Tensor

from ptsearch.models import coded as layout
from ptsearch.models.coded import Coded
from ptsearch.quantize import grid
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Coded]]:
    """Each variant's linears."""
    return [
        {name: quantize(W, v.bits, v.group_size) for name, W in group.weights.items()}
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


METHOD = Method("hqq", solve, storage="codes", without_bits=(7,), package="hqq")
