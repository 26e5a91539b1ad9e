"""The vote rules: the records that files of this wing end with, and those of installed packages.

A package adds rules through the entry point group `ptsearch.votes`, each a `VoteRule`.
"""

from ptsearch import voting
from ptsearch.shared import RecordNames, collect_records
from ptsearch.voting.rule import VoteRule

GROUP = "ptsearch.votes"


def load() -> dict[str, VoteRule]:
    """Every rule by name."""
    skip = ("lazy", "registry")  # Numba, and this file
    return collect_records(voting, VoteRule, RecordNames("VOTE", "vote rule", GROUP), skip)


VOTES = load()
