"""The search: nothing twice, resuming, changed settings, limits, an exact front."""

import itertools
from pathlib import Path

import optuna
import pytest
from fakes import fake_table, search_and_holdout, undominated, unfit
from optuna.trial import TrialState

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.evaluation import evaluate
from ptsearch.evaluation.table import Table
from ptsearch.report import study as report
from ptsearch.report.rows import baseline_rows, best_single
from ptsearch.search import exact_front, settings, trials
from ptsearch.search import study as studies
from ptsearch.search.database import shared
from ptsearch.search.exact_front import find_exact_front
from ptsearch.search.fronts import Front
from ptsearch.search.limits import within_limits
from ptsearch.search.scorer import scorers
from ptsearch.search.trials import Search

RUN_IDS = itertools.count()


def run(table: Table, folder: Path, identity: dict | None = None) -> optuna.Study:
    url, identity = f"sqlite:///{folder}/optuna.db", identity or {"a": 1}
    search = studies.study_config(table.config)
    search.name = studies.find_view(search.name.partition("@")[0], url, identity).name
    study = studies.open_study(table.config, url, identity)
    scorer, _ = search_and_holdout(table)
    trials.search(Search(study, table, scorer, lambda *_: f"run{next(RUN_IDS)}"))
    return study


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_no_ensemble_is_tried_twice_and_a_resumed_study_goes_on(sampler: str, tmp_path) -> None:
    table = fake_table(tmp_path, sampler=sampler, trials=12)
    first = studies.completed(run(table, tmp_path))
    assert len(first) == 12
    table.config.study.trials = 20
    second = studies.completed(run(table, tmp_path))
    assert [found.members for found in second[:12]] == [found.members for found in first]
    assert len({found.members for found in second}) == len(second) == 20


def test_the_same_command_again_adds_nothing(tmp_path) -> None:
    table = fake_table(tmp_path, trials=8)
    before = len(run(table, tmp_path).trials)
    assert len(run(table, tmp_path).trials) == before


def test_gp_proposes_ensembles(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 4, 8), sampler="gp", trials=7)
    assert len(studies.completed(run(table, tmp_path))) == 7


def test_exhaustive_tries_everything_and_its_front_is_the_true_one(tmp_path) -> None:
    table = fake_table(tmp_path, sampler="exhaustive", max_members=3)
    study = run(table, tmp_path)
    found = {trial.members for trial in studies.completed(study)}
    sizes = [itertools.combinations(table.variants, n) for n in (1, 2, 3)]
    everything = set(itertools.chain.from_iterable(sizes))
    assert found == everything

    assert {trial.members for trial in studies.front(study)} == undominated(table, everything)


def test_a_small_pool_ends_when_everything_was_tried(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 4), trials=50)
    assert len(studies.completed(run(table, tmp_path))) == 3


def test_other_answers_make_a_study_of_another_name(tmp_path) -> None:
    table, url = fake_table(tmp_path, trials=3), f"sqlite:///{tmp_path}/optuna.db"
    before = {"benchmarks": {"limit": 0}, "vote": {"rule": "majority"}}
    now = {**before, "benchmarks": {"limit": 5}}
    assert run(table, tmp_path, before).study_name == "fake"
    other = studies.find_view("fake", url, now)
    assert other.name.startswith("fake-")
    assert f"other answers: benchmarks.limit (0, now 5); this one is {other.name}" in other.note
    assert run(table, tmp_path, now).study_name == other.name
    table.config.study.name = "fake"
    assert run(table, tmp_path, before).study_name == "fake"  # resumed
    again = studies.find_view("fake", url, {**now, "vote": {"rule": "soft"}})
    assert again.name.startswith(f"{other.name}@")


@pytest.mark.parametrize(
    "change",
    [
        {"min": {"ethics": 60.0}}, {"objectives": {"mmlu": False}}, {"min_members": 2},
        {"max_members": 3}, {"min_skill": "require"}, {"kind": "slo", "max": {"memory_gb": 0.2}},
    ],
    ids=str,
)  # fmt: skip
def test_limits_and_objectives_are_views_of_one_study(change: dict, tmp_path: Path) -> None:
    table, url = fake_table(tmp_path, trials=3), f"sqlite:///{tmp_path}/optuna.db"
    run(table, tmp_path, settings.identity(table))
    for field, value in change.items():
        setattr(table.config.study, field, value)
    view = run(table, tmp_path, settings.identity(table))
    assert view.study_name.startswith("fake@")
    assert len(studies.completed(view)) == 3
    assert run(table, tmp_path, settings.identity(table)).study_name == view.study_name
    assert list(studies.recorded_settings(url)) == ["fake", view.study_name]
    view.set_user_attr("reported", ["mark", 0, 1, 2.0])
    assert studies.load_study("fake", url).study_name == view.study_name  # the latest
    assert studies.load_study(view.study_name, url).study_name == view.study_name


