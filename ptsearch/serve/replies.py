"""What each member replies to a query, and the vote on it: what both servers share.

Members stand in the vote's total order everywhere: the first of the tied wins.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE
from ptsearch.deploy.query import Query, vote

OUTCOMES = {REFUSED: "refused", UNUSABLE: "unusable", CONTRADICTORY: "contradictory"}
# No reply: the engine is down, too slow, in cooldown, or rejected the request (4xx).
AWAY = ("down", "slow", "cooldown", "rejected")
NOT_ASKED = "not asked"  # the vote was decided without it


class Reply(NamedTuple):
    """What one member said."""

    code: int  # a label's index, or a negative answer code
    outcome: str  # answered, one of OUTCOMES, one of AWAY, or NOT_ASKED
    ms: float = 0.0
    tokens: tuple[int, int] = (0, 0)  # of the prompt, of the answer
    note: str = ""  # why there is no reply


class VoteResult(NamedTuple):
    """The outcome over the members that replied."""

    code: int
    shares: list[float]  # per label, of the usable answers
    agreed: bool  # no two usable answers differ
    away: int  # members whose reply never came
    tokens: tuple[int, int]


Ask = Callable[[Query], Awaitable[list[Reply]]]


class Members(NamedTuple):
    """An open ensemble."""

    ask: Ask
    away: Callable[[], list[str]]  # members in cooldown


def answered(code: int, ms: float = 0.0, tokens: tuple[int, int] = (0, 0)) -> Reply:
    return Reply(code, OUTCOMES.get(code, "answered"), ms, tokens)


def count(replies: Sequence[Reply], asked: Query) -> VoteResult:
    """The search's majority vote over those who replied."""
    codes = [reply.code for reply in replies]
    usable = [code for code in codes if code >= 0]
    labels = range(len(asked.question.labels))
    shares = [usable.count(label) / len(usable) if usable else 0.0 for label in labels]
    away = sum(reply.outcome in AWAY for reply in replies)
    tokens = max((reply.tokens for reply in replies), default=(0, 0))
    return VoteResult(vote(asked, codes), shares, len(set(usable)) <= 1, away, tokens)
