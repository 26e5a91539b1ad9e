"""From the answers of members to one answer per sample.

In: answer codes (members, samples) and the members' precision. Out: codes (samples,).
`votes.py` is Algorithm 1 of arXiv 2511.22483, which needs NumPy alone; each other rule is one file
that ends with a `VoteRule`; `VOTES` holds these and those of the entry point group
`ptsearch.votes`. `lazy.py` stops asking members once the vote is decided. Open `votes.py` first,
then `weighted.py`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptsearch.voting.registry import VOTES
    from ptsearch.voting.rule import Fitted, VoteInputs, VoteRule

__all__ = ["VOTES", "Fitted", "VoteInputs", "VoteRule"]


def __getattr__(name: str) -> object:
    """The rules on first use: a server needs `votes` alone."""
    if name == "VOTES":
        from ptsearch.voting.registry import VOTES

        return VOTES
    if name in __all__:
        from ptsearch.voting import rule

        return getattr(rule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
