"""Racing: the bounds hold, what leaves is on no front, samples are asked once, whole at the end."""

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_table
from tables import random_codes

from ptsearch import evaluate, exact, predictions, racing
from ptsearch.benchmarks import sources
from ptsearch.config import BenchmarksConfig, EngineConfig
from ptsearch.judge import judges
from ptsearch.rules import UNUSABLE
from ptsearch.table import Table
from ptsearch.truth import true_front


def field_of(table: Table, judge) -> racing.Field:
    metas = [table.entries[label].meta for label in table.variants]
    return racing.open_field(judge, list(table.variants.values()), metas)


def codes_of(table: Table, judge) -> np.ndarray:
    return np.stack([table.entries[label].codes[judge.mask] for label in table.variants])


def scores(judge, codes: np.ndarray, field: racing.Field, keys) -> np.ndarray:
    weights = judge.config.trust.weights
    found = exact.score_all(judge.asked, codes, field.precision, weights, field.masks)
    return np.stack([found[key] for key in keys], axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_at_every_look_and_end_exact(seed: int, tmp_path) -> None:
    table = fake_table(tmp_path, samples=200, max_members=3)
    judge, _ = judges(table)
    rng = np.random.default_rng(seed)
    codes, field = random_codes(rng, judge.asked, 5), field_of(table, judge)
    course = racing.plan_course(judge, 5, 4, rng)
    true = scores(judge, codes, field, course.keys)
    widths = []
    for look in range(4):
        seen = np.concatenate(course.looks[: look + 1])
        masked = np.full_like(codes, UNUSABLE)
        masked[:, seen] = codes[:, seen]
        bounds = racing.Bounds.at(course, look, masked, field)
        gap = bounds.highest_gains(np.arange(9)) - (true - true[:9, None])
        assert gap.min() > -1e-6
        widths.append(gap.mean())
        assert np.abs(bounds.estimate - true).mean() < 20
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(bounds.estimate, true, atol=1e-4)


def test_the_means_sum_to_a_multiple_of_the_truth(tmp_path, rng) -> None:
    """Averaged over orders, drift x hits / growth estimates the whole without bias."""
    table = fake_table(tmp_path, samples=60, max_members=1)
    judge, _ = judges(table)
    codes, field = random_codes(rng, judge.asked, 5), field_of(table, judge)
    true, found = None, []
    for _ in range(150):
        course = racing.plan_course(judge, 5, 4, rng)
        true = scores(judge, codes, field, course.keys)
        bounds = racing.Bounds.at(course, 1, codes, field)
        found.append(bounds.known + bounds.hits @ (bounds.worth * bounds.drift).T / bounds.growth)
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - true) < 4.5 * error + 1e-3).all()


def test_at_the_last_look_those_on_no_front_leave_and_no_others(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(2, 3, 3, 4, 4, 8), samples=80, max_members=2)
    bad = table.entries["v0-2b"]
    bad.meta["tensors"]["layers"]["bytes"] = 10**9
    bad.meta["latency_ms"] = 99.0
    bad.codes[:] = UNUSABLE
    judge, _ = judges(table)
    course = racing.plan_course(judge, 6, 3, np.random.default_rng(0))
    gone = racing.hopeless(course, 2, codes_of(table, judge), field_of(table, judge))
    labels = list(table.variants)
    on_front = {label for members in true_front(table, judge).front for label in members}
    singles = {label: judge(table, (label,))["trust"] for label in labels}
    kept = on_front | {max(singles, key=singles.get)}
    assert {labels[v] for v in gone} == set(labels) - kept
    assert 0 in gone


def test_a_useless_variant_leaves_before_the_end(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 4, 8), samples=1500, max_members=1)
    table.entries["v0-3b"].codes[:] = UNUSABLE
    table.entries["v0-3b"].meta["tensors"]["layers"]["bytes"] = 10**9
    table.entries["v0-3b"].meta["latency_ms"] = 99.0
    judge, _ = judges(table)
    course = racing.plan_course(judge, 3, 4, np.random.default_rng(0))
    assert 0 in racing.hopeless(course, 1, codes_of(table, judge), field_of(table, judge))


def test_limits_on_scores_are_refused(tmp_path) -> None:
    table = fake_table(tmp_path)
    table.config.study.min.ethics = 60.0
    judge, _ = judges(table)
    with pytest.raises(ValueError, match="no limits on scores"):
        racing.race(table, judge)


def test_chunks_give_the_predictions_of_one_go(tiny_model, tmp_path) -> None:
    (benchmark,) = sources.load(BenchmarksConfig(limit=6), tmp_path)[:1]
    engine = EngineConfig(dtype="float32")

    def ask(name: str, only: frozenset[str] | None) -> Path:
        path = tmp_path / name
        asked = None if only is None else {benchmark.name: only}
        task = evaluate.Task("tiny", folder, {benchmark.name: path}, path, engine, asked)
        assert evaluate.run(task, [benchmark], lambda *_: None)
        return path

    folder = tmp_path / "variant"
    folder.mkdir()
    (folder / "meta.json").write_text(
        json.dumps({"checkpoint": str(tiny_model), "trust_remote_code": False})
    )
    ids = [sample.id for sample in benchmark.samples]
    for stop in (2, 5):
        path = ask("chunks", frozenset(ids[:stop]))
        waiting = predictions.read(predictions.partial(path))
        assert waiting["sample"].to_pylist() == ids[:stop]
        assert not path.exists()
    chunks, once = (predictions.read(ask(name, None)) for name in ("chunks", "once"))
    assert not predictions.partial(path).exists()
    assert chunks["sample"].to_pylist() == ids
    assert chunks["reply"].to_pylist() == once["reply"].to_pylist()
    for mine, theirs in zip(
        chunks["logprobs"].to_pylist(), once["logprobs"].to_pylist(), strict=True
    ):
        assert mine == pytest.approx(theirs, abs=1e-4)
