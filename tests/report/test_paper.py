"""The paper's two experiments on made-up answers, and the published figures beside them."""

import csv
import io
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_table, unfit
from paper_root import SHARED, needs_shared
from rich.console import Console

from ptsearch.benchmarks import adversarial
from ptsearch.config import BenchmarksConfig, Config, ModelConfig
from ptsearch.evaluation.table import Table
from ptsearch.report import paper
from ptsearch.report.rows import Row
from ptsearch.report.study import Result, compile_result
from ptsearch.search import paper as searched
from ptsearch.search import study as studies
from ptsearch.search.fronts import Front
from ptsearch.search.scorer import scorers
from ptsearch.variant import Variant

SAMPLES = 200  # of a scenario: enough for intervals
BITS = (3, 3, 4, 4, 8)  # seeds 0 to 4 of one method


def smaller(folder: Path) -> Table:
    """Another dense model on the same questions, wrong more often."""
    folder.mkdir()
    table = fake_table(folder, bits=(), samples=SAMPLES)
    dense = table.entries["none"]
    codes = np.where(np.arange(dense.codes.size) % 5 == 0, 0, dense.codes)
    table.entries["none"] = replace(dense, codes=codes)
    return replace(table, base=table.base._replace(name="smaller"))


def compiled(table: Table, others: list[Table], ensembles: list[studies.Members]) -> Result:
    study = studies.unsaved(table.config.study)
    chosen = [studies.CompletedTrial(i, each, f"r{i}") for i, each in enumerate(ensembles)]
    return compile_result(table, others, study, scorers(table), Front(None, chosen, all_data=True))


@pytest.fixture
def outcome(tmp_path: Path) -> tuple[Table, Result]:
    table = fake_table(tmp_path, bits=BITS, samples=SAMPLES, kind="paper")
    return table, compiled(table, [smaller(tmp_path / "smaller")], searched.ensembles(table))


def test_the_ensembles_of_a_pool() -> None:
    row = Variant("m", "r", "gptq", bits=3, group_size=64)
    pool = {
        "a": row,
        "b": replace(row, seed=1),
        "c": replace(row, bits=4),
        "d": replace(row, bits=4, sym=False, seed=1),
        "e": replace(row, bits=8),
        "f": replace(row, method="awq"),
        "g": replace(row, method="awq", bits=8),
    }
    assert searched.precisions(pool) == [("a", "c", "e")]
    assert searched.seeds(pool) == [("a", "b")]


def test_bytes_beside_the_dense_models(tmp_path) -> None:
    """Fake variants share 50 MB and have 10 MB a bit; dense has 160 of its own; a cache has 1."""
    table = fake_table(tmp_path, bits=BITS)
    assert table.entries["none"].cost.tensors["none"] == 160_000_000
    assert searched.about_bytes(table) == [
        "weights: dense 0.210 GB; 3+4+8 bits 0.200, 95 % of dense (96 % with a KV cache per "
        "member); the same nested 0.145, 69 % of dense (70 % with a KV cache per member; from bits)"
    ]
    four = fake_table(tmp_path, bits=(4,))
    assert "3+4+8 bits 0.207, 99 % of dense" in searched.about_bytes(four)[0]


def test_groups_of_seeds_differ_in_nothing_else() -> None:
    row = Variant("m", "r", "gptq", bits=3, group_size=64)
    kinds = [row, replace(row, sym=False)]
    pool = {f"{i}-{s}": replace(kind, seed=s) for i, kind in enumerate(kinds) for s in (0, 1)}
    assert sorted(searched.seeds(pool)) == [("0-0", "0-1"), ("1-0", "1-1")]


def test_benchmark_has_every_model_on_every_part(tmp_path) -> None:
    table = fake_table(tmp_path, bits=BITS, samples=SAMPLES, kind="benchmark")
    unfit(table, "v1-3b")
    found = compiled(table, [smaller(tmp_path / "smaller")], searched.singles(table))
    assert {row.members for row in found.front} == {
        ("v0-3b",), ("v2-4b",), ("v3-4b",), ("v4-8b",)
    }  # fmt: skip
    names = [row.name for row in found.rows if row.kind in ("dense", "baseline")]
    assert names == ["fake dense", "smaller dense"]
    assert found.singles == []  # none is shown twice
    parts = scorers(table)
    for row in (*found.front, found.compared[0]):
        assert row.scores == {part: scorer(table, row.members) for part, scorer in parts.items()}
    assert found.degenerate == ["v1-3b"]


def test_all_data_are_both_halves_together(tmp_path) -> None:
    parts = scorers(fake_table(tmp_path))
    assert not (parts["search"].mask & parts["holdout"].mask).any()
    assert (parts["all"].mask == (parts["search"].mask | parts["holdout"].mask)).all()


def test_ensembles_beside_the_best_single_of_each_score_as_published(outcome) -> None:
    table, found = outcome
    on_all = scorers(table)["all"]
    alone = [on_all(table, (label,)) for label in table.variants]
    row = found.front[0]
    over = paper.over_best(row, found.rows)
    assert over.keys() == {"trust", "adversarial", "fairness", "ethics", "ood", "mmlu"}
    for key, difference in over.items():
        assert difference == pytest.approx(row.all[key] - max(scores[key] for scores in alone))
    assert all(row.holdout is None for row in found.singles)  # a second choice would use it up


def test_gains_are_differences_on_the_holdout_half(outcome) -> None:
    _, found = outcome
    dense, best, small = found.compared
    for row in found.front:
        assert list(row.gains) == ["dense", "best_single", "smaller dense"]
        for baseline, over in zip((dense, best, small), row.gains.values(), strict=True):
            for key, gain in over.items():
                expected = row.holdout[key] - baseline.holdout[key]
                assert gain.estimate == pytest.approx(expected, abs=1e-6)
                assert gain.low <= gain.estimate <= gain.high


