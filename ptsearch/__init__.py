"""Search ensembles of compressed language models for trust, accuracy, memory and latency."""

from typing import TYPE_CHECKING

from ptsearch.variant import Variant

if TYPE_CHECKING:
    from ptsearch.deploy.ensemble import PrecisionEnsemble

__all__ = ["PrecisionEnsemble", "Variant"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`PrecisionEnsemble` on first use: it imports the engine."""
    if name == "PrecisionEnsemble":
        from ptsearch.deploy.ensemble import PrecisionEnsemble

        return PrecisionEnsemble
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
