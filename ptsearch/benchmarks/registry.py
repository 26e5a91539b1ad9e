"""The benchmarks: the records that files of this wing end with, and those of installed packages.

A package adds benchmarks through the entry point group `ptsearch.benchmarks`, each a
`BenchmarkDefinition`.
"""

from ptsearch import benchmarks
from ptsearch.benchmarks.definition import BenchmarkDefinition
from ptsearch.benchmarks.parsing import PARSERS, Rule
from ptsearch.shared import RecordNames, collect_records

GROUP = "ptsearch.benchmarks"


def load() -> dict[str, BenchmarkDefinition]:
    """Every benchmark by name, in the order of ranks."""
    skip = ("own_file", "registry", "sources")  # they import this file
    names = RecordNames("BENCHMARK", "benchmark", GROUP)
    found = collect_records(benchmarks, BenchmarkDefinition, names, skip)
    return dict(sorted(found.items(), key=lambda item: (item[1].rank, item[0])))


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
NAMES = tuple(name for name, definition in BENCHMARKS.items() if definition.on)
PERSPECTIVES = tuple(name for name, definition in BENCHMARKS.items() if definition.perspective)
RULES = parsers()  # DecodingTrust (dt) and Decoding Compressed Trust (ct) parse replies alike
