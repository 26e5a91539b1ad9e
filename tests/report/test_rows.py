"""Rows, the knee, the CSV, the terminal's table."""

import csv
import dataclasses
import io
from dataclasses import replace

import pytest
from fakes import fake_table, search_and_holdout, unfit
from rich.console import Console

from ptsearch.evaluation.predictions import Changes
from ptsearch.report import rows as results
from ptsearch.report import terminal
from ptsearch.search.scorer import scorers
from ptsearch.search.study import CompletedTrial


def test_the_knee_is_the_point_nearest_to_the_ideal() -> None:
    front = [
        {"trust": 50.0, "memory_gb": 0.1},
        {"trust": 58.0, "memory_gb": 0.2},
        {"trust": 60.0, "memory_gb": 1.0},
    ]
    assert results.knee(front, ["trust", "memory_gb"]) == 1
    assert results.knee(front, ["trust"]) == 2
    assert results.knee(front[:1], ["trust", "memory_gb"]) == 0


def test_baselines_are_dense_and_every_single_that_may_vote(tmp_path) -> None:
    table = fake_table(tmp_path)
    unfit(table, "v1-3b")
    scorer, _ = search_and_holdout(table)
    dense, *singles = results.baseline_rows(table, scorer)
    assert dense.kind == "dense"
    assert [row.name for row in singles] == ["gptq-3b-s0", "gptq-4b-s2", "gptq-4b-s3", "gptq-8b"]
    best = results.best_single(singles)
    assert best is not None
    assert best.search["trust"] == max(row.search["trust"] for row in singles)
    assert results.best_single([dense]) is None


def test_csv_and_terminal_show_the_same_ensembles(tmp_path) -> None:
    table = fake_table(tmp_path)
    parts = scorers(table)
    found = [
        CompletedTrial(0, ("v0-3b", "v2-4b", "v4-8b"), "r0"),
        CompletedTrial(1, ("v0-3b",), "r1"),
    ]
    rows = results.front_rows(table, parts["search"], found)
    rows = results.with_scores(table, parts, ["holdout"], rows)
    assert [row.run_id for row in rows] == ["r1", "r0"]  # smallest first
    results.write_csv(rows, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert float(written[1]["trust"]) == pytest.approx(rows[1].search["trust"], abs=1e-4)
    assert float(written[1]["holdout.mmlu"]) == pytest.approx(rows[1].holdout["mmlu"], abs=1e-4)

    screen = Console(file=io.StringIO(), width=118)
    terminal.show_rows(screen, "front", rows, 2 * rows[0].search["memory_gb"])
    shown = screen.file.getvalue()
    assert "gptq-3b-s0 + gptq-4b-s2 + gptq-8b" in shown
    assert f"{rows[1].search['trust']:.1f}" in shown


def test_times_of_an_ensemble_are_its_members(tmp_path) -> None:
    """The fake members take 10.3, 10.4 and 10.8 ms, times 0.9, 1 and 2."""
    table = fake_table(tmp_path)
    scorer, _ = search_and_holdout(table)
    members = ("v0-3b", "v2-4b", "v4-8b")
    times = scorer.latencies(table, members)
    assert times["sequential"] == {"p50": 31.5, "p95": pytest.approx(31.5 * 1.9, abs=0.01)}
    assert times["parallel"] == {"p50": 10.8, "p95": pytest.approx(10.8 * 1.9, abs=0.01)}
    assert scorer.lazily(table, members).order == [0, 1, 2]
    for label in members:  # the first two agree on two prompts of three
        table.entries[label].codes[[3, 70, 140]] = [1, 1, 0] if label == "v0-3b" else 1
    assert times["lazy"] != scorer.latencies(table, members)["lazy"]
    assert scorer.latencies(table, members)["lazy"]["p50"] == 20.7
    alone = scorer.latencies(table, ("v4-8b",))
    assert alone["lazy"] == alone["sequential"] == alone["parallel"]
    table.entries["v0-3b"] = replace(table.entries["v0-3b"], timed=None)
    assert scorer.latencies(table, members) == {}


def test_what_needs_no_model_is_shown_beside(tmp_path) -> None:
    table = fake_table(tmp_path)
    search, holdout = search_and_holdout(table)
    rows = results.constant_rows(search, holdout)
    assert [row.name for row in rows] == [
        "majority class", "always the first label", "always the last label",
    ]  # fmt: skip
    assert rows[1].search["fairness"] == rows[1].holdout["fairness"] == 100.0
    assert rows[0].search["mmlu"] == search.majority["mmlu"]
    results.write_csv(rows, tmp_path / "front.csv")
    with (tmp_path / "front.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(row["kind"], row["name"], row["size"]) for row in written] == [
        ("constant", row.name, "0") for row in rows
    ]
    screen = Console(file=io.StringIO(), width=118)
    terminal.show_rows(screen, "for comparison", rows, 1.0)
    assert "majority class" in screen.file.getvalue()


def test_what_the_data_lacks_is_said(tmp_path, monkeypatch) -> None:
    table = fake_table(tmp_path)
    assert results.about_data(table) == []
    table.benchmarks = [replace(b, notes=(f"{b.name} stands in",)) for b in table.benchmarks[:1]]
    changes = {"mmlu": Changes(0, 0), "ethics": Changes(3, 0), "ood": Changes(0, 7)}
    monkeypatch.setattr(table, "changes", {"none": changes}.__getitem__)
    assert results.about_data(table) == [
        "mmlu: mmlu stands in",
        "ethics: 3 demonstrations left out of prompts beyond the model's context",
        "ood: thoughts cut from 7 of the dense model's replies",
    ]


def test_variants_with_equal_tensors_are_told(tmp_path, monkeypatch) -> None:
    table = fake_table(tmp_path)
    same = table.meta("v1-3b")
    monkeypatch.setattr(table, "meta", lambda label: same)
    told = results.about_data(table)
    assert "v0-3b is the same as none: equal checksums of all tensors" in told
    rounded = dataclasses.replace(table.variants["v1-3b"], kv_bits=4)
    table.variants["v1-3b"] = rounded  # its weights are the same, its answers are not
    assert "v1-3b" not in table.copies(table.entries)
