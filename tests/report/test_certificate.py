"""The certificate: its words follow the intervals, its figures are the row's, its bytes repeat."""

import json
from dataclasses import asdict, replace

import pytest
from fakes import fake_table
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.report import certificate
from ptsearch.report import rows as results
from ptsearch.search.comparisons import Gain, gains
from ptsearch.search.scorer import scorers
from ptsearch.search.study import CompletedTrial

points = st.floats(-50, 50).map(lambda x: round(x, 3))


@given(points, points, points)
def test_only_an_interval_above_zero_is_called_better(a: float, b: float, c: float) -> None:
    low, estimate, high = sorted((a, b, c))
    gain = Gain(estimate, low, high)
    said = certificate.verdict({"dense": {"trust": gain}})
    assert ("better than dense" in said) == (low > 0)
    assert ("no evidence of a gain over dense" in said) == (low <= 0 <= high)
    assert ("worse than dense" in said) == (high < 0)


def test_how_many_more_items_it_takes() -> None:
    touching = certificate.verdict({"dense": {"trust": Gain(4.0, -4.0, 12.0)}})
    assert "about 4.0 times the held-out items" in touching  # half the reach
    assert "times" not in certificate.verdict({"dense": {"trust": Gain(4.0, 1.0, 7.0)}})
    assert "times" not in certificate.verdict({"dense": {"trust": Gain(-4.0, -9.0, 1.0)}})


def test_without_intervals_nothing_is_claimed() -> None:
    assert certificate.verdict({}, ["no intervals: too few"]).startswith("not tested: no intervals")


@pytest.fixture
def certified(tmp_path):
    table = fake_table(tmp_path, samples=240)
    table.config.overrides = ["+study=pareto", "study.trials=20"]
    by_half = scorers(table)
    members = ("v0-3b", "v2-4b", "v4-8b")
    rows = results.front_rows(table, by_half["search"], [CompletedTrial(0, members, "r0")])
    rows = results.with_scores(table, by_half, ["holdout"], rows)
    found = gains(table, by_half["holdout"], [members], {"dense": ("none",)})
    rows = [replace(rows[0], gains=found[0])]
    chosen = {name: by_half[name] for name in ("search", "holdout")}
    return table, lambda reads: certificate.certified(table, chosen, rows, reads, [])[0]


def test_it_says_what_the_row_says(certified) -> None:
    table, make = certified
    row = make(3)
    told = json.loads(certificate.to_json(asdict(row.certificate)))
    assert told["members"] == {label: table.variants[label].id for label in row.members}
    assert told["scores"]["holdout"]["trust"] == pytest.approx(row.holdout["trust"], abs=1e-4)
    assert told["gains"]["dense"]["mmlu"]["low"] == pytest.approx(
        row.gains["dense"]["mmlu"].low, abs=1e-4
    )
    assert told["verdict"] == certificate.verdict(row.gains)
    assert told["holdout_reads"] == 3
    assert told["command"][-1] == "study.trials=20"
    assert told["data"].keys() == told["samples"].keys() == {b.name for b in table.benchmarks}
    for benchmark in table.benchmarks:
        counts = told["samples"][benchmark.name]
        samples = counts["search"]["samples"] + counts["holdout"]["samples"]
        assert samples == len(benchmark.samples)
        assert counts["search"]["items"] + counts["holdout"]["items"] == 240


def test_the_same_study_gives_the_same_bytes(certified) -> None:
    _, make = certified
    first, second = (certificate.to_json(asdict(make(1).certificate)) for _ in range(2))
    assert first == second
    assert len(first) < 20_000
