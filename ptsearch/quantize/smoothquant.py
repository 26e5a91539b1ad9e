"""SmoothQuant (Xiao et al., arXiv 2211.10438): activations' outliers move into the weights.

Input channel j is divided by s_j = max|x_j|^a / max|w_j|^(1 - a) (equation 4, a = 0.5) in the norm
before it and its weights are multiplied by s_j: the model stays the same and both are easier to
round. As published, linears behind a norm are smoothed and the others only rounded. Weights are
rounded to nearest; inputs at run time, token by token.
"""

import torch
from torch import Tensor

from ptsearch.quantize import awq, rtn
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import Layer, ScalingSite
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

ALPHA = 0.5
LEAST = 1e-5  # of a channel's largest value


def quantize(
    layer: Layer, places: list[ScalingSite], variant: Variant
) -> tuple[dict[str, Quantized], dict[str, Tensor]]:
    """(linear -> quantized, norms that changed, by full name)."""
    values = {name: tensor.float() for name, tensor in layer.stored.items()}
    replaced: set[str] = set()
    for site in places:
        moments = layer.seen(site.slot, variant.seed)
        if moments is None or values[f"{layer.prefix}{site.source}.weight"].ndim != 1:
            continue
        names = [f"{name}.weight" for name in layer.inputs[site.slot]]
        largest = torch.maximum(moments.high, -moments.low)
        s = scales(largest, torch.cat([values[name] for name in names]))
        s = awq.divide(values, layer, site, s, replaced)
        values |= {name: values[name] * s for name in names}
    quantized = {
        name: rtn.quantize(values[f"{name}.weight"], variant.bits, variant.group_size, variant.sym)
        for names in layer.inputs
        for name in names
    }
    return quantized, {name: values[name].to(layer.stored[name].dtype) for name in replaced}


def scales(largest: Tensor, W: Tensor, alpha: float = ALPHA) -> Tensor:
    """s (in,) from the inputs' largest magnitudes (in,) and the weights (out, in)."""
    weights = W.abs().amax(0).clamp(min=LEAST)
    return largest.clamp(min=LEAST) ** alpha / weights ** (1 - alpha)


METHOD = Method("smoothquant", solve_layer=quantize, needs=("ranges", "sites"))
