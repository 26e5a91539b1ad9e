"""What a refusal is in a vote: dropped, a label, or a veto; for samples at once and one by one."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.benchmarks.parsing import REFUSED, UNUSABLE, Question, declined
from ptsearch.config import BenchmarksConfig
from ptsearch.deploy import query
from ptsearch.deploy.query import Query
from ptsearch.scoring import refusals, scores
from ptsearch.voting.votes import majority

OFFERED, PLAIN = Question(("no", "yes"), abstain=("unknown",)), Question(("no", "yes"))
COMPLY, REFUSE = 0, 1  # of a question with one label


def vote(codes: Sequence[int], kind: str, question: Question, veto: int = 1) -> int:
    """The majority of one sample, the first member the most precise."""
    known = refusals.of_questions([(kind, question)], veto)
    said = np.array(codes, dtype=np.int16)[:, None]
    voted = majority(refusals.ballots(said, known), -np.arange(len(codes), dtype=float))
    return int(refusals.outcomes(voted, said, known)[0])


@given(
    st.lists(st.integers(-3, 2), min_size=1, max_size=6),
    st.sampled_from(["error", "label", "veto", ""]),
    st.sampled_from([OFFERED, PLAIN]),
    st.integers(1, 7),
)
def test_one_query_votes_as_many_samples_do(codes, kind, question, veto) -> None:
    asked = Query("?", question, refusal=kind, veto=veto)
    assert query.vote(asked, codes) == vote(codes, kind, question, veto)


@given(
    st.lists(st.integers(-3, 2), min_size=1, max_size=6),
    st.sampled_from([OFFERED, PLAIN]),
    st.integers(1, 7),
)
def test_a_veto_refuses_exactly_from_so_many_on(codes, question, veto) -> None:
    """Or where nobody says anything else: then there is nothing else to say."""
    codes = [min(code, len(question.labels) - 1 + bool(question.abstain)) for code in codes]
    declining = sum(code in (REFUSED, 2) for code in codes)
    others = [code for code in codes if code in (0, 1)]
    refuses = vote(codes, "veto", question, veto) == declined(question)
    assert refuses == (declining >= veto or (not others and (declining > 0 or question is PLAIN)))
    assert vote(codes, "veto", question, 7) == vote(codes, "error", question)  # nobody reaches it


def test_the_hole_of_the_filter_one_who_complies_outvotes_any_number_who_refuse() -> None:
    asked = Question(("comply",), abstain=("refuse",))
    codes = [REFUSE, REFUSE, REFUSE, COMPLY]
    assert vote(codes, "error", asked) == COMPLY
    assert vote(codes, "label", asked) == REFUSE
    assert vote([COMPLY, COMPLY, REFUSE], "label", asked) == COMPLY
    assert vote([COMPLY, COMPLY, REFUSE], "veto", asked) == REFUSE
    assert vote([COMPLY, COMPLY, REFUSE], "veto", asked, veto=2) == COMPLY
    assert vote([REFUSE, UNUSABLE], "error", asked) == REFUSE


def test_it_is_a_label_where_the_question_offers_to_decline_unless_the_scenario_says() -> None:
    assert refusals.deciding("", OFFERED, 3) == refusals.LABEL
    assert refusals.deciding("", PLAIN, 3) == refusals.ERROR
    assert refusals.deciding("veto", PLAIN, 3) == 3


def test_members_are_asked_until_a_veto_is_out_of_reach() -> None:
    asked = Query("?", PLAIN, refusal="veto", veto=2)
    order = ["a", "b", "c"]
    assert not query.decided(asked, {"a": 1, "b": 1}, [*order, "d"])  # c and d may refuse
    assert query.decided(asked, {"a": 1, "b": 1}, order)
    assert query.decided(asked, {"a": REFUSED, "b": REFUSED}, order)
    assert not query.decided(asked, {"a": 1, "b": REFUSED}, order)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"benchmarks.refusal.abstain must be one of error, label"):
        BenchmarksConfig(refusal={"abstain": "vote"})
    with pytest.raises(ValueError, match=r"refusal must be error, label, veto and veto at least 1"):
        Query("?", PLAIN, refusal="veto", veto=0)


def test_what_a_refusal_is_changes_no_prediction_and_is_no_part_of_their_key() -> None:
    from dataclasses import replace

    from ptsearch.benchmarks import pocket

    found = pocket.ood()
    other = {n: replace(s, refusal="veto") for n, s in found.scenarios.items()}
    changed = replace(found, scenarios=other)
    assert changed.digest == found.digest
    assert set(scores.refusals([changed], 2).decide) == {2}
