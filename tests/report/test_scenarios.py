"""Each scenario's score beside what needs no model, in the CSV and in the table."""

import csv
from pathlib import Path

from fakes import fake_table, search_and_holdout

from ptsearch.report import rows as results
from ptsearch.report import terminal


def test_always_no_stands_beside_a_fairness_score(tmp_path: Path) -> None:
    table = fake_table(tmp_path)
    scorer, _ = search_and_holdout(table)
    scenarios = results.scenario_scores(scorer, {"dense": scorer(table, ("none",))})
    results.write_scenarios(scenarios, tmp_path / "scenarios.csv")
    with (tmp_path / "scenarios.csv").open(newline="") as file:
        rows = {row["scenario"]: row for row in csv.DictReader(file)}
    fair = rows["fairness/plain"]
    assert float(fair["constant"]) == 100 > float(fair["dense"])
    assert float(fair["dense: accuracy"]) > float(fair["majority"])
    assert set(rows) == {f"{b.name}/{name}" for b in table.benchmarks for name in b.scenarios}
    assert sum(float(row["samples"]) for row in rows.values()) == scorer.mask.sum()
    shown = {
        row[0]: row for block in terminal.scenario_cells(scenarios, ["dense"]) for row in block
    }
    assert shown["fairness/plain"][3] == "100.0" and shown["fairness/plain"][4].endswith(
        f" ({float(fair['dense: accuracy']):.1f})"
    )
    assert "(" not in shown["mmlu/plain"][4]
