"""AWQ (Lin et al., arXiv 2306.00978): scale the input channels that matter, then clip and round.

Columns of W are multiplied by s and whatever produces the input is divided by it: the model stays
the same, and channels with large activations lose less in rounding. s = mean|x|^a, a in [0, 1]; a
is chosen by the output error tr(dW H dW^T) (equation 5). Groups are then clipped to the least error
weighted by the diagonal of H, in all linears (the paper leaves out query and key, and multiplies
by the inputs themselves; perplexity was no worse this way).

Which module produces an input is found by trying it: a candidate is divided by random scales and
the linears multiplied; where the layer's output does not change, the pair is a `ScalingSite`. So
norms that compute (1 + w) x, fused projections and grouped queries need no tables of names.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ptsearch.models.layers import map_tensors
from ptsearch.quantize import grid, rtn
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import Layer, Moments, ScalingSite
from ptsearch.quantize.method import Method
from ptsearch.variant import Variant

EXPONENTS = [step / 10 for step in range(11)]
SEARCH_ROWS = 64  # of each linear, evenly spaced: enough to choose one exponent
EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")  # its number
LEAST = 1e-3  # of the layer's change to its input: what scaling does that can be seen
TOLERANCE = 5e-3  # of that, in float32: what is left where it is undone


class ScalingSites:
    """The sites of each kind of input, found once; a layer's experts are of one kind."""

    def __init__(self) -> None:
        self._known: dict[object, ScalingSite | None] = {}

    def of(self, layer: Layer) -> list[ScalingSite]:
        """Where this layer can be scaled without changing what it computes."""
        shapes = tuple((name, tensor.shape) for name, tensor in layer.module.named_parameters())
        trial, keys = None, []
        for slot, names in enumerate(layer.inputs):
            relative = [EXPERT.sub("*", name.removeprefix(layer.prefix)) for name in names]
            keys.append(key := (type(layer.module), shapes, *relative))
            if key not in self._known:
                trial = trial or _Trial(layer)
                effect = trial.change(slot)
                if effect > LEAST * trial.whole:  # else the example is not sent to this expert
                    sites = _candidates(layer, slot)
                    kept = (s for s in sites if trial.change(slot, s) <= TOLERANCE * effect)
                    self._known[key] = next(kept, None)
        found = []
        for slot, (key, names) in enumerate(zip(keys, layer.inputs, strict=True)):
            if site := self._known.get(key):
                number = EXPERT.search(names[0])
                source = EXPERT.sub(number.group(), site.source) if number else site.source
                found.append(ScalingSite(source, site.offset, slot))
        return found


class _Trial:
    """A copy of a layer in float32, and what it computes for the example."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.module = layer, deepcopy(layer.module).float()
        self.arguments = map_tensors(_to_float, layer.example)
        self.before = _run(self.module, *self.arguments)
        self.whole = (self.before - self.arguments[0][0]).norm().item()  # what the layer does

    def change(self, slot: int, site: ScalingSite | None = None) -> float:
        """What scaling the columns of an input's linears does, undone at `site` or not at all."""
        names = [name.removeprefix(self.layer.prefix) for name in self.layer.inputs[slot]]
        linears: list[Any] = [self.module.get_submodule(name) for name in names]
        source = [self.module.get_submodule(site.source)] if site else []
        kept = [deepcopy(part.state_dict()) for part in (*source, *linears)]
        s = 2.0 ** (torch.arange(linears[0].in_features) % 3 - 1).float()
        with torch.no_grad():
            if site:
                _undo(source[0], s, site.offset)
            for linear in linears:
                linear.weight.mul_(s)
        after = _run(self.module, *self.arguments)
        for part, state in zip((*source, *linears), kept, strict=True):
            part.load_state_dict(state)
        return (after - self.before).norm().item()


