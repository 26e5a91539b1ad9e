"""The vote rules: the records that files of this wing end with, and those of installed packages.

A package adds rules through the entry point group `ptsearch.votes`, each a `VoteRule`.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from ptsearch import voting
from ptsearch.voting.rule import VoteRule

GROUP = "ptsearch.votes"
OTHERS = ("lazy", "registry")  # files without a rule that import Numba or this one


def built_in() -> Iterator[VoteRule]:
    """`VOTE` of every file, by file name."""
    for module in iter_modules(voting.__path__):
        if module.name not in OTHERS:
            file = import_module(f"{voting.__name__}.{module.name}")
            if rule := getattr(file, "VOTE", None):
                yield rule


def load() -> dict[str, VoteRule]:
    """Every rule by name. ValueError: an entry point is not a VoteRule, or its name is taken."""
    rules = {rule.name: rule for rule in built_in()}
    for point in entry_points(group=GROUP):
        where, rule = f"entry point {point.value} of {GROUP}", point.load()
        if not isinstance(rule, VoteRule):
            raise ValueError(f"{where} must be a VoteRule, got {rule!r}")
        if rule.name in rules:
            raise ValueError(f"{where}: a vote rule named {rule.name} exists already")
        rules[rule.name] = rule
    return rules


VOTES = load()
