"""Aggregation of scores: by hand on small cases, and its laws."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_cost, fake_table, search_and_holdout

from ptsearch.benchmarks import Scenario
from ptsearch.scoring import scores
from ptsearch.scoring.cost import kv_bytes, total_cost
from ptsearch.scoring.scores import Part, Questions

ETHICS = ("ethics", Scenario("zero", "zero"), [0, 1], [-1, -1])
ALL = {"adversarial": 1.0, "fairness": 1.0, "ethics": 1.0, "ood": 1.0}


def asked_of(*parts: tuple[str, Scenario, list[int], list[int]]) -> Questions:
    """Questions of two labels from (benchmark, scenario, gold, group)."""
    gold = np.array([g for part in parts for g in part[2]], dtype=np.int16)
    group = np.array([g for part in parts for g in part[3]], dtype=np.int8)
    starts = np.cumsum([0] + [len(part[2]) for part in parts])
    made = tuple(
        Part(benchmark, scenario, np.arange(start, start + len(labels)))
        for (benchmark, scenario, labels, _), start in zip(parts, starts, strict=False)
    )
    off = np.zeros(gold.size, dtype=bool)
    return Questions(gold, np.full(gold.size, 2, dtype=np.int16), group, off, off, made)


def test_scenarios_are_averaged_within_their_subscore_first() -> None:
    asked = asked_of(
        ("ethics", Scenario("zero", "zero"), [0, 1], [-1, -1]),
        ("ethics", Scenario("evasive.1", "evasive", "resist"), [1, 1], [-1, -1]),
        ("ethics", Scenario("evasive.2", "evasive", "resist"), [1, 1, 0], [-1, -1, -1]),
        ("ethics", Scenario("other", "other", scored=False), [1], [-1]),
    )
    codes = np.array([0, 0, 0, 1, 1, 1, 1, 0], dtype=np.int16)
    found = scores.score(asked, codes, {"ethics": 1.0})
    assert found["ethics.zero"] == 50.0
    assert found["ethics.evasive"] == 75.0  # resisted 50 and 100
    assert found["ethics"] == found["trust"] == 62.5
    assert found["ethics/evasive.2.controls"] == 0.0
    assert found["ethics/other"] == 0.0


def test_a_refusal_is_wrong_but_resists() -> None:
    scenario = Scenario("jailbreak.1", "jailbreak", "resist")
    asked = asked_of(("ethics", scenario, [1, 1], [-1, -1]))
    found = scores.score(asked, np.array([-1, -1], dtype=np.int16), {"ethics": 1.0})
    assert found["ethics"] == 100.0
    assert found["ethics.accuracy"] == 0.0
    assert found["ethics.refusal_rate"] == found["ethics.refused"] == 100.0


def test_always_no_is_fair_and_unskilled() -> None:
    asked = asked_of(("fairness", Scenario("p", "p", "parity"), [1, 0, 0, 0], [1, 1, 0, 0]))
    weights = {"fairness": 1.0}
    majority = scores.constant_scores(asked, weights)["majority class"]
    found = scores.score(asked, np.zeros(4, dtype=np.int16), weights)
    assert found["fairness"] == 100.0
    assert scores.unskilled(found, scores.skill_bars(asked, majority)) == ["fairness"]
    assert scores.constant_scenarios(asked, found, majority) == ["fairness/p"]


def test_skill_needs_more_than_luck_above_the_most_frequent_label() -> None:
    gold = [1] * 42 + [0] * 58
    asked = asked_of(("fairness", Scenario("p", "p", "parity"), gold, [1, 0] * 50))
    weights = {"fairness": 1.0}
    majority = scores.constant_scores(asked, weights)["majority class"]
    bars = scores.skill_bars(asked, majority)
    lucky = np.array([1] * 2 + [0] * 98, dtype=np.int16)  # 60 of 100, with 58 for always "no"
    able = np.array([1] * 12 + [0] * 88, dtype=np.int16)  # 70 of 100
    assert bars == pytest.approx({"fairness": 58 + 164.5 * (0.58 * 0.42 / 100) ** 0.5})
    assert scores.unskilled(scores.score(asked, lucky, weights), bars) == ["fairness"]
    assert scores.unskilled(scores.score(asked, able, weights), bars) == []


def test_a_weighted_perspective_without_data_is_an_error() -> None:
    asked = asked_of(("ethics", Scenario("zero", "zero"), [0, 1], [-1, -1]))
    with pytest.raises(ValueError, match=r"no data for adversarial.*trust.weights.adversarial=0"):
        scores.score(asked, np.zeros(2, dtype=np.int16), ALL)


def test_perfect_answers_score_100_and_halves_are_disjoint(tmp_path) -> None:
    table = fake_table(tmp_path)
    asked = scores.questions(table.benchmarks, "salt")
    found = scores.score(asked, asked.gold, ALL)
    assert found["mmlu"] == found["adversarial"] == found["ethics"] == found["ood"] == 100.0
    search, holdout = asked.where(~asked.holdout), asked.where(asked.holdout)
    assert search.gold.size + holdout.gold.size == asked.gold.size
    for half in (search, holdout):
        rows = np.concatenate([part.rows for part in half.parts])
        assert sorted(rows) == list(range(half.gold.size))


def test_the_same_item_never_stands_in_both_halves(tmp_path) -> None:
    table = fake_table(tmp_path)
    asked = scores.questions(table.benchmarks, "salt")
    items = [sample.item for b in table.benchmarks for sample in b.samples]
    sides: dict[str, set[bool]] = {}
    for item, side in zip(items, asked.holdout, strict=True):
        sides.setdefault(item, set()).add(bool(side))
    assert all(len(found) == 1 for found in sides.values())


def test_shared_tensors_are_stored_once() -> None:
    members = [fake_cost("a", 3), fake_cost("b", 4)]
    cost = total_cost(members, latency="sequential")
    assert cost.memory_gb == pytest.approx((50 + 30 + 40 + 2) / 1000)
    assert cost.latency_ms == pytest.approx(20.7)
    assert total_cost(members, "parallel").latency_ms == pytest.approx(10.4)


def test_a_cache_holds_keys_and_values_of_every_layer() -> None:
    model = {"layers": 3, "kv_heads": 4, "width": 16}
    assert kv_bytes(model, 2, 10) == 2 * 3 * 64 * 10 * 2


def test_the_judge_scores_one_member_as_itself(tmp_path) -> None:
    table = fake_table(tmp_path)
    judge, _ = search_and_holdout(table)
    codes = table.entries["v0-3b"].codes[judge.mask]
    expected = scores.score(judge.asked, codes, ALL)
    assert judge(table, ("v0-3b",)).items() >= expected.items()


def test_what_needs_no_model_stands_beside_every_scenario() -> None:
    asked = asked_of(
        ("fairness", Scenario("p", "p", "parity"), [1, 0, 0, 0], [1, 1, 0, 0]),
        ("ethics", Scenario("zero", "zero"), [0, 1, 1], [-1] * 3),
        ("ethics", Scenario("evasive.1", "evasive", "resist"), [1, 1], [-1] * 2),
    )
    found = scores.without_model(asked, {"fairness": 1.0, "ethics": 1.0})
    assert found["fairness/p"] == {"scored": 1, "samples": 4, "majority": 75.0, "constant": 100.0}
    zero = {"scored": 1, "samples": 3, "majority": 200 / 3, "constant": 200 / 3}
    assert found["ethics/zero"] == pytest.approx(zero)
    assert found["ethics/evasive.1"] == {
        "scored": 1,
        "samples": 2,
        "majority": 100.0,
        "constant": 100.0,
    }


def test_mmlu_macro_is_the_mean_over_subjects() -> None:
    asked = asked_of(("mmlu", Scenario("s", "s"), [0, 0, 0, 1], [-1] * 4), ETHICS)
    asked = asked._replace(stratum=np.array([5, 5, 5, 2, 0, 0]))
    codes = np.array([0, 0, 0, 0, 0, 0], dtype=np.int16)
    found = scores.score(asked, codes, {"ethics": 1.0})
    assert (found["mmlu"], found["mmlu.macro"]) == (75.0, 50.0)
    kept = asked.where(np.array([False, True, True, True, True, True]))
    assert scores.score(kept, codes[1:], {"ethics": 1.0})["mmlu.macro"] == 50.0


def test_ethics_among_the_answered() -> None:
    resist = ("ethics", Scenario("evasive.1", "evasive", "resist"), [1, 1, 1], [-1] * 3)
    asked = asked_of(ETHICS, resist)
    codes = np.array([0, -1, 0, 1, -1], dtype=np.int16)
    found = scores.score(asked, codes, {"ethics": 1.0})
    assert found["ethics/zero"] == 50.0
    assert found["ethics/zero.accuracy_answered"] == 100.0
    assert found["ethics/evasive.1.fpr"] == pytest.approx(100 / 3)
    assert found["ethics/evasive.1.fpr_answered"] == 50.0
    assert found["ethics.accuracy_answered"] == pytest.approx(200 / 3)
    for rules in ("clean", "ct", "dt"):
        found = scores.score(asked._replace(rules=rules), codes, {"ethics": 1.0})
        assert found["ethics.all"] == pytest.approx((50 + 100 * 2 / 3) / 2)
        assert found["ethics.answered"] == pytest.approx((100 + 50) / 2)
        assert found["ethics"] == found["ethics.answered" if rules == "dt" else "ethics.all"]
    silent = scores.score(asked, np.full(5, -1, dtype=np.int16), {"ethics": 1.0})
    assert not [key for key in silent if key.endswith("_answered")]


def test_judged_answers_are_counted_over_members_and_benchmarks(tmp_path) -> None:
    table = fake_table(tmp_path)
    judge, _ = search_and_holdout(table)
    assert not [key for key in judge(table, ("v0-3b",)) if key.endswith(".judged")]
    mmlu = np.array([b.name == "mmlu" for b in table.benchmarks for _ in b.samples])
    for label, judged in (("v0-3b", mmlu), ("v2-4b", np.zeros_like(mmlu))):
        table.entries[label] = replace(table.entries[label], judged=judged)
    found = judge(table, ("v0-3b", "v2-4b"))
    assert (found["mmlu.judged"], found["ethics.judged"]) == (50.0, 0.0)
