"""Data on which a study says little: it is said, with what would be enough."""

from dataclasses import replace

import pytest
from fakes import fake_table, search_and_holdout

from ptsearch.benchmarks.split import half
from ptsearch.evaluation.table import DENSE
from ptsearch.report import rows
from ptsearch.scoring.intervals import clusters_needed
from ptsearch.search.comparisons import gains


def test_a_benchmark_with_one_class_is_named(tmp_path) -> None:
    table = fake_table(tmp_path)
    search, holdout = search_and_holdout(table)
    assert rows.about_classes({"search": search, "held-out": holdout}) == []
    holdout.asked.gold[holdout.asked.scored()["ood"]] = 1
    (said,) = rows.about_classes({"search": search, "held-out": holdout})
    assert said.startswith("ood: one class only on the held-out half")


def test_a_half_without_samples_of_a_benchmark(tmp_path) -> None:
    table = fake_table(tmp_path)
    mmlu, *others = table.benchmarks
    kept = [s for s in mmlu.samples if half(s.item, table.config.benchmarks.split.salt) == "search"]
    table.benchmarks = [replace(mmlu, samples=tuple(kept)), *others]
    with pytest.raises(ValueError, match=r"held-out half has no samples of mmlu: raise benchmarks"):
        search_and_holdout(table)


def test_too_small_a_holdout_says_how_many_items_it_takes(tmp_path) -> None:
    table = fake_table(tmp_path, samples=12)
    _, holdout = search_and_holdout(table)
    needed = clusters_needed(6, 0.95)
    with pytest.raises(ValueError, match=rf"take {needed}: about .* see benchmarks.limit"):
        gains(table, holdout, [("v0-3b", "v4-8b")], {"dense": (DENSE,)})