def test_votes_weights_costs_and_a_larger_pool_are_views(tmp_path: Path) -> None:
    table = fake_table(tmp_path, trials=2)
    identity = settings.identity(table)
    names = [run(table, tmp_path, identity).study_name]
    for key, value in {
        "vote": {"rule": "weighted"}, "trust": {"weights": {"ethics": 2.0}},
        "memory": {"context": 4096}, "pool": {**identity["pool"], "more": "0123"},
    }.items():  # fmt: skip
        table.config.study.name = "fake"
        names.append(run(table, tmp_path, {**identity, key: value}).study_name)
    assert len(set(names)) == 5
    assert {name.partition("@")[0] for name in names} == {"fake"}


def test_what_failed_before_it_had_a_result_keeps_no_name(tmp_path: Path) -> None:
    table, url = fake_table(tmp_path, trials=3), f"sqlite:///{tmp_path}/optuna.db"
    first, second = {"model": {"revision": "wrong"}}, {"model": {"revision": "right"}}
    with shared(url, "fake") as dying:
        failed = studies.open_study(table.config, url, first, dying.process)
        failed.tell(failed.ask(), state=TrialState.FAIL)
        with shared(url, "fake") as living:  # as long as its process lives, it is another's
            assert studies.find_view("fake", url, second, living).name != "fake"
    with shared(url, "fake") as locks:
        assert studies.find_view("fake", url, second, locks) == ("fake", "")
        study = studies.open_study(table.config, url, second, locks.process)
    assert study.user_attrs["settings"] == {"model.revision": "right"}
    assert study.trials == []


