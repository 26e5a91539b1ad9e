"""Round to nearest: the baseline. A rounding seed makes it stochastic."""

from collections.abc import Sequence

from torch import Tensor

from ptsearch.quantize import grid
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Quantized]]:
    """Each variant's linears."""
    return [
        {
            name: quantize(W, v.bits, v.group_size, v.sym, grid.noise(W, v.rounding_seed, name))
            for name, W in group.weights.items()
        }
        for v in variants
    ]


def quantize(
    W: Tensor, bits: int, group_size: int, sym: bool, noise: Tensor | None = None
) -> Quantized:
    """W (out, in) on the grid that spans each group; `noise` as in `grid.quantize`."""
    spanned = grid.fit(W, bits, group_size, sym)
    return Quantized(grid.quantize(W, spanned, noise), spanned)


METHOD = Method("rtn", solve, stochastic=True)
