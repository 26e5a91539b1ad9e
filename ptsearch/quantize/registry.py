"""The methods: the records that the files of this wing end with, and those of installed packages.

A package adds methods through the entry point group `ptsearch.methods`, each a `Method`.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from ptsearch import quantize
from ptsearch.quantize.method import Method

GROUP = "ptsearch.methods"


def built_in() -> Iterator[Method]:
    """`METHOD` or `METHODS` of every file, by file name."""
    for file in sorted(module.name for module in iter_modules(quantize.__path__)):
        if file != "registry":
            module = import_module(f"{quantize.__name__}.{file}")
            yield from getattr(module, "METHODS", ())
            if method := getattr(module, "METHOD", None):
                yield method


def load() -> dict[str, Method]:
    """Every method by name. ValueError: an entry point is not a Method, or its name is taken."""
    methods = {method.name: method for method in built_in()}
    for point in entry_points(group=GROUP):
        where, method = f"entry point {point.value} of {GROUP}", point.load()
        if not isinstance(method, Method):
            raise ValueError(f"{where} must be a Method, got {method!r}")
        if method.name in methods:
            raise ValueError(f"{where}: a method named {method.name} exists already")
        methods[method.name] = method
    return methods


METHODS = load()
