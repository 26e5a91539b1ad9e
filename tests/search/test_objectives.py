"""Objectives: one record is enough to add one, and names are checked."""

import numpy as np
import pytest
from fakes import fake_table

from ptsearch.config import StudyConfig
from ptsearch.search import objectives
from ptsearch.search.exact_front import enumerate_scores, find_exact_front
from ptsearch.search.objectives import OBJECTIVES, Objective, chosen_objectives
from ptsearch.search.scorer import search_and_holdout


def test_one_record_adds_an_objective(tmp_path, monkeypatch) -> None:
    regret = Objective(
        "regret", "minimize", "%", lambda scores: 100 - scores["trust"] + scores["refusal_rate"]
    )
    monkeypatch.setitem(OBJECTIVES, "regret", regret)
    table = fake_table(tmp_path, min={"regret": 0})
    scorer, _ = search_and_holdout(table)
    every = enumerate_scores(table, scorer)
    for place in range(0, every.masks.size, 7):
        scores = scorer(table, every.members(place))
        assert every.found["regret"][place] == pytest.approx(scores["regret"])
        assert scores["regret"] == 100 - scores["trust"] + scores["refusal_rate"]
    exact = find_exact_front(table, scorer)
    assert exact.names[-1] == "regret"
    assert exact.values[:, -1].min() == pytest.approx(every.found["regret"].min())


def test_an_objective_that_is_off_until_it_is_chosen(monkeypatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "ood", Objective("ood", "maximize", "%", on=False))
    assert "ood" not in chosen_objectives(StudyConfig())
    assert chosen_objectives(StudyConfig(objectives={"ood": True, "mmlu": False})) == [
        "trust", "memory_gb", "latency_ms", "ood",
    ]  # fmt: skip


def test_unknown_or_no_objectives() -> None:
    with pytest.raises(ValueError, match=r"one of trust, .* got 'speed'"):
        chosen_objectives(StudyConfig(objectives={"speed": True}))
    with pytest.raises(ValueError, match="at least one must be on"):
        chosen_objectives(StudyConfig(objectives=dict.fromkeys(OBJECTIVES, False)))


def test_losses_are_minimized() -> None:
    values = np.array([[60.0, 0.5]])
    assert objectives.losses(values, ["trust", "memory_gb"]).tolist() == [[-60.0, 0.5]]
