"""What the wings share: type aliases, checked fields, secrets, how records are collected."""

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import field, fields
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

AnswerCodes = NDArray[np.int16]  # (..., samples): a label's index, or why there is none (< 0)
Floats = NDArray[np.float64]
ENV = "env:"  # before the name of an environment variable
PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")  # in a URL
Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"  # JSON of no fixed form, such as a model's config
CsvRow = dict[str, str | int | float]  # column -> value
Report = Callable[[str, int, int], None]  # what is under way, how many are done, of how many
BUILDING, EVALUATING = "building the pool: layer", "evaluating "  # stages; the second with a label
VARIANTS = "variants"  # a stage of the whole: those that answered


@contextmanager
def stage(report: Report, name: str) -> Iterator[None]:
    """Reports work of one step, as it begins and as it ends."""
    report(name, 0, 1)
    yield
    report(name, 1, 1)


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


def choice(*choices: str) -> Any:
    """A field whose value is one of `choices`; the first is the default."""
    return field(default=choices[0], metadata={"choices": choices})


def least(default: float, minimum: float) -> Any:
    """A field of at least `minimum`."""
    return field(default=default, metadata={"least": minimum})


def check(section: str, config: Any) -> None:
    """ValueError: a field of the section has a value that it cannot have."""
    for each in fields(config):
        key, value = f"{section}.{each.name}", getattr(config, each.name)
        if "choices" in each.metadata:
            one_of(key, value, each.metadata["choices"])
        if "least" in each.metadata:
            at_least(key, value, each.metadata["least"])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words, as the end of a complaint; "" = none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def need_http(key: str, url: str) -> None:
    if url and not url.startswith(("http://", "https://")):
        raise ValueError(f"{key} must begin with http, got {url!r}")


def at_least(key: str, value: float, minimum: float) -> None:
    if value < minimum:
        raise ValueError(f"{key} must be at least {minimum}, got {value}")


def database_url(key: str, value: str) -> str:
    """The URL itself, or what the environment variable holds that `env:NAME` names."""
    named = value.startswith(ENV)
    url = secret(key, value.removeprefix(ENV)) if named else value
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)  # the driver of the extra


def refuse_password(key: str, value: str) -> None:
    """ValueError: a URL with a password in it, which records of the study would show to others."""
    if PASSWORD.search(value):
        raise ValueError(
            f"{key} holds a password, and what is configured is written to files: put the URL into "
            f"an environment variable and give {key}={ENV}NAME, or a ..._key_env where there is one"
        )


def secret(key: str, variable: str) -> str:
    """What the environment variable holds that the config names under `key`; "" = none is named.

    It is read where it is used, never written to a file or message.
    """
    value = os.environ.get(variable, "").strip()
    if variable and not value:
        raise ValueError(f"{key}: the environment variable {variable} is not set")
    return value
