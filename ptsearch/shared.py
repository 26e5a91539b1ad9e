"""What the wings share: type aliases, and how the records of a wing's files are collected."""

from collections.abc import Callable, Collection
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import ModuleType
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

AnswerCodes = NDArray[np.int16]  # (..., samples): a label's index, or why there is none (< 0)
Floats = NDArray[np.float64]
Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"  # JSON of no fixed form, such as a model's config
Report = Callable[[str, int, int], None]  # what is under way, how many are done, of how many


class Named(Protocol):
    """A record that a dict holds under its name."""

    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=Named)


class RecordNames(NamedTuple):
    """How the records of one kind are called."""

    constant: str  # that a file ends with; its plural is a tuple of several
    noun: str  # for people
    group: str  # of entry points, through which packages add their own


def collect_records(
    wing: ModuleType, kind: type[Record], names: RecordNames, skip: Collection[str]
) -> dict[str, Record]:
    """Name -> record, of a wing's files in the order of their names, then of installed packages.

    `skip` are files that must not be imported for it. ValueError: an entry point is not a `kind`,
    or its name is taken.
    """
    records: dict[str, Record] = {}
    for file in sorted(module.name for module in iter_modules(wing.__path__)):
        if file not in skip:
            module = import_module(f"{wing.__name__}.{file}")
            several = getattr(module, f"{names.constant}S", ())
            one = getattr(module, names.constant, None)
            for record in several if one is None else (*several, one):
                records[record.name] = record
    for point in entry_points(group=names.group):
        where, added = f"entry point {point.value} of {names.group}", point.load()
        if not isinstance(added, kind):
            raise ValueError(f"{where} must be a {kind.__name__}, got {added!r}")
        if added.name in records:
            raise ValueError(f"{where}: a {names.noun} named {added.name} exists already")
        records[added.name] = added
    return records
