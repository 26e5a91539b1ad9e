"""Quantization methods, one file each: free functions on W and the moments of its input.

In: the linears of one decoder layer with H, mean |x| and per-channel ranges of their inputs.
Out: grids, codebooks or trellises that stand for the weights.
Open `rtn.py` first: the shortest method; then `gptq.py`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from ptsearch.models.coded import Coded
from ptsearch.quantize import (
    activations,
    aqlm,
    awq,
    gptq,
    hqq,
    nested,
    qtip,
    rtn,
    smoothquant,
    squeezellm,
)
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import Layer, Part, Problem
from ptsearch.variant import Variant

SCALED = {"awq": awq.quantize, "smoothquant": smoothquant.quantize}  # a layer as a whole
Solved = Mapping[str, Quantized | Coded]  # by linear


class Job(NamedTuple):
    """A piece of the work on one layer."""

    variants: list[Variant]
    solve: Callable[[], list[tuple[Variant, Part]]]


# method -> the linears of one input, solved for each of several variants that agree on `_shared`
SOLVERS: dict[str, Callable[[Problem, Sequence[Variant]], Sequence[Solved]]] = {
    "rtn": rtn.solve,
    "zeroquant": rtn.solve,
    "gptq": gptq.solve,
    "rptq": gptq.solve,
    "wkvquant": gptq.solve,
    "nested": nested.solve,
    "squeezellm": squeezellm.solve,
    "aqlm": aqlm.solve,
    "qtip": qtip.solve,
    "hqq": hqq.solve,
}

CODED = ("nested", "squeezellm", "aqlm", "qtip", "hqq")  # stored as ptsearch.codes has it


def jobs(layer: Layer, variants: Sequence[Variant], places: list[awq.Site]) -> Iterator[Job]:
    """Pieces that together solve the layer for every variant; `places`: where it can be scaled."""
    for variant in variants:
        if variant.method in SCALED:
            yield Job([variant], partial(_solve_scaled, layer, places, variant))
    others = sorted((v for v in variants if v.method not in SCALED), key=_shared)
    for slot in range(len(layer.inputs)):
        for _, same in groupby(others, _shared):
            alike = list(same)
            yield Job(alike, partial(_solve_input, layer, slot, alike))


def _shared(variant: Variant) -> tuple[str, int, float, str, int]:
    solver = SOLVERS[variant.method]
    groups = 0 if solver is gptq.solve else variant.group_size  # one factor serves all group sizes
    return solver.__module__, variant.seed, variant.damp_percent, variant.actorder, groups


def _solve_scaled(
    layer: Layer, places: list[awq.Site], variant: Variant
) -> list[tuple[Variant, Part]]:
    started = time.thread_time()
    quantized, replaced = SCALED[variant.method](layer, places, variant)
    return [(variant, Part(dict(quantized), replaced, time.thread_time() - started))]


def _solve_input(layer: Layer, slot: int, variants: list[Variant]) -> list[tuple[Variant, Part]]:
    """The linears of one input, for variants that agree on `_shared`."""
    weights = {name: layer.stored[f"{name}.weight"].float() for name in layer.inputs[slot]}
    seed, width = variants[0].seed, next(iter(weights.values())).shape[1]
    moments = layer.seen(slot, seed)
    H = torch.zeros(width, width) if moments is None else moments.H
    problem = Problem(weights, H, layer.fisher.get(seed, {}))
    started = time.thread_time()
    solved = SOLVERS[variants[0].method](problem, variants)
    seconds = (time.thread_time() - started) / len(variants)
    return [
        (variant, Part(dict(quantized), {}, seconds, _clusters(layer, slot, variant)))
        for variant, quantized in zip(variants, solved, strict=True)
    ]


def _clusters(layer: Layer, slot: int, variant: Variant) -> dict[str, Tensor]:
    """How RPTQ rounds the linears' input, by the linear's full name; {} = token by token."""
    moments = layer.seen(slot, variant.seed)
    if variant.method != "rptq" or variant.act_bits == 16 or moments is None:
        return {}
    found = activations.cluster(moments.low, moments.high, variant.act_bits, variant.seed)
    return {f"{name}.{key}": t.clone() for name in layer.inputs[slot] for key, t in found.items()}
