"""What is built where not all of a pool is: variants unlike each other; the rest is left out."""

from dataclasses import replace

import pytest
from fakes import fake_table, search_and_holdout

from ptsearch.search import next_build
from ptsearch.search.exact_front import find_exact_front
from ptsearch.variant import Variant

BASE = Variant("m", "r", method="gptq", bits=3, group_size=64)


def test_the_most_precise_is_first_then_always_the_one_farthest_from_its_nearest() -> None:
    rows = [BASE, *(replace(BASE, seed=n) for n in (1, 2)), replace(BASE, method="rtn")]
    rows += [replace(row, bits=bits) for row in rows for bits in (4, 8)]
    pool = {row.id: row for row in rows}
    order = next_build.spread(pool)
    assert pool[order[0]].bits == 8
    assert sorted(order) == sorted(pool)
    for n in range(1, len(order)):
        nearest = [
            min(next_build.distance(pool[label], pool[before]) for before in order[:n])
            for label in order[n:]
        ]
        assert nearest[0] == max(nearest)


def test_the_distance_grows_with_halved_bits_and_with_fields() -> None:
    twin, coarse = replace(BASE, seed=1), replace(BASE, bits=6)
    assert next_build.distance(BASE, BASE) == 0
    assert next_build.distance(BASE, coarse) == next_build.distance(coarse, BASE) == 1
    assert 0 < next_build.distance(BASE, twin) < next_build.distance(BASE, replace(twin, bits=4))


def test_a_study_of_some_builds_leaves_the_others_out(tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 3, 4, 4, 6, 8), samples=120)
    built = next_build.build_some(table, 3)
    assert built == ["v5-8b", "v0-3b", "v4-6b"]
    assert set(table.left_out()) == set(table.variants) - set(built)
    scorer, _ = search_and_holdout(table)
    front = find_exact_front(table, scorer).front
    assert {label for members in front for label in members} <= set(built)


@pytest.mark.parametrize("number", [6, 60])
def test_as_many_as_there_are_is_the_whole_pool(number: int, tmp_path) -> None:
    table = fake_table(tmp_path, bits=(3, 3, 4, 4, 6, 8))
    assert set(next_build.build_some(table, number)) == set(table.variants)
    assert table.left_out() == {}
