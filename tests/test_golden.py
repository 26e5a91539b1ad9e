"""What the package found before its redesign, found again.

`golden/` holds a study of the embedded model in fp32 by the commit before the redesign: the
questions of the embedded benchmark's version 1 without their prompts (what a score depends on),
the answers of nine variants and the dense model to them, their bytes and latency, and what was
concluded. From the answers on, everything must come out as it did, whatever the embedded benchmark
asks today.
"""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from rich.console import Console

from ptsearch.benchmarks import Benchmark, Sample, Scenario
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import Config, StudyConfig
from ptsearch.evaluation.table import Entry, Table
from ptsearch.models.base_model import BaseModel
from ptsearch.report import terminal
from ptsearch.report.study import compile_result
from ptsearch.scoring.cost import VariantCost
from ptsearch.search.comparisons import gains
from ptsearch.search.exact_front import find_exact_front
from ptsearch.search.fronts import Front
from ptsearch.search.scorer import scorers
from ptsearch.search.study import CompletedTrial, unsaved
from ptsearch.store import StoredTensor, VariantMeta
from ptsearch.variant import from_fields

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).parents[1] / "docs"
DENSE = "none"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((GOLDEN / "study.json").read_text(encoding="utf-8"))
    return recorded


def questions(scenarios: dict[str, dict[str, list[str]]]) -> list[Benchmark]:
    kept = np.load(GOLDEN / "questions.npz")
    names = ("benchmark", "scenario", "item", "gold", "n_labels", "group", "abstain_ok", "stratum")
    samples: dict[str, list[Sample]] = {name: [] for name in scenarios}
    for name, scenario, item, gold, n_labels, group, abstain_ok, stratum in zip(
        *(kept[field].tolist() for field in names), strict=True
    ):
        question, id = Question(tuple(map(str, range(n_labels)))), str(len(samples[name]))
        samples[name].append(
            Sample(id, bytes(item).hex(), scenario, "", question, gold, group, abstain_ok, stratum)
        )
    return [
        Benchmark(name, "pocket", 1, {s: Scenario(s, *each) for s, each in scenarios[name].items()},
                  tuple(samples[name]), {})
        for name in scenarios
    ]  # fmt: skip


def stored(cost: VariantCost) -> dict[str, StoredTensor]:
    return {digest: StoredTensor(size, digest) for digest, size in cost.tensors.items()}


def cost_of(recorded: dict[str, Any]) -> VariantCost:
    tensors = {tensor["sha256"]: tensor["bytes"] for tensor in recorded["tensors"].values()}
    return VariantCost(tensors, recorded["kv_bytes"], recorded["latency_ms"])


@pytest.fixture(scope="module")
def table(golden, tmp_path_factory) -> Table:
    """The table that the study of the golden files had, from its answers."""
    folder = tmp_path_factory.mktemp("golden")
    benchmarks = questions(golden["scenarios"])
    answers = np.load(GOLDEN / "answers.npz")
    entries = {
        label: Entry(from_fields(each["fields"]), answers[label].astype(np.int16), cost_of(each))
        for label, each in golden["variants"].items()
    }
    config = Config(
        study=StudyConfig(name="golden", min_skill="flag"),
        cache_dir=str(folder),
        runs_dir=str(folder),
    )
    pool = {label: entries[label].variant for label in answers.files if label != DENSE}
    base = BaseModel(entries[DENSE].variant.model, entries[DENSE].variant.revision, folder)
    return Table(config, base, pool, benchmarks, None, lambda *_: None, entries)  # type: ignore[arg-type]


def test_variants_keep_their_ids_and_labels(golden) -> None:
    """So checkpoints and predictions of before are found again, never taken for another's."""
    for label, each in golden["variants"].items():
        variant = from_fields(each["fields"])
        assert (variant.id, variant.label) == (each["id"], label)


def test_scores_are_the_same(golden, table) -> None:
    for half, scorer in scorers(table).items():
        for name, by_half in golden["scores"].items():
            scores = scorer(table, tuple(name.split(" + ")))
            found = {key: scores.get(key, np.nan) for key in by_half[half]}
            assert_allclose(
                list(found.values()), list(by_half[half].values()), atol=1e-8, err_msg=str(found)
            )


def test_the_front_is_the_same(golden, table) -> None:
    front = find_exact_front(table, scorers(table)["search"])
    assert front.ensembles == golden["ensembles"]
    assert {tuple(members) for members in golden["front"]} == set(front.front)


def test_gains_and_their_intervals_are_the_same(golden, table) -> None:
    baselines = {"dense": (DENSE,), "best_single": (golden["best_single"],)}
    ensembles = [tuple(members) for members in golden["front"]]
    found = gains(table, scorers(table)["holdout"], ensembles, baselines)
    for mine, theirs in zip(found, golden["gains"], strict=True):
        for baseline, by_score in theirs.items():
            for key, (low, estimate, high) in by_score.items():
                gain = mine[baseline][key]
                assert_allclose([gain.low, gain.estimate, gain.high], [low, estimate, high],
                                atol=1e-5)  # fmt: skip


def test_the_example_of_the_documents_is_this_study(table) -> None:
    """What docs/reading-a-result.md quotes is what is printed."""
    search = replace(table.config.study, min_skill="require")
    table = replace(table, config=replace(table.config, study=search))
    table.meta = lambda label: VariantMeta(  # type: ignore[method-assign]
        table.variant(label), tensors=stored(table.entries[label].cost)
    )
    table.changes = lambda label: {}  # type: ignore[method-assign]
    parts = scorers(table)
    exact = find_exact_front(table, parts["search"])
    study = unsaved(search)
    chosen = [CompletedTrial(i, members, f"r{i}") for i, members in enumerate(exact.front)]
    result = compile_result(table, [], study, parts, Front(exact, chosen))
    screen = Console(file=io.StringIO(), width=80)
    for sentence in result.answer.sentences:
        screen.print(sentence)
    dense_gb = result.compared[0].search["memory_gb"]
    terminal.show_rows(screen, "Pareto front", result.front, dense_gb, result.compared)
    quoted = (DOCS / "reading-a-result.md").read_text(encoding="utf-8").split("```")[1].splitlines()
    printed = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    assert [line for line in quoted if line and line not in printed] == [
        "Pareto front of golden: 10 of 116 ensembles"
    ]
    assert f"{len(result.front)} of {exact.ensembles} ensembles" in " ".join(quoted)
