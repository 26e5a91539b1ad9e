"""The paper's two experiments on made-up answers, and the published figures beside them."""

import csv
import io
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_table
from paper_root import SHARED, needs_shared
from rich.console import Console

from ptsearch.benchmarks import adversarial
from ptsearch.config import BenchmarksConfig, Config, ModelConfig
from ptsearch.evaluation.table import Table
from ptsearch.report import paper, paper_report, plots
from ptsearch.report.paper import Outcome
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


@pytest.fixture
def outcome(tmp_path: Path) -> tuple[Table, Outcome]:
    table = fake_table(tmp_path, bits=BITS, samples=SAMPLES, kind="paper")
    return table, paper.paper(table, [smaller(tmp_path / "smaller")])


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
    assert paper.precisions(pool) == {"gptq 3+4+8 bits": ("a", "c", "e")}
    assert paper.seeds(pool) == {"gptq 3 bits, 2 seeds": ("a", "b")}


def test_bytes_beside_the_dense_models(tmp_path) -> None:
    """Fake variants share 50 MB and have 10 MB a bit; dense has 160 of its own; a cache has 1."""
    table = fake_table(tmp_path, bits=BITS)
    dense = table.entries["none"].meta["tensors"]["layers"]
    dense["bytes"] = 160_000_000
    assert paper.about_bytes(table) == [
        "weights: dense 0.210 GB; 3+4+8 bits 0.200, 95 % of dense (96 % with a KV cache per "
        "member); the same nested 0.145, 69 % of dense (70 % with a KV cache per member; from bits)"
    ]
    four = fake_table(tmp_path, bits=(4,))
    four.entries["none"].meta["tensors"]["layers"]["bytes"] = 160_000_000
    assert "3+4+8 bits 0.207, 99 % of dense" in paper.about_bytes(four)[0]


def test_groups_of_seeds_that_look_alike_have_names_of_their_own() -> None:
    row = Variant("m", "r", "gptq", bits=3, group_size=64)
    kinds = [row, replace(row, sym=False)]
    pool = {f"{i}-{s}": replace(kind, seed=s) for i, kind in enumerate(kinds) for s in (0, 1)}
    assert sorted(paper.seeds(pool).values()) == [("0-0", "0-1"), ("1-0", "1-1")]


def test_benchmark_has_every_model_on_every_half(tmp_path) -> None:
    table = fake_table(tmp_path, bits=BITS, samples=SAMPLES, kind="benchmark")
    table.entries["v1-3b"].meta["degenerate"] = True
    found = paper.benchmark(table, [smaller(tmp_path / "smaller")])
    assert [line.name for line in found.of("dense", "baseline")] == ["fake dense", "smaller dense"]
    assert [line.name for line in found.of("single")] == ["v0-3b", "v2-4b", "v3-4b", "v4-8b"]
    search_and_holdout = scorers(table)
    for line in found.of("dense", "single"):
        assert line.scores == {
            half: scorer(table, line.members) for half, scorer in search_and_holdout.items()
        }
    assert any("v1-3b" in remark for remark in found.remarks)


def test_all_data_are_both_halves_together(tmp_path) -> None:
    search_and_holdout = scorers(fake_table(tmp_path))
    assert not (search_and_holdout["search"].mask & search_and_holdout["holdout"].mask).any()
    assert (
        search_and_holdout["all"].mask
        == (search_and_holdout["search"].mask | search_and_holdout["holdout"].mask)
    ).all()


def test_the_best_single_is_chosen_score_by_score(outcome) -> None:
    _, found = outcome
    singles = {line.name: line for line in found.of("single")}
    (published,), (honest,) = found.of("best_all"), found.of("best_search")
    for key, name in published.chosen.items():
        best = max(line.scores["all"][key] for line in singles.values())
        assert published.scores["all"][key] == singles[name].scores["all"][key] == best
    for key, name in honest.chosen.items():
        best = max(line.scores["search"][key] for line in singles.values())
        assert singles[name].scores["search"][key] == best
        assert honest.scores["holdout"][key] == singles[name].scores["holdout"][key]
    assert set(published.scores) == {"all"}  # on the holdout half it would be a second choice


def test_gains_are_differences_on_the_holdout_half(outcome) -> None:
    _, found = outcome
    (dense,), (small,), (honest,) = (
        found.of(kind) for kind in ("dense", "baseline", "best_search")
    )
    for line in found.of("precisions", "seeds"):
        assert list(line.gains) == ["dense", "smaller dense", "best_single"]
        for baseline, over in zip((dense, small, honest), line.gains.values(), strict=True):
            for key, gain in over.items():
                expected = line.scores["holdout"][key] - baseline.scores["holdout"][key]
                assert gain.estimate == pytest.approx(expected, abs=1e-6)
                assert gain.low <= gain.estimate <= gain.high


