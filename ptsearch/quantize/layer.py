"""What a quantizer gets: one decoder layer and what calibration tells about its linear inputs."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from ptsearch.codes import Coded
from ptsearch.quantize.grid import Quantized


class Moments(NamedTuple):
    """Moments of one linear input, in the mean over tokens."""

    H: Tensor  # (in, in) second moments, float32
    mean_abs: Tensor  # (in,)
    tokens: int


class Layer(NamedTuple):
    """One decoder layer, read from the checkpoint and run over the calibration samples."""

    number: int
    prefix: str  # of its tensors' names, with the dot
    module: nn.Module  # in the dtype of computation
    stored: dict[str, Tensor]  # every tensor as the checkpoint has it, by full name
    inputs: list[tuple[str, ...]]  # full names of linears that share an input, in order of use
    moments: list[dict[int, Moments]]  # for each of `inputs`: seed -> moments; {} = never reached
    example: tuple[tuple[Any, ...], dict[str, Any]]  # arguments of the layer for one sample
    fisher: dict[int, dict[str, Tensor]] = {}  # noqa: RUF012  seed -> linear -> diagonal (out, in)


class Problem(NamedTuple):
    """Linears that share one input, for the variants of one calibration seed."""

    weights: dict[str, Tensor]  # (out, in) float32, by full name
    H: Tensor  # (in, in); zeros where no calibration sample came by
    fisher: dict[str, Tensor]  # by linear (out, in); empty where no method asked for it


class Part(NamedTuple):
    """A variant's share of one decoder layer."""

    quantized: dict[str, Quantized | Coded]  # by linear, full name
    replaced: dict[str, Tensor]  # other tensors that differ from the stored ones, by full name
    cpu_seconds: float  # what several variants shared is split evenly
