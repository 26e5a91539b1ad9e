"""Quantization methods, one file each: free functions on W and the moments of its input.

In: the linears of one decoder layer with H, mean |x| and per-channel ranges of their inputs.
Out: grids, codebooks or trellises that stand for the weights. Each file ends with a `Method`
record; `METHODS` holds these and those of the entry point group `ptsearch.methods`.
Open `rtn.py` first: the shortest method; then `gptq.py`. `solve.py` runs them on a layer.
"""

from typing import TYPE_CHECKING

from ptsearch.quantize.method import Method

if TYPE_CHECKING:
    from ptsearch.quantize.registry import METHODS

__all__ = ["METHODS", "Method"]


def __getattr__(name: str) -> object:
    """`METHODS` on first use: the files of the methods import torch and numba."""
    if name == "METHODS":
        from ptsearch.quantize.registry import METHODS

        return METHODS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