def test_bytes_are_counted_once_and_against_dense(outcome) -> None:
    _, found = outcome
    (precisions,) = found.of("precisions")
    shared, own = 50, 10  # of the fakes: an embedding, and own bytes for each bit
    assert precisions.weights_percent == pytest.approx(
        100 * (shared + own * (3 + 4 + 8)) / (shared + own * 16)
    )
    (dense,) = found.of("dense")
    assert dense.weights_percent == pytest.approx(100)


def test_published_rules_have_no_intervals_but_all_else(tmp_path) -> None:
    table = fake_table(tmp_path, bits=BITS, samples=SAMPLES, kind="paper")
    table.config.benchmarks.rules = "ct"
    found = paper.paper(table, [])
    assert all(line.gains == {} for line in found.rows)
    assert any("rules=ct" in remark for remark in found.remarks)
    assert any("study.baselines" in remark for remark in found.remarks)


def test_why_a_score_is_not_a_number(tmp_path) -> None:
    table = fake_table(tmp_path, bits=BITS, samples=40, kind="benchmark")
    table.config.benchmarks.rules = "dt"
    silent = np.full_like(table.entries["none"].codes, -1)
    table.entries["none"] = replace(table.entries["none"], codes=silent)
    (said,) = [line for line in paper.benchmark(table, []).remarks if "nan" in line]
    assert said.endswith("answered none, or none of a group: ethics/plain, ethics/jailbreak.1")


def test_a_pool_without_such_ensembles(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no method with 3, 4 and 8 bits.*v0-4b.*pool=seeds"):
        paper.paper(fake_table(tmp_path, bits=(4, 8), kind="paper"), [])


def shown(config: Config, outcome: Outcome) -> str:
    screen = Console(file=io.StringIO(), width=118)
    paper_report.show(screen, "http://link", config, outcome)
    return screen.file.getvalue()


def test_what_is_shown(outcome) -> None:
    table, found = outcome
    text = shown(table.config, found)
    (precisions,) = found.of("precisions")
    for expected in (
        "not in",
        f"{precisions.weights_percent:.0f} % of the dense model's bytes",
        f"{precisions.scores['all']['ethics']:.1f}",
        f"{precisions.scores['holdout']['ethics']:.1f}",
        "smaller dense",
    ):
        assert expected in text
    assert "\u2026" not in text  # nothing is cut
    assert "Published for" not in text


def test_no_evidence_is_said(outcome) -> None:
    table, found = outcome
    (line,) = found.of("precisions")
    flat = {
        name: {key: gain._replace(low=-1.0) for key, gain in over.items()}
        for name, over in line.gains.items()
    }
    said = paper_report.notes(table.config, found._replace(rows=[replace(line, gains=flat)]))
    assert any("best single on search: no evidence of a gain" in note for note in said)


def test_the_csv_has_every_line_and_the_published_comparison(outcome, tmp_path) -> None:
    _, found = outcome
    path = tmp_path / "paper.csv"
    paper_report.write_csv(found, path)
    with path.open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [line.name for line in found.rows]
    (line,), (best,) = found.of("precisions"), found.of("best_all")
    row = rows[line.name]
    assert float(row["holdout.ood"]) == pytest.approx(line.scores["holdout"]["ood"], abs=1e-4)
    difference = line.scores["all"]["ood"] - best.scores["all"]["ood"]
    assert float(row["all.gain.best_single.ood"]) == pytest.approx(difference, abs=1e-4)
    assert float(row["gain.dense.ood.low"]) == pytest.approx(
        line.gains["dense"]["ood"].low, abs=1e-4
    )


def test_charts_hold_every_line(outcome, tmp_path) -> None:
    _, found = outcome
    panels = paper_report.panels("paper", found)
    groups = ["adv", "ethics"]
    plots.draw_bars(panels, groups, tmp_path / "a.html", "title")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert all(line.name in page for line in found.of("precisions", "dense", "best_all"))


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(name="llama-2-13b-chat", source="path", path="x"),
        ModelConfig(name="mine", source="hub", repo="meta-llama/Llama-2-13b-chat-hf"),
    ],
)
def test_published_figures_of_a_model(model: ModelConfig, outcome) -> None:
    rows = paper_report.published(model)
    assert [row["variant"] for row in rows][:2] == ["dense", "AWQ 8 bits"]
    table, found = outcome
    text = shown(replace(table.config, model=model), found)
    assert f"Published for {model.name}" in text
    said = " ".join(text.split())
    assert "not comparable with this run: benchmarks=pocket, benchmarks.rules=clean" in said


def test_when_a_run_is_comparable_with_the_published_ones(outcome) -> None:
    table, found = outcome
    asked = BenchmarksConfig(name="paper", rules="ct")
    config = replace(table.config, benchmarks=asked, model=ModelConfig(name="vicuna-7b-v1.3"))

    def said(config: Config, *remarks: str) -> str:
        notes = paper_report.notes(config, found._replace(remarks=list(remarks)))
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
    with paper_report.PUBLISHED.open(newline="") as file:
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
