"""The methods: the records that the files of this wing end with, and those of installed packages.

A package adds methods through the entry point group `ptsearch.methods`, each a `Method`.
"""

from ptsearch import quantize
from ptsearch.quantize.method import GROUP, Method
from ptsearch.shared import RecordNames, collect_records


def load() -> dict[str, Method]:
    """Every method by name."""
    return collect_records(quantize, Method, RecordNames("METHOD", "method", GROUP), ("registry",))


METHODS = load()
