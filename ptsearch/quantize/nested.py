"""Nested widths after Any-Precision LLM (Park et al., arXiv 2402.10517), on a uniform grid.

One set of 8-bit codes is solved; the k-bit member reads its k most significant bit planes and has
scales of its own. The paper grows a codebook for each row from a 3-bit SqueezeLLM model; on rows of
576 weights its 8-bit codebook alone would take 7.1 bits a weight. Here each group's range is cut
into 2^k equal cells at every width, and scale and offset of each width are fitted to the layer's
output: given the codes, the problem is linear. A range clipped for 3 bits was hardly better there
and ninety times worse at 8.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptsearch.models import coded as layout
from ptsearch.models.coded import Coded
from ptsearch.quantize import gptq, grid
from ptsearch.quantize.layer import LinearGroup
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

WIDEST = 8
ROWS = 512  # solved at once: (rows, 2 groups, 2 groups) are in memory


def solve(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Coded]]:
    """Each variant's linears; they agree on damp_percent and group_size, so on their codes."""
    H = gptq.damped(group.H, variants[0].damp_percent)
    found: list[dict[str, Coded]] = [{} for _ in variants]
    for name, W in group.weights.items():
        widest = codes(W, variants[0].group_size)
        for variant, linears in zip(variants, found, strict=True):
            linears[name] = width(W, H, widest, variant.bits, variant.group_size)
    return found


def codes(W: Tensor, group_size: int) -> Tensor:
    """The 8-bit codes (out, in) int64 of W: equal cells over each group's range."""
    low, high = grid.ranges(W, group_size)
    span = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    groups = W.unflatten(1, (low.shape[1], -1))
    cells = ((groups - low[..., None]) / span[..., None] * 2**WIDEST).floor()
    return cells.clamp_(0, 2**WIDEST - 1).long().flatten(1)


def width(W: Tensor, H: Tensor, widest: Tensor, bits: int, group_size: int) -> Coded:
    """The member of this width, read from the 8-bit codes."""
    cells = widest >> (WIDEST - bits)
    centred = cells.float() - (2**bits - 1) / 2
    groups = W.shape[1] // grid.columns(W.shape[1], group_size)
    parts = [
        fit(part, X, H, groups) for part, X in zip(W.split(ROWS), centred.split(ROWS), strict=True)
    ]
    scale, offset = (torch.cat(each) for each in zip(*parts, strict=True))
    tensors = layout.planes(cells, bits, scale, offset)
    return Coded("planes", bits, (W.shape[0], W.shape[1]), tensors)


def fit(W: Tensor, X: Tensor, H: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (out, groups) of least tr(dW H dW^T), dW = W - (scale X + offset)."""
    rows, size = len(W), W.shape[1] // groups

    def sums(values: Tensor) -> Tensor:
        return values.unflatten(1, (groups, size)).sum(2)

    normal = torch.empty(rows, 2 * groups, 2 * groups)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        image = X[:, columns] @ H[columns]
        normal[:, group, :groups], normal[:, group, groups:] = sums(image * X), sums(image)
    normal[:, groups:, :groups] = normal[:, :groups, groups:].mT
    normal[:, groups:, groups:] = sums(sums(H).T).T
    ridge = 1e-6 * normal.diagonal(dim1=1, dim2=2).mean(1)
    normal.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    wanted = W @ H
    solution = torch.linalg.solve(normal, torch.cat((sums(wanted * X), sums(wanted)), 1))
    return solution[:, :groups], solution[:, groups:]


METHOD = Method("nested", solve, bits=(3, 8), needs=("hessian",), storage="codes")