def test_published_rules_have_no_intervals_but_all_else(tmp_path) -> None:
    table = fake_table(tmp_path, bits=BITS, samples=SAMPLES, kind="paper")
    table.config.benchmarks.rules = "ct"
    found = compiled(table, [], searched.ensembles(table))
    assert all(row.gains == {} for row in found.rows)
    assert any("rules=ct" in remark for remark in found.remarks)
    assert "as published" in shown(table.config, found.rows)


def test_why_a_score_is_not_a_number(tmp_path) -> None:
    table = fake_table(tmp_path, bits=BITS, samples=40, kind="benchmark")
    table.config.benchmarks.rules = "dt"
    silent = np.full_like(table.entries["none"].codes, -1)
    table.entries["none"] = replace(table.entries["none"], codes=silent)
    found = compiled(table, [], searched.singles(table))
    (note,) = [note for note in paper.notes(table.config, found.rows, []) if "nan" in note]
    assert note.endswith("answered none, or none of a group: ethics/plain, ethics/jailbreak.1")


def test_a_pool_without_such_ensembles(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no method with 3, 4 and 8 bits.*v0-4b.*pool=seeds"):
        searched.ensembles(fake_table(tmp_path, bits=(4, 8), kind="paper"))


def shown(config: Config, rows: list[Row]) -> str:
    screen = Console(file=io.StringIO(), width=118)
    paper.show(screen, config.model, rows)
    return screen.file.getvalue()


def test_what_is_shown(outcome) -> None:
    table, found = outcome
    text = shown(table.config, found.rows)
    for row in found.front:
        assert f"{row.all['ethics']:.1f}" in text
        assert f"{row.gains['dense']['ood'].estimate:+.1f}" in text
        assert f"{paper.over_best(row, found.rows)['mmlu']:+.1f}" in text
    assert "smaller dense" in text
    assert "\u2026" not in text  # nothing is cut
    assert "Published for" not in text


def test_no_evidence_is_said(outcome) -> None:
    table, found = outcome
    row = found.front[0]
    flat = {
        name: {key: gain._replace(low=-1.0) for key, gain in over.items()}
        for name, over in row.gains.items()
    }
    notes = paper.notes(table.config, [replace(row, gains=flat)], [])
    assert any("best_single: no evidence of a gain" in note for note in notes)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(name="llama-2-13b-chat", source="path", path="x"),
        ModelConfig(name="mine", source="hub", repo="meta-llama/Llama-2-13b-chat-hf"),
    ],
)
def test_published_figures_of_a_model(model: ModelConfig, outcome) -> None:
    rows = paper.published(model)
    assert [row["variant"] for row in rows][:2] == ["dense", "AWQ 8 bits"]
    table, found = outcome
    config = replace(table.config, model=model)
    assert f"Published for {model.name}" in shown(config, found.rows)
    said = " ".join(paper.notes(config, found.rows, []))
    assert "not comparable with this run: benchmarks=pocket, benchmarks.rules=clean" in said


def test_when_a_run_is_comparable_with_the_published_ones(outcome) -> None:
    table, found = outcome
    asked = BenchmarksConfig(name="paper", rules="ct")
    config = replace(table.config, benchmarks=asked, model=ModelConfig(name="vicuna-7b-v1.3"))

    def said(config: Config, *remarks: str) -> str:
        notes = paper.notes(config, found.rows, remarks)
        return next(note for note in notes if note.startswith("published: "))

    assert "not comparable" not in said(config)
    assert said(replace(config, benchmarks=replace(asked, limit=4))).endswith("benchmarks.limit=4")
    for note in (adversarial.MISSING, "left out by benchmarks.scenarios: few-shot"):
        assert said(config, note).endswith("not comparable with this run: scenarios are missing")


@needs_shared
def test_the_published_figures_are_those_of_the_sheet() -> None:
    """Averages over the runs of a model, and their refusal rates."""
    columns = {"mmlu": "MMLU", "adversarial": "AdvGLUE++", "ethics": "Ethics", "ood": "OOD"}
    sheet = SHARED / "published_results" / "decoding_comp_trust" / "num_sheet.csv"
    runs: dict[tuple[str, str], list[dict[str, str]]] = {}
    with sheet.open(newline="") as file:
        for row in csv.DictReader(file):
            dense = row["Compression Method"] == "none"
            variant = "dense" if dense else f"{row['Method Subtype']} {row['Sparsity/bits']} bits"
            runs.setdefault((row["Base Model"], variant), []).append(row)
    with paper.PUBLISHED.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rules"] == "ct"]
    assert rows
    for row in rows:
        family, size = re.match(r"(llama|vicuna).*-(\d+b)", row["name"]).groups()
        name = {"llama": "LLAMA2", "vicuna": "Vicuna"}[family]
        found = runs[f"{name} {size} Chat", row["variant"]]
        assert len(found) == int(row["runs"])
        for ours, theirs in columns.items():
            assert float(row[ours]) == pytest.approx(mean(found, theirs), abs=0.06)
            if ours != "mmlu":
                refused = mean(found, f"{theirs} Ref")
                assert float(row[f"{ours}.refusal_rate"]) == pytest.approx(refused, abs=0.06)
        refused = 100 * mean(found, "Fairness Ref")
        assert float(row["fairness"]) == pytest.approx(mean(found, "Fairness"), abs=0.06)
        assert float(row["fairness.refusal_rate"]) == pytest.approx(refused, abs=0.6)


def mean(rows: list[dict[str, str]], column: str) -> float:
    return statistics.mean(float(row[column]) for row in rows)
