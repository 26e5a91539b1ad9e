"""Solves one decoder layer for several variants, in pieces that can run side by side."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ptsearch import quantize
from ptsearch.quantize.layer import Layer, LayerResult, LinearGroup, ScalingSite
from ptsearch.variant import Variant


class Job(NamedTuple):
    """A piece of the work on one layer."""

    variants: list[Variant]
    solve: Callable[[], list[tuple[Variant, LayerResult]]]


def jobs(layer: Layer, variants: Sequence[Variant], sites: list[ScalingSite]) -> Iterator[Job]:
    """Pieces that together solve the layer for every variant; `sites`: where it can be scaled.

    A method that takes the layer as a whole has one job per variant; of all others, one job per
    input solves the variants that share a solver and the fields that it wants equal.
    """
    together: dict[object, list[Variant]] = {}
    for variant in variants:
        method = quantize.METHODS[variant.method]
        if method.solve_layer:
            yield Job([variant], partial(_solve_layer, layer, sites, variant))
        else:
            shared = (method.solve, *(getattr(variant, field) for field in method.agree_on))
            together.setdefault(shared, []).append(variant)
    for alike in together.values():
        for slot in range(len(layer.inputs)):
            yield Job(alike, partial(_solve_group, layer, slot, alike))


def _solve_layer(
    layer: Layer, sites: list[ScalingSite], variant: Variant
) -> list[tuple[Variant, LayerResult]]:
    solve = quantize.METHODS[variant.method].solve_layer
    assert solve is not None
    started = time.thread_time()
    quantized, replaced = solve(layer, sites, variant)
    seconds = time.thread_time() - started
    return [(variant, LayerResult(dict(quantized), dict(replaced), seconds))]


def _solve_group(
    layer: Layer, slot: int, variants: list[Variant]
) -> list[tuple[Variant, LayerResult]]:
    """The linears of one input, for variants that share a solver."""
    weights = {name: layer.stored[f"{name}.weight"].float() for name in layer.inputs[slot]}
    seed, width = variants[0].seed, next(iter(weights.values())).shape[1]
    moments = layer.seen(slot, seed)
    H = torch.zeros(width, width) if moments is None else moments.H
    group = LinearGroup(weights, H, layer.fisher.get(seed, {}))
    solve = quantize.METHODS[variants[0].method].solve
    assert solve is not None
    started = time.thread_time()
    solved = solve(group, variants)
    seconds = (time.thread_time() - started) / len(variants)
    return [
        (variant, LayerResult(dict(quantized), {}, seconds, _input_rounding(layer, slot, variant)))
        for variant, quantized in zip(variants, solved, strict=True)
    ]


def _input_rounding(layer: Layer, slot: int, variant: Variant) -> dict[str, Tensor]:
    """Static rounding of the linears' input, by full name; {} = dynamic, per token."""
    method = quantize.METHODS[variant.method]
    moments = layer.seen(slot, variant.seed)
    if method.fit_inputs is None or variant.act_bits == 16 or moments is None:
        return {}
    fitted = method.fit_inputs(moments.low, moments.high, variant.act_bits, variant.seed)
    return {f"{name}.{key}": t for name in layer.inputs[slot] for key, t in fitted.items()}