def quantize(
    layer: Layer, places: list[ScalingSite], variant: Variant
) -> tuple[dict[str, Quantized], dict[str, Tensor]]:
    """(linear -> quantized, other tensors of the layer that changed, by full name)."""
    how = (variant.bits, variant.group_size, variant.sym)
    values = {name: tensor.float() for name, tensor in layer.stored.items()}
    replaced: set[str] = set()
    scales: dict[int, Tensor] = {}
    for site in places:
        moments = layer.seen(site.slot, variant.seed)
        if moments is None:
            continue
        weights = [values[f"{name}.weight"] for name in layer.inputs[site.slot]]
        s = _search(weights, moments, variant)
        s = divide(values, layer, site, s, replaced)
        for name in layer.inputs[site.slot]:
            values[f"{name}.weight"] = values[f"{name}.weight"] * s
        scales[site.slot] = s
    quantized = {}
    for slot, names in enumerate(layer.inputs):
        seen = layer.seen(slot, variant.seed)
        for name in names:
            W = values[f"{name}.weight"]
            if seen is None:
                quantized[name] = rtn.quantize(W, *how)
                continue
            importance = seen.H.diagonal() / scales.get(slot, torch.tensor(1.0)) ** 2
            fitted = grid.fit_weighted(W, importance, *how)
            quantized[name] = Quantized(grid.quantize(W, fitted), fitted)
    return quantized, {name: values[name].to(layer.stored[name].dtype) for name in replaced}


def _search(weights: list[Tensor], moments: Moments, variant: Variant) -> Tensor:
    """The scales (in,) of the best exponent."""
    how = (variant.bits, variant.group_size, variant.sym)
    some = torch.cat([W[:: max(1, len(W) // SEARCH_ROWS)] for W in weights])
    best, least = torch.ones(some.shape[1]), torch.inf
    for exponent in EXPONENTS:
        s = moments.mean_abs.clamp(min=1e-6) ** exponent
        s = s / (s.max() * s.min()).sqrt()
        fitted = grid.fit_weighted(some * s, moments.H.diagonal() / s**2, *how)
        d = grid.dequantize(grid.quantize(some * s, fitted), fitted) / s - some
        error = ((d @ moments.H) * d).sum().item()
        if error < least:
            best, least = s, error
    return best


def divide(
    values: dict[str, Tensor], layer: Layer, site: ScalingSite, s: Tensor, replaced: set[str]
) -> Tensor:
    """Divide the source's output by s in `values`; the scales that its stored form really has."""
    source = layer.prefix + site.source
    bias = f"{source}.bias"
    if bias in values:
        values[bias] = values[bias] / s
        replaced.add(bias)
    weight = f"{source}.weight"
    old = values[weight]
    if old.ndim == 2:  # a linear that is quantized after this
        values[weight] = old / s[:, None]
        return s
    new = ((old + site.offset) / s - site.offset).to(layer.stored[weight].dtype).float()
    values[weight] = new
    replaced.add(weight)
    exact = (old + site.offset) / (new + site.offset)  # makes up for the rounding of the norm
    return torch.where(exact.isfinite() & (exact > 0), exact, s)


def _candidates(layer: Layer, slot: int) -> Iterator[ScalingSite]:
    """Norms of the input's width, then linears that ran before and have that many outputs.

    What an expert is given is others' too; only linears of its own come before its others.
    """
    first = layer.inputs[slot][0]
    expert = first[: first.rindex(".") + 1] if ".experts." in first else ""
    width = layer.stored[f"{layer.inputs[slot][0]}.weight"].shape[1]
    for name, part in layer.module.named_modules():
        weight = getattr(part, "weight", None)
        if not expert and isinstance(weight, Tensor) and weight.shape == (width,):
            yield ScalingSite(name, 0.0, slot)
            yield ScalingSite(name, 1.0, slot)
    for names in layer.inputs[:slot]:
        for name in names:
            if name.startswith(expert) and layer.stored[f"{name}.weight"].shape[0] == width:
                yield ScalingSite(name.removeprefix(layer.prefix), 0.0, slot)


def _undo(source: nn.Module, s: Tensor, offset: float) -> None:
    weight = source.get_parameter("weight")
    if weight.ndim == 2:
        weight.div_(s[:, None])
    else:
        weight.copy_((weight + offset) / s - offset)
    bias = getattr(source, "bias", None)
    if isinstance(bias, Tensor):
        bias.div_(s)


def _run(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, object]) -> Tensor:
    with torch.inference_mode():
        output = type(module).forward(module, *args, **kwargs)
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _to_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


METHOD = Method("awq", solve_layer=quantize, needs=("hessian", "sites"))
