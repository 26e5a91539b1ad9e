"""Our methods pass the law suite, and broken ones do not."""

from collections.abc import Sequence

import pytest
import torch

from ptsearch.quantize import METHODS, Method, rtn
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import LinearGroup
from ptsearch.testing import check_method
from ptsearch.variant import Variant

SLOW = ("gguf", "qtip", "squeezellm", "wkvquant")
OURS = [name for name in METHODS if name not in ("none", "path")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in OURS]
)
def test_a_method_of_ours_keeps_the_laws(name: str) -> None:
    if METHODS[name].package:
        pytest.importorskip(METHODS[name].package)
    check_method(METHODS[name])


def unseeded(group: LinearGroup, variants: Sequence[Variant]) -> list[dict[str, Quantized]]:
    """Stochastic rounding from the global generator."""
    return [
        {
            name: rtn.quantize(W, v.bits, v.group_size, v.sym, torch.rand(W.shape))
            for name, W in group.weights.items()
        }
        for v in variants
    ]


def test_a_method_that_draws_from_a_global_generator_is_found() -> None:
    with pytest.raises(AssertionError, match=r"built twice, .* differs"):
        check_method(Method("unseeded", unseeded))
    assert "unseeded" not in METHODS
