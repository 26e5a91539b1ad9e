"""Questions with what is right: benchmark > scenario > sample of an item.

In: `benchmarks.*` of the config. Out: `Benchmark`s, and parsers from a reply to an answer code.
Each benchmark is one file that ends with a `BenchmarkDefinition`: its loaders, its parsers, its
download; `BENCHMARKS` holds these and those of the entry point group `ptsearch.benchmarks`.
Open `definition.py` first, then `mmlu.py`; `sources.py` applies a config.
"""

from typing import TYPE_CHECKING

from ptsearch.benchmarks.definition import (
    Benchmark,
    BenchmarkDefinition,
    Prompt,
    Sample,
    Scenario,
    Turn,
    item_hash,
)

if TYPE_CHECKING:
    from ptsearch.benchmarks.registry import BENCHMARKS, PERSPECTIVES, RULES

__all__ = [
    "BENCHMARKS",
    "PERSPECTIVES",
    "RULES",
    "Benchmark",
    "BenchmarkDefinition",
    "Prompt",
    "Sample",
    "Scenario",
    "Turn",
    "item_hash",
]


def __getattr__(name: str) -> object:
    """The registered benchmarks on first use, since their files import from here."""
    if name in ("BENCHMARKS", "PERSPECTIVES", "RULES"):
        from ptsearch.benchmarks import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
