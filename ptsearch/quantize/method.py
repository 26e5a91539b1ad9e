"""The record that describes a quantization method; each method's file ends with one."""

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ptsearch.models.coded import Coded
    from ptsearch.quantize.grid import Quantized
    from ptsearch.quantize.layer import Layer, LinearGroup, ScalingSite
    from ptsearch.variant import Variant

    # The linears of one input, solved for each of several variants that agree on `agree_on`.
    Solve = Callable[[LinearGroup, Sequence[Variant]], Sequence[Mapping[str, Quantized | Coded]]]
    # A layer as a whole: (linear -> quantized, other tensors that changed, by full name).
    SolveLayer = Callable[
        [Layer, list[ScalingSite], Variant], tuple[Mapping[str, Quantized], Mapping[str, Tensor]]
    ]
    # Calibrated ranges (low, high) of an input's channels, act_bits, seed -> run-time tensors.
    FitInputs = Callable[[Tensor, Tensor, int, int], Mapping[str, Tensor]]

GROUP = "ptsearch.methods"  # of the entry points through which packages add methods
NEEDS = ("hessian", "ranges", "gradients", "sites", "kv")  # what calibration may measure
# as the base model | compressed-tensors | ptsearch-codes | llama.cpp
STORAGES = ("dense", "uniform", "codes", "gguf")
AGREE_ON = ("seed", "damp_percent", "actorder", "group_size")


@dataclass(frozen=True)
class Method:
    """A quantization method: how it solves a layer, and what it knows.

    `solve` handles the linears of one input, `solve_layer` a decoder layer as a whole; a method
    with neither leaves the weights dense, or llama.cpp quantizes them. `bits` are the lowest and
    highest bit-width, both supported, and `without_bits` are gaps between them; a method may have
    `types` instead, by name, each of about so many bits. `needs` lists what calibration measures
    for it: second moments of inputs (`hessian`), their per-channel ranges, squared gradients of the
    loss, sites where channels can be scaled, recorded keys and values (`kv`).
    """

    name: str
    solve: "Solve | None" = None
    bits: tuple[int, int] = (2, 8)
    needs: tuple[str, ...] = ()
    storage: str = "uniform"
    grouped: bool = True  # knows group_size
    stochastic: bool = False  # knows rounding_seed
    without_bits: tuple[int, ...] = ()
    agree_on: tuple[str, ...] = AGREE_ON  # fields of the variants that one call of `solve` handles
    solve_layer: "SolveLayer | None" = None
    fit_inputs: "FitInputs | None" = None  # static rounding of inputs; None = per token
    kv: bool = False  # defines how keys and values are rounded; needs kv_bits
    package: str = ""  # optional dependency, an extra of the same name without _
    types: Mapping[str, int] = field(default_factory=dict)  # name -> bits

    def __post_init__(self) -> None:
        if unknown := set(self.needs) - set(NEEDS):
            raise ValueError(f"{self.name}: needs must be among {', '.join(NEEDS)}, got {unknown}")
        if self.storage not in STORAGES:
            raise ValueError(
                f"{self.name}: storage must be one of {', '.join(STORAGES)}, got {self.storage!r}"
            )
        if (self.storage in ("uniform", "codes")) != bool(self.solve or self.solve_layer):
            raise ValueError(f"{self.name}: storage uniform or codes needs solve or solve_layer")

    @property
    def calibrated(self) -> bool:
        """Whether its variants depend on calibration text."""
        return bool(self.needs)

    @property
    def dense(self) -> bool:
        """Whether the weights are left as they are in the base model."""
        return self.storage == "dense"

    def check_available(self) -> None:
        """ValueError: its optional dependency is not installed."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ValueError(
                f"method={self.name} requires the package {self.package}: "
                f"pip install 'ptsearch[{self.package.replace('_', '')}]'"
            )

    def check_bits(self, bits: int) -> None:
        """ValueError: a bit-width that the method does not have."""
        low, high = self.bits
        if not low <= bits <= high or bits in self.without_bits:
            gaps = f" except {', '.join(map(str, self.without_bits))}" if self.without_bits else ""
            raise ValueError(f"{self.name}: bits must be {low} to {high}{gaps}, got {bits=}")


def method_of(name: str) -> Method:
    """The record of a method. Before anything has imported torch, `described` are the records, and
    those of packages are imported only for a name that is not there. ValueError: no such method.
    """
    from ptsearch import quantize

    loaded = "ptsearch.quantize.registry" in sys.modules
    known = quantize.METHODS if loaded else described()
    if name not in known and entry_points(group=GROUP):
        known = quantize.METHODS
    if name not in known:
        raise ValueError(f"method must be one of {', '.join(known)}, got {name}")
    return known[name]


@cache
def described() -> dict[str, Method]:
    """The records of this wing's files as these spell them, without importing torch, which takes
    seconds: functions are left out, literals kept.
    """
    records = {}
    for file in sorted(set(Path(__file__).parent.glob("*.py")) - {Path(__file__)}):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Method":
                fields = {str(each.arg): _literal(each.value) for each in node.keywords}
                method = Method(*map(_literal, node.args), **fields)
                records[method.name] = method
    return records


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
