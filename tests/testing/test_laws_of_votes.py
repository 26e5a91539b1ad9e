"""Our vote rules pass the law suite, and broken ones do not."""

import numpy as np
import pytest

from ptsearch.config import VoteConfig
from ptsearch.testing import check_vote_rule
from ptsearch.voting import VOTES, VoteRule

SETTINGS = {"fair": VoteConfig(rule="fair", max_dpd=10, max_eod=10)}


@pytest.mark.parametrize("name", VOTES)
def test_a_rule_of_ours_keeps_the_laws(name: str) -> None:
    for seed in range(5):
        check_vote_rule(VOTES[name], SETTINGS.get(name), seed)


@pytest.mark.parametrize(
    ("law", "vote"),
    [
        ("order", lambda inputs, _: inputs.answers[0]),
        ("shape", lambda inputs, _: inputs.answers),
        ("vote as itself", lambda inputs, _: np.full_like(inputs.answers[0], -1)),
        ("usable answer", lambda inputs, _: np.maximum(inputs.answers.max(axis=0), 0)),
    ],
)
def test_a_broken_rule_is_found(law: str, vote: object) -> None:
    broken = VoteRule("broken", vote)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=law):
        check_vote_rule(broken)
