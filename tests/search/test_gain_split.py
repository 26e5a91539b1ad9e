"""Split gains: the parts add up, and are right where the answer is known."""

import numpy as np
import pytest
from fakes import fake_table, search_and_holdout

from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.search.gain_split import gain_splits

FRONT = [("v0-3b", "v2-4b", "v4-8b"), ("v0-3b", "v1-3b"), ("v4-8b",)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return fake_table(tmp_path_factory.mktemp("fake"))


def test_parts_add_up_to_the_gain_on_either_half(table: Table) -> None:
    for scorer in search_and_holdout(table):
        found = gain_splits(table, scorer, FRONT, {"dense": (DENSE,), "single": ("v4-8b",)})
        for members, by_baseline in zip(FRONT, found, strict=True):
            for name, base in (("dense", (DENSE,)), ("single", ("v4-8b",))):
                for key, split in by_baseline[name].items():
                    gain = scorer(table, members)[key] - scorer(table, base)[key]
                    parts = split.vote_rule + split.refusals_dropped + split.errors_corrected
                    assert split.gain == pytest.approx(gain)
                    assert parts == pytest.approx(gain)
                    assert split.vote_rule == 0


def test_a_single_member_drops_nothing(table: Table) -> None:
    scorer, _ = search_and_holdout(table)
    (found,) = gain_splits(table, scorer, [("v4-8b",)], {"dense": (DENSE,)})
    assert all(split.refusals_dropped == 0 for split in found["dense"].values())


def test_where_nobody_refuses_nothing_is_dropped(tmp_path, rng: np.random.Generator) -> None:
    table = fake_table(tmp_path)
    for entry in table.entries.values():
        entry.codes[entry.codes < 0] = 0
    scorer, _ = search_and_holdout(table)
    for found in gain_splits(table, scorer, FRONT, {"dense": (DENSE,)}):
        assert all(split.refusals_dropped == 0 for split in found["dense"].values())
        assert all(split.gain == split.gain_refusal_label for split in found["dense"].values())


def test_two_who_refuse_are_outvoted_only_with_the_filter(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 3, 3))
    scorer, _ = search_and_holdout(table)
    for label in ("v0-3b", "v1-3b"):
        table.entries[label].codes[:] = REFUSED
    table.entries["v2-3b"].codes[scorer.mask] = scorer.asked.gold
    (found,) = gain_splits(table, scorer, [tuple(table.variants)], {"refuses": ("v0-3b",)})
    split = found["refuses"]["mmlu"]
    assert (split.gain, split.refusals_dropped, split.errors_corrected) == (100, 100, 0)
    assert split.gain_refusal_label == 0
