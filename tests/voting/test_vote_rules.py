"""Vote rules fitted on the search half: their laws, and a study under each of them."""

from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_table, search_and_holdout, undominated
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from tables import random_asked, random_codes

from ptsearch import shared
from ptsearch.config import VoteConfig
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import explain
from ptsearch.report import rows as results
from ptsearch.scoring import metrics
from ptsearch.search import exact_front
from ptsearch.search.scorer import scorers
from ptsearch.search.study import CompletedTrial
from ptsearch.voting import VOTES, VoteInputs, VoteRule, registry
from ptsearch.voting.fair import fair_weights, label_weights
from ptsearch.voting.votes import majority
from ptsearch.voting.weighted import log_odds

SEEDS = st.integers(0, 2**32 - 1)
THREE = ("v0-3b", "v2-4b", "v4-8b")


def inputs(seed: int, members: int) -> VoteInputs:
    rng = np.random.default_rng(seed)
    asked = random_asked(rng, samples=16)
    said = random_codes(rng, asked, members)
    return VoteInputs(asked, said, rng.permutation(members).astype(float))


def table_with(folder: Path, vote: VoteConfig, **study: int) -> Table:
    table = fake_table(folder, **study)
    table.config.vote = vote
    if vote.rule == "soft":
        rng = np.random.default_rng(3)
        for label, entry in table.entries.items():
            logprobs = np.full((entry.codes.size, 3), np.nan)
            low, high = np.log(np.sort(rng.dirichlet((1, 1), entry.codes.size), axis=1)).T
            logprobs[:, 0] = np.where(entry.codes == 0, high, low)
            logprobs[:, 1] = np.where(entry.codes == 1, high, low)
            logprobs[entry.codes < 0] = np.nan
            table.entries[label] = replace(entry, logprobs=logprobs)
    return table


@given(SEEDS, st.integers(1, 5))
def test_fair_without_a_limit_or_within_it_is_the_majority(seed: int, members: int) -> None:
    given = inputs(seed, members)
    for config in (VoteConfig("fair"), VoteConfig("fair", max_dpd=100.0, max_eod=100.0)):
        voted = VOTES["fair"].vote(given, fair_weights(given, config))
        assert_array_equal(voted, majority(given.answers, given.precision))


@example(seed=1621, members=2, own=False)  # a scenario with one group only
@given(SEEDS, st.integers(2, 5), st.booleans())
def test_fair_comes_as_close_to_its_limit_as_any_weight(seed: int, members: int, own: bool) -> None:
    given, config = inputs(seed, members), VoteConfig("fair", max_dpd=5.0, by_group=own)
    fitted = fair_weights(given, config)
    weights = label_weights(members)
    for part in (part for part in given.questions.parts if part.scenario.metric == "parity"):
        key, rows = f"{part.benchmark}/{part.scenario.name}", part.rows

        def measured(pair: list[float], key: str = key, rows: np.ndarray = rows) -> tuple:
            voted = VOTES["fair"].vote(given, {key: pair})[rows]
            gold, group = given.questions.gold[rows], given.questions.group[rows]
            return metrics.parity(voted, gold, group).dpd, (voted == gold).sum()

        pairs = [[a, b] for a in weights for b in (weights if own else [a])]
        every = [measured(pair) for pair in pairs]
        dpd, right = measured(fitted[key])
        if every[0][0] <= 5:
            assert fitted[key] == [1, 1]
        elif min(each[0] for each in every) <= 5:
            assert dpd <= 5
            assert right == max(each[1] for each in every if each[0] <= 5)
        else:
            assert dpd == pytest.approx(min(each[0] for each in every))
        assert own or fitted[key][0] == fitted[key][1]


