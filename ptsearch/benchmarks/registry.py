"""The benchmarks: the records that files of this wing end with, and those of installed packages.

A package adds benchmarks through the entry point group `ptsearch.benchmarks`, each a
`BenchmarkDefinition`.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from ptsearch import benchmarks
from ptsearch.benchmarks.definition import BenchmarkDefinition
from ptsearch.benchmarks.parsing import PARSERS, Rule

GROUP = "ptsearch.benchmarks"
USERS = ("registry", "sources")  # files that import this one


def built_in() -> Iterator[BenchmarkDefinition]:
    """`BENCHMARK` of every file."""
    for module in iter_modules(benchmarks.__path__):
        if module.name not in USERS:
            file = import_module(f"{benchmarks.__name__}.{module.name}")
            if definition := getattr(file, "BENCHMARK", None):
                yield definition


def load() -> dict[str, BenchmarkDefinition]:
    """Every benchmark by name, in the order of ranks.

    ValueError: an entry point is not a BenchmarkDefinition, or its name is taken.
    """
    definitions = {definition.name: definition for definition in built_in()}
    for point in entry_points(group=GROUP):
        where, definition = f"entry point {point.value} of {GROUP}", point.load()
        if not isinstance(definition, BenchmarkDefinition):
            raise ValueError(f"{where} must be a BenchmarkDefinition, got {definition!r}")
        if definition.name in definitions:
            raise ValueError(f"{where}: a benchmark named {definition.name} exists already")
        definitions[definition.name] = definition
    return dict(sorted(definitions.items(), key=lambda item: (item[1].rank, item[0])))


def parsers() -> dict[str, dict[str, Rule]]:
    """Rule set -> name of a parser -> its function under these rules."""
    known = PARSERS | {
        name: parser
        for definition in BENCHMARKS.values()
        for name, parser in definition.parsers.items()
    }
    clean = {name: parser.clean for name, parser in known.items()}
    published = {name: parser.published or parser.clean for name, parser in known.items()}
    return {"clean": clean, "ct": published, "dt": published}


BENCHMARKS = load()
NAMES = tuple(BENCHMARKS)
PERSPECTIVES = tuple(name for name, definition in BENCHMARKS.items() if definition.perspective)
RULES = parsers()  # DecodingTrust (dt) and Decoding Compressed Trust (ct) parse replies alike
