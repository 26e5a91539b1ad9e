"""What a method is given: a decoder layer and what calibration measured; and what it returns."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from ptsearch.models.coded import Coded
from ptsearch.models.layers import Arguments
from ptsearch.quantize.grid import Quantized

LEAST_TOKENS = 64  # of calibration; linears whose input saw fewer are rounded to nearest


class Moments(NamedTuple):
    """Moments of one linear input, in the mean over tokens."""

    H: Tensor  # (in, in) second moments, float32
    mean_abs: Tensor  # (in,)
    low: Tensor  # (in,) the least value
    high: Tensor  # (in,)
    tokens: int


class Layer(NamedTuple):
    """One decoder layer, read from the checkpoint and run over the calibration samples."""

    number: int
    prefix: str  # of its tensors' names, with the dot
    module: nn.Module  # in the dtype of computation
    stored: dict[str, Tensor]  # every tensor as the checkpoint has it, by full name
    inputs: list[tuple[str, ...]]  # full names of linears that share an input, in order of use
    moments: list[dict[int, Moments]]  # for each of `inputs`: seed -> moments; {} = never reached
    example: Arguments  # positional and by keyword of the layer for one sample
    fisher: dict[int, dict[str, Tensor]] = {}  # noqa: RUF012  seed -> linear -> diagonal (out, in)

    def seen(self, slot: int, seed: int) -> Moments | None:
        """The moments of an input, if it saw tokens enough to be fitted to: an expert may not."""
        moments = self.moments[slot].get(seed)
        return moments if moments and moments.tokens >= LEAST_TOKENS else None


class ScalingSite(NamedTuple):
    """Linears whose input columns can be scaled, because `source` can undo it."""

    source: str  # norm or linear, by its name within the layer
    offset: float  # a norm's output is (weight + offset) x
    slot: int  # which of the layer's inputs


class LinearGroup(NamedTuple):
    """Linears that share one input, for the variants of one calibration seed."""

    weights: dict[str, Tensor]  # (out, in) float32, by full name
    H: Tensor  # (in, in); zeros where no calibration sample came by
    fisher: dict[str, Tensor]  # by linear (out, in); empty where no method asked for it


class LayerResult(NamedTuple):
    """A variant's share of one decoder layer."""

    quantized: dict[str, Quantized | Coded]  # by linear, full name
    replaced: dict[str, Tensor]  # other tensors that differ from the stored ones, by full name
    cpu_seconds: float  # what several variants shared is split evenly
    runtime: Mapping[str, Tensor] = MappingProxyType({})  # what rounds inputs while it runs