@given(SEEDS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_no_rule_looks_at_the_order_of_members(seed: int, members: int, random) -> None:
    given = inputs(seed, members)
    order = random.sample(range(members), members)
    shuffled = VoteInputs(given.questions, given.answers[order], given.precision[order])
    config = VoteConfig("fair", max_dpd=5.0, max_eod=5.0)
    for rule in (rule for rule in VOTES.values() if not rule.needs_logprobs):
        voted = rule.vote(given, rule.fit(given, config))
        assert_array_equal(rule.vote(shuffled, rule.fit(shuffled, config)), voted)


def test_label_weights_reach_every_outcome() -> None:
    for members in range(1, 7):
        weights = np.array(label_weights(members))
        for ones in range(1, members):
            for zeros in range(1, members + 1 - ones):
                wins = weights * ones > zeros
                assert wins.any()
                assert not wins.all()
        assert weights[0] == 1


def test_a_member_weighs_what_it_is_worth(rng: np.random.Generator) -> None:
    asked = random_asked(rng, samples=400)
    said = random_codes(rng, asked, 3)
    said[0] = asked.gold
    said[2] = -1
    weights = log_odds(VoteInputs(asked, said, np.ones(3)), VoteConfig())["weights"]
    assert weights[0] > weights[1] > 0
    assert weights[2] == 0  # nothing is known of who never answers
    scored = np.concatenate([part.rows for part in asked.parts if part.scenario.scored])
    right = metrics.is_correct(said[1], asked.gold, asked.n_labels, asked.abstain_ok)[scored]
    p = right[said[1, scored] >= 0].mean()
    assert weights[1] == pytest.approx(np.log(p / (1 - p)), abs=0.02)


@pytest.mark.parametrize("rule", sorted(VOTES))
def test_enumeration_finds_what_scoring_each_ensemble_finds(rule: str, tmp_path) -> None:
    table = table_with(tmp_path, VoteConfig(rule), max_members=3)
    judge, _ = search_and_holdout(table)
    every = exact_front.enumerate_scores(table, judge)
    for place in range(every.masks.size):
        found = judge(table, every.members(place))
        for key in ("trust", "mmlu", "memory_gb", "latency_ms"):
            assert every.scores[key][place] == pytest.approx(found[key])
    ensembles = [every.members(place) for place in range(every.masks.size)]
    assert set(exact_front.find_exact_front(table, judge).front) == undominated(table, ensembles)


def test_too_many_to_score_one_by_one_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exact_front, "MAX_SLOW", 10)
    table = table_with(tmp_path, VoteConfig("weighted"))
    with pytest.raises(ValueError, match=r"31 ensembles are too many under vote=weighted"):
        exact_front.find_exact_front(table, search_and_holdout(table)[0])


@pytest.mark.parametrize("rule", ["weighted", "soft", "selective", "fair"])
def test_holdout_votes_are_fitted_on_search(rule: str, tmp_path) -> None:
    table = table_with(tmp_path, VoteConfig(rule, max_dpd=1.0 if rule == "fair" else None))
    search, holdout = search_and_holdout(table)
    fitted = search.fitted(table, THREE)
    for entry in table.entries.values():
        entry.codes[holdout.mask] = 0
    assert holdout.fitted(table, THREE) == search.fitted(table, THREE) == fitted


@pytest.mark.parametrize("rule", ["soft", "selective"])
def test_what_is_written_and_said_of_a_vote(rule: str, tmp_path) -> None:
    table = table_with(tmp_path, VoteConfig(rule))
    parts = scorers(table)
    front = results.front_rows(
        table, parts["search"], [CompletedTrial(0, THREE, "r0"), CompletedTrial(1, THREE[:1], "r1")]
    )
    explained = explain.explain(table, parts, front, {"dense": (DENSE,)})
    files = {path.name: path for path in explain.write(explained, tmp_path)}
    assert all(path.stat().st_size for path in files.values())
    assert explained.lines
    assert front[1].fitted == ({"margin": [0.5]} if rule == "selective" else {})


def test_log_probabilities_are_read_calibrated(tmp_path) -> None:
    import pyarrow as pa

    from ptsearch.scoring import scores

    rows = [[-1.0, -2.0], None, [-1.0, float("-inf")], [-3.0, -1.0, -2.0]]
    offsets = [[-1.0, -1.0], None, None, [-3.0, 0.0, 0.0]]
    found = scores.logprobs(pa.table({"logprobs": rows, "offsets": offsets}), 3)
    assert np.isnan(found[1:3]).all()
    assert np.isnan(found[0, 2])
    assert_allclose(np.exp(found[0, :2]).sum(), 1)
    assert found[0, 0] - found[0, 1] == pytest.approx(1)
    assert found[3].argmax() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "best"}, "vote.rule must be one of"),
        ({"rule": "selective", "margin": 2}, "vote.margin must be 0 to 1"),
        ({"rule": "fair", "max_dpd": -1}, "vote.max_dpd must be at least 0"),
        ({"rule": "weighted", "max_eod": 5}, "vote.max_eod needs vote=fair"),
    ],
)
def test_wrong_vote_settings(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VoteConfig(**given)


UNSURE = VoteRule("unsure", lambda inputs, _: np.full_like(inputs.answers[0], -1))


def test_a_package_adds_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("unsure", f"{__name__}:UNSURE", registry.GROUP)
    monkeypatch.setattr(shared, "entry_points", lambda group: [point])
    assert registry.load()["unsure"] is UNSURE
    monkeypatch.setitem(VOTES, "unsure", UNSURE)
    assert VoteConfig("unsure").rule == "unsure"
    monkeypatch.setattr(shared, "entry_points", lambda group: [point, point])
    with pytest.raises(ValueError, match="a vote rule named unsure exists already"):
        registry.load()
