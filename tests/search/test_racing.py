"""Racing: the bounds hold, what leaves is on no front, samples are asked once, whole at the end."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_table
from tables import random_codes

from ptsearch.benchmarks import sources
from ptsearch.benchmarks.parsing import UNUSABLE
from ptsearch.config import BenchmarksConfig, EngineConfig
from ptsearch.evaluation import evaluate, predictions
from ptsearch.evaluation.table import Table
from ptsearch.search import enumeration, racing
from ptsearch.search.exact_front import find_exact_front
from ptsearch.search.scorer import search_and_holdout
from ptsearch.variant import Variant


def field_of(table: Table, scorer) -> racing.Field:
    metas = [table.entries[label].meta for label in table.variants]
    return racing.open_field(scorer, list(table.variants.values()), metas)


def codes_of(table: Table, scorer) -> np.ndarray:
    return np.stack([table.entries[label].codes[scorer.mask] for label in table.variants])


def scores(scorer, codes: np.ndarray, field: racing.Field, keys) -> np.ndarray:
    weights = scorer.config.trust.weights
    found = enumeration.score_all(scorer.asked, codes, field.precision, weights, field.masks)
    return np.stack([found[key] for key in keys], axis=1)


def masked(course: racing.Course, look: int, codes: np.ndarray) -> np.ndarray:
    seen = np.concatenate(course.looks[: look + 1])
    found = np.full_like(codes, UNUSABLE)
    found[:, seen] = codes[:, seen]
    return found


def test_evidence_against_an_equal_is_at_most_one_in_the_mean(tmp_path) -> None:
    """Over orders of asking; the two differ in many answers and not in the score."""
    table = fake_table(tmp_path, bits=(3, 3, 4), samples=120, max_members=1)
    scorer, _ = search_and_holdout(table)
    codes, rng = codes_of(table, scorer), np.random.default_rng(5)
    (part,) = (part for part in scorer.asked.parts if part.benchmark == "mmlu")
    gold, half = scorer.asked.gold[part.rows], 1 - np.arange(part.rows.size) % 2
    codes[:2, part.rows] = np.where(half, gold, 1 - gold), np.where(half, 1 - gold, gold)
    field, found = field_of(table, scorer), []
    mmlu = scores(scorer, codes, field, ["mmlu"])[:, 0]
    first, second = (int(np.flatnonzero(field.masks == 1 << v)[0]) for v in (0, 1))
    assert mmlu[first] == pytest.approx(mmlu[second], abs=2)
    assert mmlu[first] >= mmlu[second]
    for _ in range(100):
        course = racing.plan_course(scorer, 4, rng)
        key = course.keys.index("mmlu")
        logs = [
            racing.Evidence.at(course, look, masked(course, look, codes), field).against(
                key, np.array([second])
            )[first, 0]
            for look in range(3)
        ]
        found.append(np.exp(logs))
    error = np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.mean(found, axis=0) < 1 + 4 * error).all()
    assert np.mean(found, axis=0)[0] > 0.6
    assert (np.max(found, axis=1) >= 20).mean() <= 0.05


def test_evidence_grows_against_the_worse(tmp_path, rng) -> None:
    table = fake_table(tmp_path, bits=(3, 8), samples=400, max_members=1)
    scorer, _ = search_and_holdout(table)
    codes, field = codes_of(table, scorer), field_of(table, scorer)
    wrong = rng.random(codes.shape[1]) < 0.3
    codes[0] = np.where(wrong, 1 - scorer.asked.gold, codes[1])
    course = racing.plan_course(scorer, 4, rng)
    worse, better = (int(np.flatnonzero(field.masks == 1 << v)[0]) for v in (0, 1))
    for key in range(len(course.keys)):
        both = [
            racing.Evidence.at(course, look, masked(course, look, codes), field).against(
                key, np.array([better, worse])
            )
            for look in range(3)
        ]
        against = [found[worse, 0] for found in both]
        assert against == sorted(against)
        assert against[-1] > np.log(1000) > 0 > both[-1][better, 1]


@pytest.mark.parametrize("seed", range(3))
def test_equals_are_hardly_ever_stopped(seed: int, tmp_path) -> None:
    """Equal voters at equal cost: whoever is on the front by chance is asked to the end."""
    table = fake_table(tmp_path, bits=(4, 4, 4, 4), samples=200, max_members=2)
    scorer, _ = search_and_holdout(table)
    rng, false = np.random.default_rng(seed), 0
    codes, field = random_codes(rng, scorer.asked, 4), field_of(table, scorer)
    for _ in range(20):
        course, gone = racing.plan_course(scorer, 4, rng), set[int]()
        kept = set(range(4)) - set(racing.hopeless(course, 3, codes, field))
        for look in range(3):
            gone |= set(racing.hopeless(course, look, masked(course, look, codes), field))
        false += bool(gone & kept)
    assert false <= 2


def test_at_the_last_look_those_on_no_front_leave_and_no_others(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(2, 3, 3, 4, 4, 8), samples=80, max_members=2)
    bad = table.entries["v0-2b"]
    bad.meta["tensors"]["layers"]["bytes"] = 10**9
    bad.meta["latency_ms"] = 99.0
    bad.codes[:] = UNUSABLE
    scorer, _ = search_and_holdout(table)
    course = racing.plan_course(scorer, 3, np.random.default_rng(0))
    gone = racing.hopeless(course, 2, codes_of(table, scorer), field_of(table, scorer))
    labels = list(table.variants)
    on_front = {label for members in find_exact_front(table, scorer).front for label in members}
    singles = {label: scorer(table, (label,))["trust"] for label in labels}
    kept = on_front | {max(singles, key=singles.get)}
    assert {labels[v] for v in gone} == set(labels) - kept
    assert 0 in gone


def test_a_useless_variant_leaves_before_the_end(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 4, 8), samples=1500, max_members=1)
    table.entries["v0-3b"].codes[:] = UNUSABLE
    table.entries["v0-3b"].meta["tensors"]["layers"]["bytes"] = 10**9
    table.entries["v0-3b"].meta["latency_ms"] = 99.0
    scorer, _ = search_and_holdout(table)
    course = racing.plan_course(scorer, 4, np.random.default_rng(0))
    assert 0 in racing.hopeless(course, 1, codes_of(table, scorer), field_of(table, scorer))


def test_limits_on_scores_are_refused(tmp_path) -> None:
    table = fake_table(tmp_path)
    table.config.study.min.ethics = 60.0
    scorer, _ = search_and_holdout(table)
    with pytest.raises(ValueError, match="no limits on scores"):
        racing.race(table, scorer)
    table.config.study.min.ethics = None
    table.config.vote.rule = "weighted"
    with pytest.raises(ValueError, match="majority vote only"):
        racing.race(table, scorer)


def test_chunks_give_the_predictions_of_one_go(tiny_model, tmp_path) -> None:
    (benchmark,) = sources.load(BenchmarksConfig(limit=6), tmp_path)[:1]
    engine = EngineConfig(dtype="float32")

    def ask(name: str, only: frozenset[str] | None) -> Path:
        path = tmp_path / name
        asked = None if only is None else {benchmark.name: only}
        task = evaluate.Task("tiny", folder, {benchmark.name: path}, path, engine, asked)
        assert evaluate.run(task, [benchmark], lambda *_: None) == ""
        return path

    folder = tmp_path / "variant"
    folder.mkdir()
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "variant": asdict(Variant("tiny", "0")),
                "checkpoint": str(tiny_model),
                "trust_remote_code": False,
            }
        )
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
