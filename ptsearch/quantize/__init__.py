"""Quantizers: free functions on a weight W (out, in) and the moments of its input.

`jobs` cuts the work on one decoder layer into independent pieces; variants that can share
something (the factor of one H) are in one piece.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from torch import Tensor

from ptsearch.quantize import activations, awq, gptq, rtn, smoothquant
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import Layer, Part
from ptsearch.variant import Variant

SCALED = {"awq": awq.quantize, "smoothquant": smoothquant.quantize}  # a layer as a whole
SOLVED = ("gptq", "rptq", "wkvquant")  # weights by GPTQ; of all others to nearest
Job = Callable[[], list[tuple[Variant, Part]]]


def jobs(layer: Layer, variants: Sequence[Variant], places: list[awq.Site]) -> Iterator[Job]:
    """Pieces that together solve the layer for every variant; `places`: where it can be scaled."""
    for variant in variants:
        if variant.method in SCALED:
            yield partial(_solve_scaled, layer, places, variant)
    others = sorted((v for v in variants if v.method not in SCALED), key=_shared)
    for slot in range(len(layer.inputs)):
        for _, same in groupby(others, _shared):
            yield partial(_solve_input, layer, slot, list(same))


def _shared(variant: Variant) -> tuple[bool, int, float, str]:
    return variant.method in SOLVED, variant.seed, variant.damp_percent, variant.actorder


def _solve_scaled(
    layer: Layer, places: list[awq.Site], variant: Variant
) -> list[tuple[Variant, Part]]:
    started = time.thread_time()
    quantized, replaced = SCALED[variant.method](layer, places, variant)
    return [(variant, Part(quantized, replaced, time.thread_time() - started))]


def _solve_input(layer: Layer, slot: int, variants: list[Variant]) -> list[tuple[Variant, Part]]:
    """The linears of one input, for variants that agree on `_shared`."""
    weights = {name: layer.stored[f"{name}.weight"].float() for name in layer.inputs[slot]}
    first, factor = variants[0], None
    if first.method in SOLVED:
        moments = layer.seen(slot, first.seed)
        if moments is not None:
            factor = gptq.factor(moments.H, first.damp_percent, first.actorder)
    parts = []
    for variant in variants:
        started = time.thread_time()
        quantized = {name: _quantize(W, factor, variant) for name, W in weights.items()}
        runtime = _clusters(layer, slot, variant)
        parts.append((variant, Part(quantized, {}, time.thread_time() - started, runtime)))
    return parts


def _clusters(layer: Layer, slot: int, variant: Variant) -> dict[str, Tensor]:
    """How RPTQ rounds the linears' input, by the linear's full name; {} = token by token."""
    moments = layer.seen(slot, variant.seed)
    if variant.method != "rptq" or variant.act_bits == 16 or moments is None:
        return {}
    found = activations.cluster(moments.low, moments.high, variant.act_bits, variant.seed)
    return {f"{name}.{key}": t.clone() for name in layer.inputs[slot] for key, t in found.items()}


def _quantize(W: Tensor, factor: gptq.Factor | None, variant: Variant) -> Quantized:
    if factor is None:
        return rtn.quantize(W, variant.bits, variant.group_size, variant.sym)
    return gptq.quantize(W, factor, variant.bits, variant.group_size, variant.sym)
