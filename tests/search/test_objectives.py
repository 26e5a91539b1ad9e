"""Objectives: one record is enough to add one, and names are checked."""

import io

import numpy as np
import pytest
from fakes import fake_table, search_and_holdout
from rich.console import Console

from ptsearch.config import StudyConfig
from ptsearch.report import page, terminal
from ptsearch.report import rows as results
from ptsearch.search import objectives
from ptsearch.search.exact_front import enumerate_scores, find_exact_front
from ptsearch.search.objectives import OBJECTIVES, Objective, chosen_objectives
from ptsearch.search.study import CompletedTrial


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
        assert every.scores["regret"][place] == pytest.approx(scores["regret"])
        assert scores["regret"] == 100 - scores["trust"] + scores["refusal_rate"]
    exact = find_exact_front(table, scorer)
    assert exact.names[-1] == "regret"
    assert exact.values[:, -1].min() == pytest.approx(every.scores["regret"].min())


def test_what_people_see_follows_the_records(tmp_path, monkeypatch) -> None:
    """Table, CSV, page and the search within limits."""
    pages = Objective("pages", "minimize", "pp", lambda s: 20 * s["memory_gb"], digits=2)
    monkeypatch.setitem(OBJECTIVES, "pages", pages)
    table = fake_table(tmp_path)
    scorer, _ = search_and_holdout(table)
    rows = results.front_rows(table, scorer, [CompletedTrial(0, ("v0-3b", "v2-4b"), "r0")])
    screen = Console(file=io.StringIO(), width=118)
    terminal.show_rows(screen, "front", rows, 1.0)
    assert "pp" in screen.file.getvalue()
    assert f"{20 * rows[0].search['memory_gb']:.2f}" in screen.file.getvalue()
    results.write_csv(rows, tmp_path / "front.csv")
    assert ",pages," in (tmp_path / "front.csv").read_text()
    drawn = {score.key: score for score in page._scores(StudyConfig(), rows[0].search)}
    assert drawn["pages"][1:5] == ("Pages", "pp", 2, False)


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