@pytest.mark.parametrize(
    ("constant", "key"),
    [
        ("EVALUATE_VERSION", "engine.version"),
        ("LATENCY_VERSION", "latency.version"),
    ],
)
def test_trials_of_two_versions_are_not_mixed(
    constant: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fake_table(tmp_path, trials=3)
    run(table, tmp_path, settings.identity(table))
    now = getattr(evaluate, constant)
    monkeypatch.setattr(evaluate, constant, now + 1)
    note = studies.find_view(
        "fake", f"sqlite:///{tmp_path}/optuna.db", settings.identity(table)
    ).note
    assert f"{key} ({now}, now {now + 1})" in note
    assert run(table, tmp_path, settings.identity(table)).study_name.startswith("fake-")


def test_what_changes_no_answer_may_change(tmp_path: Path) -> None:
    table = fake_table(tmp_path, trials=3)
    run(table, tmp_path, settings.identity(table))
    table.config.study.need_skill = False
    table.config.study.sampler = "nsga2"
    assert run(table, tmp_path, settings.identity(table)).study_name == "fake"


def test_a_setting_that_is_not_set_is_as_one_that_was_not_there(tmp_path) -> None:
    table = fake_table(tmp_path, trials=3)
    before = run(table, tmp_path, {"a": 1}).trials
    resumed = run(table, tmp_path, {"a": 1, "vote": {"margin": None}}).trials
    assert [t.params for t in resumed[: len(before)]] == [t.params for t in before]


def test_limits_keep_ensembles_off_the_front(tmp_path) -> None:
    table = fake_table(tmp_path, trials=15, max={"memory_gb": 0.12})
    scorer, _ = search_and_holdout(table)
    front = studies.front(run(table, tmp_path))
    assert front
    assert all(scorer(table, found.members)["memory_gb"] <= 0.12 for found in front)


def test_degenerate_members_do_not_vote(tmp_path) -> None:
    table = fake_table(tmp_path, trials=10)
    unfit(table, "v4-8b")
    study = run(table, tmp_path)
    assert all("v4-8b" not in found.members for found in studies.completed(study))


def test_objectives_can_be_turned_off(tmp_path) -> None:
    table = fake_table(tmp_path, trials=5, objectives={"latency_ms": False, "mmlu": False})
    study = run(table, tmp_path)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["trust", "memory_gb"]


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_held_out_answers_decide_nothing(sampler: str, tmp_path) -> None:
    """With all of them wrong: the same trials, front, best single variant and pick."""
    chosen = []
    for folder in ("as they are", "all wrong"):
        (tmp_path / folder).mkdir()
        table = fake_table(tmp_path / folder, sampler=sampler, max={"memory_gb": 0.2})
        search, holdout = search_and_holdout(table)
        if folder == "all wrong":
            for entry in table.entries.values():
                entry.codes[holdout.mask] = 1 - holdout.asked.gold
        study = run(table, tmp_path / folder)
        exact_front.complete(Search(study, table, search, lambda *_: "run"))
        best = best_single(baseline_rows(table, search))
        assert best is not None
        tried = [(found.members, found.by_sampler) for found in studies.completed(study)]
        front = {found.members for found in studies.front(study)}
        pick = within_limits(table, search).pick
        chosen.append((tried, front, best.members, pick))
    assert chosen[0] == chosen[1]


def test_ensembles_without_a_score_are_left_out_and_not_tried_again(tmp_path) -> None:
    table = fake_table(tmp_path, sampler="exhaustive", max_members=2)
    table.config.benchmarks.rules = "dt"  # which divides by the number of answers
    rows = [s.scenario == "jailbreak.1" for b in table.benchmarks for s in b.samples]
    for label in ("v0-3b", "v1-3b"):
        table.entries[label].codes[rows] = REFUSED
    study = run(table, tmp_path)
    assert studies.unscored(study) == {("v0-3b",), ("v1-3b",), ("v0-3b", "v1-3b")}
    exact = find_exact_front(table, search_and_holdout(table)[0])
    assert exact.ensembles == len(studies.completed(study)) == 12
    assert not studies.unscored(study) & set(exact.front)
    before = len(study.trials)
    assert len(run(table, tmp_path).trials) == before
    best = best_single(baseline_rows(table, search_and_holdout(table)[0]))
    assert best is not None
    assert best.search["trust"] > 0


def test_the_share_found_counts_only_what_the_limits_allow(tmp_path) -> None:
    table = fake_table(tmp_path, sampler="random", trials=25, max={"memory_gb": 0.1})
    study, parts = run(table, tmp_path), scorers(table)
    tried = [parts["search"](table, found.members) for found in studies.completed(study)]
    assert sum(scores["memory_gb"] > 0.1 for scores in tried) > 5
    front = Front(find_exact_front(table, parts["search"]), studies.front(study))
    assert max(report.compile_result(table, [], study, parts, front).shares) <= 100 + 1e-9


def test_rules_under_which_nothing_has_a_score_are_named(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 4), max_members=2)
    table.config.benchmarks.rules = "dt"
    rows = [s.scenario == "jailbreak.1" for b in table.benchmarks for s in b.samples]
    for label in table.variants:
        table.entries[label].codes[rows] = REFUSED
    study = run(table, tmp_path)
    with pytest.raises(ValueError, match=r"score under rules=dt.* in ethics .*weights\.ethics=0"):
        report.compile_result(table, [], study, scorers(table), Front(None, []))


def test_a_named_pool_is_not_built_to_its_end(tmp_path) -> None:
    table = fake_table(tmp_path, trials=3)
    table.config.pool.build = "named"
    unbuilt = [label for label in table.variants if label not in ("v0-3b", "v2-4b", "v4-8b")]
    known = {label: entry for label, entry in table.entries.items() if label not in unbuilt}
    table.entries = known  # to ensure any other would need workers, which there are not
    scorer, _ = search_and_holdout(table)
    study = studies.unsaved(table.config.study)
    run = Search(study, table, scorer, lambda *_: "run")
    trials.add_trials(run, [("v0-3b",), ("v2-4b", "v4-8b")])
    exact = exact_front.complete(run)
    assert exact.ensembles == 7  # of the three that are built
    assert list(table.left_out()) == unbuilt
    assert all("pool.build=named" in reason for reason in table.left_out().values())
    assert {m for trial in studies.completed(study) for m in trial.members}.isdisjoint(unbuilt)
