"""Flips against the dense model, and the samples on which a variant is worst."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fakes import fake_table, search_and_holdout
from scipy.stats import binom

from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import damage
from ptsearch.search.scorer import scorers


@pytest.fixture
def table(tmp_path) -> Table:
    return fake_table(tmp_path)


def write_predictions(table: Table, label: str, leads: np.ndarray) -> None:
    """Two labels, the right one ahead by `leads` (samples,) nats."""
    start = 0
    for benchmark, path in zip(table.benchmarks, table.outputs(label).values(), strict=True):
        rows = [
            {"benchmark": benchmark.name, "perspective": benchmark.name, "scenario": s.scenario,
             "sample": s.id, "item": s.item, "cluster": s.item, "group": s.group, "gold": s.gold,
             "n_labels": 2, "abstain_ok": False, "reply": None, "offsets": None, "seconds": 0.0,
             "logprobs": [float(lead) * (s.gold == code) for code in range(2)]}
            for s, lead in zip(benchmark.samples, leads[start:], strict=False)
        ]  # fmt: skip
        known = predictions.pa.Table.from_pylist(rows, schema=predictions.SCHEMA)
        predictions.write(known, path, {})
        start += len(benchmark.samples)


def test_flips_are_counted_both_ways_and_add_up(table: Table) -> None:
    search, _ = search_and_holdout(table)
    rows = pd.DataFrame(damage.rows(table, search, {"v": ("v0-3b",), "same": (DENSE,)}))
    dense, codes = (table.entries[label].codes[search.mask] for label in (DENSE, "v0-3b"))
    gold = search.asked.gold
    lost, gained = (dense == gold) & (codes != gold), (dense != gold) & (codes == gold)
    every = rows[(rows.model == "v") & (rows["where"] == "all")].iloc[0]
    assert (every.lost, every.gained) == (lost.sum(), gained.sum())
    assert every.changed == (dense != codes).sum() >= every.lost + every.gained
    fewer, both = min(every.lost, every.gained), every.lost + every.gained
    assert every.p == pytest.approx(min(1, 2 * binom.cdf(fewer, both, 0.5)))
    for name in ("lost", "gained", "samples"):
        scenarios = rows[(rows.model == "v") & rows["where"].str.contains("/")]
        assert scenarios[name].sum() == every[name]
    same = rows[rows.model == "same"]
    assert (same.changed == 0).all()
    assert (same.p == 1).all()


def test_margins_are_compared_by_their_medians_and_drops_rank_the_worst(table: Table, rng) -> None:
    samples = sum(len(benchmark.samples) for benchmark in table.benchmarks)
    leads = rng.uniform(1, 3, samples)
    less = leads / 2
    less[[5, 40]] = -7.0, -9.0
    gold = np.array([s.gold for b in table.benchmarks for s in b.samples], dtype=np.int16)
    for label, lead in ((DENSE, leads), ("v0-3b", less)):
        write_predictions(table, label, lead)
        codes = np.where(lead > 0, gold, 1 - gold).astype(np.int16)
        table.entries[label] = replace(table.entries[label], codes=codes)
    everything = scorers(table)["all"]
    row = damage.rows(table, everything, {"v": ("v0-3b",)})[0]
    assert row["margin_ratio"] == pytest.approx(0.5, abs=0.03)
    assert (row["lost"], row["gained"]) == (2, 0)
    assert damage.in_words(row).startswith(f"2 of {samples} answers changed: 2 right ones lost")
    found = damage.worst(table, everything, ("v0-3b",))
    every = [s for b in table.benchmarks for s in b.samples]
    assert [each["sample"] for each in found] == [every[40].id, every[5].id]
    assert found[0]["lead_lost_nats"] == pytest.approx(leads[40] + 9, abs=0.01)
    assert found[0]["right"] == found[0]["base"] != found[0]["candidate"]
