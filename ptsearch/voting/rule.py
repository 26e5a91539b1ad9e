"""The record of a vote rule, and what its functions take.

A file that adds a rule ends with `VOTE = VoteRule(...)`. Fitted values are plain numbers, so that
they can be recorded and exported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ptsearch.config import VoteConfig
from ptsearch.shared import AnswerCodes, Floats

if TYPE_CHECKING:
    from ptsearch.scoring.scores import Questions

Fitted = dict[str, list[float]]


class VoteInputs(NamedTuple):
    """The answers of an ensemble's members to some samples."""

    questions: "Questions"
    answers: AnswerCodes  # (members, samples)
    precision: Floats  # (members,)
    logprobs: Floats | None = None  # (members, samples, labels), for rules that need them


def fit_nothing(_: VoteInputs, __: VoteConfig) -> Fitted:
    return {}


@dataclass(frozen=True)
class VoteRule:
    """How members' answers become one: `fit` on the search half, then `vote` on any samples."""

    name: str
    vote: Callable[[VoteInputs, Fitted], AnswerCodes]
    fit: Callable[[VoteInputs, VoteConfig], Fitted] = fit_nothing
    needs_logprobs: bool = False  # of labels: generated replies have none
    takes_limits: bool = False  # fits vote.max_dpd and vote.max_eod
    enumerable: bool = False  # the majority: votes are popcounts, and asking may stop once decided
    deployable: bool = False  # PrecisionEnsemble and the servers compute it
