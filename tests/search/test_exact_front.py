"""The exact front against brute force, the shares of its hypervolume, gains on holdout."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_table, search_and_holdout, undominated, unfit

from ptsearch.search.comparisons import gains
from ptsearch.search.exact_front import (
    approximate_front,
    find_exact_front,
    shares,
)


def everything(table) -> list[tuple[str, ...]]:
    sizes = range(1, table.config.study.max_members + 1)
    return [m for n in sizes for m in itertools.combinations(table.variants, n)]


@pytest.mark.parametrize("mode", ["sequential", "lazy"])
def test_the_front_is_what_brute_force_finds(mode: str, tmp_path) -> None:
    table = fake_table(tmp_path, max_members=3)
    table.config.latency.mode = mode
    scorer, _ = search_and_holdout(table)
    exact = find_exact_front(table, scorer)
    assert set(exact.front) == undominated(table, everything(table))
    assert exact.ensembles == len(everything(table))


def test_what_loses_skill_is_not_on_the_front(tmp_path) -> None:
    table = fake_table(tmp_path, max_members=3, min_skill="require", samples=240)
    scorer, _ = search_and_holdout(table)
    skilled = [m for m in everything(table) if not scorer.lost_skill(scorer(table, m))]
    exact = find_exact_front(table, scorer)
    assert 0 < len(skilled) < len(everything(table))
    assert set(exact.front) == undominated(table, skilled)
    assert exact.ensembles == len(skilled)


def test_no_skill_is_required_that_the_dense_model_lacks(tmp_path) -> None:
    table = fake_table(tmp_path, max_members=3, min_skill="require", samples=240)
    dense = table.entries["none"]
    table.entries["none"] = replace(dense, codes=np.zeros_like(dense.codes))
    scorer, _ = search_and_holdout(table)
    assert scorer.required == ()
    assert find_exact_front(table, scorer).ensembles == len(everything(table))


def test_shares_grow_to_the_whole_when_everything_was_tried(tmp_path) -> None:
    table = fake_table(tmp_path, max_members=3)
    scorer, _ = search_and_holdout(table)
    exact = find_exact_front(table, scorer)
    found = shares(exact, [scorer(table, members) for members in everything(table)])
    assert found == sorted(found)
    assert found[-1] == pytest.approx(100)
    assert 0 <= found[0] < 100


def test_limits_and_degenerate_members_leave_the_enumeration(tmp_path) -> None:
    table = fake_table(tmp_path, max={"memory_gb": 0.13})
    unfit(table, "v4-8b")
    scorer, _ = search_and_holdout(table)
    exact = find_exact_front(table, scorer)
    assert exact.front
    assert all("v4-8b" not in members for members in exact.front)
    assert all(scorer(table, members)["memory_gb"] <= 0.13 for members in exact.front)


def test_gains_are_the_differences_on_holdout(tmp_path) -> None:
    table = fake_table(tmp_path, samples=240)
    _, held_out = search_and_holdout(table)
    ensemble, single = ("v0-3b", "v2-4b", "v4-8b"), ("v0-3b",)
    found = gains(table, held_out, [ensemble, single], {"single": single})
    for key in ("trust", "mmlu", "fairness"):
        gain = found[0]["single"][key]
        difference = held_out(table, ensemble)[key] - held_out(table, single)[key]
        assert gain.estimate == pytest.approx(difference)
        assert gain.low < gain.estimate < gain.high
    assert found[1]["single"]["trust"].estimate == pytest.approx(0)
    assert not found[1]["single"]["trust"].is_evident


def test_half_of_the_ensembles_show_a_close_front(tmp_path, monkeypatch) -> None:
    table = fake_table(tmp_path, bits=(3, 3, 3, 4, 4, 4, 6, 8), max_members=4)
    scorer, _ = search_and_holdout(table)
    exact = find_exact_front(table, scorer)
    monkeypatch.setattr("ptsearch.search.exact_front.BUDGET", 50)
    close = approximate_front(table, scorer, "too many")
    assert close.approximate == "too many"
    assert close.ensembles <= 100  # of 162
    found = shares(exact, [scorer(table, members) for members in close.front])
    assert found[-1] > 98


def test_a_pool_too_large_to_enumerate_is_searched_beyond_greedy(tmp_path, monkeypatch) -> None:
    table = fake_table(tmp_path, bits=(3, 4, 4, 6, 8) * 7, max_members=4)
    scorer, _ = search_and_holdout(table)
    with pytest.raises(ValueError, match="too many to enumerate"):
        find_exact_front(table, scorer)
    fronts = []
    for budget in (1, 700):
        monkeypatch.setattr("ptsearch.search.exact_front.BUDGET", budget)
        fronts.append(approximate_front(table, scorer, "too many"))
    greedy, ours = fronts
    rng = np.random.default_rng(0)
    labels = np.array(list(table.variants))
    drawn = [rng.choice(labels, rng.integers(2, 5), replace=False) for _ in range(ours.ensembles)]
    random = [(label,) for label in labels] + [tuple(sorted(members)) for members in drawn]
    at_random = shares(ours, [scorer(table, members) for members in random])[-1]
    assert at_random < 98
    assert shares(ours, [scorer(table, members) for members in greedy.front])[-1] < 99.99
    assert len(set(ours.front)) == len(ours.front) > len(greedy.front)


def test_an_approximate_front_keeps_to_limits_and_to_voters(tmp_path) -> None:
    table = fake_table(tmp_path, max={"memory_gb": 0.2}, min_members=2)
    unfit(table, "v4-8b")
    scorer, _ = search_and_holdout(table)
    front = approximate_front(table, scorer, "too many").front
    assert set(front) == set(find_exact_front(table, scorer).front)
    assert all(len(members) >= 2 and "v4-8b" not in members for members in front)


def test_too_few_held_out_items_are_counted(tmp_path) -> None:
    table = fake_table(tmp_path, samples=8)
    _, held_out = search_and_holdout(table)
    with pytest.raises(ValueError, match=r"rests on \d held-out items.* take 8: about 16 samples"):
        gains(table, held_out, [("v0-3b", "v2-4b")], {"single": ("v0-3b",)})
