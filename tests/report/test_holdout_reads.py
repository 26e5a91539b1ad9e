"""Readings of the held-out half: counted by data, and only when something new is scored."""

from pathlib import Path

import pytest
from fakes import fake_table

from ptsearch.report import holdout_reads


def test_only_new_choices_count_whatever_the_study_is_called(tmp_path: Path) -> None:
    table = fake_table(tmp_path)
    labels = list(table.variants)
    choices = [(labels[0],), tuple(labels[:3])]
    assert holdout_reads.count(table, choices) == 1
    assert holdout_reads.count(table, choices) == 1  # looking again
    table.config.study.name = "another"
    assert holdout_reads.count(table, reversed(choices)) == 1
    assert holdout_reads.count(table, [*choices, (labels[4],)]) == 2
    assert holdout_reads.count(table, choices[:1]) == 2  # of what was scored before
    table.config.vote.rule = "weighted"
    assert holdout_reads.count(table, choices) == 3


def test_other_held_out_items_are_counted_by_themselves(tmp_path: Path) -> None:
    table, fewer = fake_table(tmp_path), fake_table(tmp_path, samples=40)
    chosen = [tuple(table.variants)]
    assert holdout_reads.count(table, chosen) == holdout_reads.count(fewer, chosen) == 1
    table.config.benchmarks.split.salt = "other"
    assert holdout_reads.count(table, chosen[:0]) == 0
    assert holdout_reads.count(table, chosen) == 1


def test_a_damaged_count_is_told(tmp_path: Path) -> None:
    table = fake_table(tmp_path)
    holdout_reads.count(table, [tuple(table.variants)])
    file = tmp_path / "cache" / holdout_reads.RECORD
    file.write_text(file.read_text().replace("[[", "[[]]", 1))
    with pytest.raises(ValueError, match=r"holdout_reads.json"):
        holdout_reads.count(table, [])
