"""The majority of Algorithm 1 (`votes.majority`) as a vote rule: the default."""

from ptsearch.voting import votes
from ptsearch.voting.rule import VoteRule

VOTE = VoteRule(
    name="majority",
    vote=lambda inputs, _: votes.majority(inputs.answers, inputs.precision),
    enumerable=True,
    deployable=True,
)
