"""RPTQ (Yuan et al., arXiv 2304.01089): input channels of similar range share a scale.

Channels are clustered by their calibrated ranges, and each cluster gets one scale and zero point.
The paper reorders channels only so that a kernel finds a cluster together, which changes no value;
here they stay in place. Weights are quantized by GPTQ.
"""

import numpy as np
import torch
from torch import Tensor

from ptsearch.quantize import gptq, grid
from ptsearch.quantize.activations import SCALE, ZERO
from ptsearch.quantize.method import Method

CLUSTERS = 32  # of one input's channels (the paper's number for the outputs of norms)


def cluster(low: Tensor, high: Tensor, bits: int, seed: int) -> dict[str, Tensor]:
    """`input_scale` and `input_zero_point` (in,), equal within clusters of channels.

    low, high: (in,) calibrated ranges; K-means on these pairs (section 4.1), then the range of all
    channels of a cluster.
    """
    from sklearn.cluster import KMeans

    points = torch.stack([low, high], 1).numpy()
    count = min(CLUSTERS, len(np.unique(points, axis=0)))
    labels = KMeans(count, n_init=1, random_state=seed).fit_predict(points)
    of = torch.from_numpy(labels).long()
    lowest = torch.zeros(count).scatter_reduce(0, of, low, "amin")
    highest = torch.zeros(count).scatter_reduce(0, of, high, "amax")
    scale, zero, _ = grid.spanning(lowest[None], highest[None], bits, sym=False)
    return {SCALE: scale[0, of], ZERO: zero[0, of]}


METHOD = Method(
    "rptq",
    gptq.solve,
    needs=("hessian", "ranges"),
    agree_on=gptq.AGREE_ON,
    fit_inputs=cluster,
)
