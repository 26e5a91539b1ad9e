"""Rounding the inputs of linear layers: token by token, or in clusters of channels (RPTQ).

Values are rounded and kept as floats ("fake quantization"), with the conventions of `grid`. RPTQ
(Yuan et al., arXiv 2304.01089) groups the channels of similar range, as calibrated, and gives each
group one scale and zero point; its channels are reordered only so that a kernel finds a group
together, which changes no value, so here they stay in place.
"""

import numpy as np
import torch
from torch import Tensor

from ptsearch.quantize import grid

CLUSTERS = 32  # of one input's channels (the paper's number for the outputs of norms)
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


def cluster(low: Tensor, high: Tensor, bits: int, seed: int) -> dict[str, Tensor]:
    """`input_scale` and `input_zero_point` (in,), equal within clusters of channels.

    low, high: (in,) calibrated ranges; K-means on these pairs (section 4.1), then the range of all
    channels of a cluster.
    """
    from sklearn.cluster import KMeans

    points = torch.stack([low, high], 1).numpy()
    count = min(CLUSTERS, len(np.unique(points, axis=0)))
    found = KMeans(count, n_init=1, random_state=seed).fit_predict(points)
    of = torch.from_numpy(found).long()
    least = torch.zeros(count).scatter_reduce(0, of, low, "amin")
    most = torch.zeros(count).scatter_reduce(0, of, high, "amax")
    scale, zero, _ = grid.spanning(least[None], most[None], bits, sym=False)
    return {SCALE: scale[0, of], ZERO: zero[0, of]}
