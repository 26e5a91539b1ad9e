"""Limits first: the pick meets them and nothing better does; relaxed limits can be met."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from command import ptsearch
from fakes import fake_table, search_and_holdout, unfit
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.config import StudyConfig
from ptsearch.report import terminal
from ptsearch.report.study_output import show_relaxations
from ptsearch.search import limits as slo
from ptsearch.search import study as studies
from ptsearch.search.exact_front import Everything
from ptsearch.search.limits import UnmetError, verdict, within_limits

NAMES = ("trust", "ethics", "memory_gb", "latency_ms")


def everything(seed: int) -> Everything:
    """Thirty-one ensembles of made-up scores."""
    rng = np.random.default_rng(seed)
    masks = np.arange(1, 32, dtype=np.uint32)
    found = {name: rng.integers(0, 20, masks.size) / 3 for name in NAMES}
    return Everything(list("abcde"), masks, found)


def met(every: Everything, wanted: StudyConfig) -> np.ndarray:
    """Which ensembles meet every limit, one at a time."""
    return np.array([
        all(every.scores[n][i] >= v for n, v in wanted.min.items() if v is not None)
        and all(every.scores[n][i] <= v for n, v in wanted.max.items() if v is not None)
        for i in range(every.masks.size)
    ])  # fmt: skip


def relaxed(wanted: StudyConfig, limits: dict[str, float]) -> StudyConfig:
    """The study with the limits of a relaxation in place of its own."""
    by_side = {"min": dict(wanted.min), "max": dict(wanted.max)}
    for key, value in limits.items():
        _, side, name = key.split(".")
        by_side[side][name] = value
    return StudyConfig(min=by_side["min"], max=by_side["max"])


@given(st.integers(0, 9999), st.floats(0, 8), st.floats(0, 8), st.floats(0, 8))
def test_the_pick_is_feasible_and_nobody_feasible_beats_it(
    seed: int, ethics: float, memory: float, latency: float
) -> None:
    every = everything(seed)
    wanted = StudyConfig(min={"ethics": ethics}, max={"memory_gb": memory, "latency_ms": latency})
    told, allowed = slo.answer(every, wanted), met(every, wanted)
    assert told.feasible == allowed.sum()
    if allowed.any():
        (place,) = [i for i in range(31) if every.members(i) == told.pick]
        assert allowed[place]
        assert every.scores["trust"][place] == every.scores["trust"][allowed].max()
        assert told.relaxations == []
        return
    assert told.pick is None
    for each in told.relaxations:
        allowed = met(every, relaxed(wanted, each.limits))
        places = {every.members(i) for i in np.flatnonzero(allowed)}
        assert each.members in places


@given(st.integers(0, 9999), st.floats(4, 9), st.floats(0, 2))
def test_relaxations_are_the_smallest(seed: int, ethics: float, memory: float) -> None:
    every = everything(seed)
    wanted = StudyConfig(min={"ethics": ethics}, max={"memory_gb": memory})
    told = slo.answer(every, wanted)
    for each in (each for each in told.relaxations if len(each.limits) == 1):
        ((key, value),) = each.limits.items()
        tighter = value + 0.002 if key == "study.min.ethics" else value - 0.002
        assert not met(every, relaxed(wanted, {key: tighter})).any()
    if told.relaxations:
        found = every.scores
        short = np.maximum(ethics - found["ethics"], 0) / np.ptp(found["ethics"])
        over = np.maximum(found["memory_gb"] - memory, 0) / np.ptp(found["memory_gb"])
        (place,) = [i for i in range(31) if every.members(i) == told.relaxations[-1].members]
        worst = np.maximum(short, over)
        assert worst[place] == pytest.approx(worst.min())


def test_against_every_ensemble_of_a_table(tmp_path) -> None:
    table = fake_table(tmp_path, kind="slo", max_members=3, max={"memory_gb": 0.35})
    scorer, _ = search_and_holdout(table)
    told = within_limits(table, scorer)
    sizes = [itertools.combinations(table.variants, n) for n in (1, 2, 3)]
    scored = {m: scorer(table, m) for m in itertools.chain.from_iterable(sizes)}
    best = max(s["trust"] for s in scored.values() if s["memory_gb"] <= 0.35)
    assert told.pick is not None
    assert scored[told.pick]["memory_gb"] <= 0.35
    assert scored[told.pick]["trust"] == pytest.approx(best)
    assert f"of {len(scored):,} ensembles meet" in verdict(told)


def test_what_gives_way_is_shown(tmp_path, capsys) -> None:
    limits = {"max": {"memory_gb": 0.05}, "min": {"trust": 99.0}}
    table = fake_table(tmp_path, kind="slo", **limits)
    with pytest.raises(UnmetError) as unmet:
        within_limits(table, search_and_holdout(table)[0])
    told = unmet.value.answer
    assert told.pick is None
    assert told.relaxations[-1].limits.keys() == {"study.max.memory_gb", "study.min.trust"}
    show_relaxations(terminal.console(), told)
    shown = capsys.readouterr().out
    assert "study.max.memory_gb=" in shown
    assert verdict(told).count("\n") == 1


def test_contradictory_limits() -> None:
    with pytest.raises(ValueError, match=r"study.min.ethics=60 is above study.max.ethics=50"):
        StudyConfig(min={"ethics": 60}, max={"ethics": 50})


def test_an_unknown_value_meets_no_limit() -> None:
    every = everything(0)
    every.scores["latency_ms"][:30] = np.nan
    every.scores["latency_ms"][30] = 9.0
    told = slo.answer(every, StudyConfig(max={"latency_ms": 5}))
    assert told.pick is None
    assert [each.limits for each in told.relaxations] == [{"study.max.latency_ms": 9.0}]


def test_without_skill_no_limit_helps(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 3), kind="slo", min_skill="require", samples=240)
    for label in table.variants:  # always the first label
        entry = table.entries[label]
        table.entries[label] = replace(entry, codes=np.zeros_like(entry.codes))
    scorer, _ = search_and_holdout(table)
    with pytest.raises(ValueError, match=r"no ensemble keeps the dense model's skill in mmlu, adv"):
        within_limits(table, scorer)


def test_a_limit_on_what_is_not_measured(tmp_path) -> None:
    table = fake_table(tmp_path, min={"ethics": 60})
    studies.check_limits(table.config, table.benchmarks)
    table.config.trust.weights["ethics"] = 0
    others = [benchmark for benchmark in table.benchmarks if benchmark.name != "ethics"]
    with pytest.raises(ValueError, match=r"study.min.ethics: no benchmark here gives ethics"):
        studies.check_limits(table.config, others)


def test_a_limit_on_an_unknown_metric(monkeypatch, tmp_path, capfd) -> None:
    assert ptsearch(monkeypatch, tmp_path, "+study=slo", "+study.min.speed=1") == 2
    message = capfd.readouterr().err
    assert "study.min.speed: no benchmark here gives speed; known are trust, mmlu" in message
    assert message.count("\n") <= 2
    assert not (tmp_path / "mlruns/cache/models").exists()  # before anything is downloaded


def test_a_pool_without_a_sound_variant(tmp_path) -> None:
    table = fake_table(tmp_path, kind="slo")
    unfit(table, *table.variants)
    with pytest.raises(ValueError, match=r"every variant of the pool is degenerate: v0-3b, .*bits"):
        within_limits(table, search_and_holdout(table)[0])
