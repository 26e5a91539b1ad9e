"""Proposals: imagined variants are as alike as expected, and building a part is enough."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_table

from ptsearch.search import next_build
from ptsearch.search import study as studies
from ptsearch.search.exact_front import find_exact_front
from ptsearch.search.scorer import search_and_holdout


@pytest.fixture
def table(tmp_path):
    found = fake_table(tmp_path, bits=(3, 3, 4, 4, 6, 8), samples=120)
    found.config.pool.build = "named"
    found.seconds = lambda label: 1.0 + found.variant(label).bits / 100
    return found


def test_an_imagined_variant_agrees_as_often_as_it_should(rng) -> None:
    codes = rng.integers(0, 4, (4, 20_000)).astype(np.int16)
    labels = np.full(20_000, 4, dtype=np.int16)
    for asked in (0.5, 0.8, 1.0):
        agree = np.array([0.3, asked, 0.2, 0.1])
        said = next_build.imagine(codes, agree, labels, rng)
        assert (said == codes[1]).mean() == pytest.approx(asked, abs=0.02)
        assert set(np.unique(said)) <= set(range(4))


def test_agreement_is_learnt_from_pairs_of_the_same_kind(table) -> None:
    scorer, _ = search_and_holdout(table)
    known = next_build.known(table, scorer, ["v0-3b", "v2-4b", "v4-6b"])
    new = table.variants["v3-4b"]
    before = next_build.agreement(known, new)
    codes = known.codes.copy()
    codes[2] = codes[0]  # what has 4 bits now says what the dense model does
    after = next_build.agreement(known._replace(codes=codes), new)
    assert after[0] > before[0]
    assert ((before >= 0) & (before <= 1)).all()


def test_bytes_of_an_unbuilt_variant_follow_its_bits(table) -> None:
    scorer, _ = search_and_holdout(table)
    known = next_build.known(table, scorer, ["v2-4b"])
    expected = next_build.expected_cost(known, table.variants["v5-8b"])
    real = table.entries["v5-8b"].cost
    assert sum(expected.tensors.values()) == sum(real.tensors.values())


def test_what_costs_more_seconds_promises_less(table) -> None:
    scorer, _ = search_and_holdout(table)
    known = next_build.known(table, scorer, ["v0-3b", "v4-6b"])
    same = {"a": table.variants["v2-4b"], "b": replace(table.variants["v2-4b"], method="awq")}
    dear = known._replace(variants=[*known.variants[:2], same["b"]], seconds=[1.0, 1.0, 100.0])
    chosen = {next_build.propose(scorer, dear, same, np.random.default_rng(s)) for s in range(3)}
    assert chosen == {"a"}


def test_a_study_of_some_builds_leaves_the_others_out(table) -> None:
    scorer, _ = search_and_holdout(table)
    built = next_build.build_some(table, scorer, 3)
    assert len(set(built)) == 3
    assert set(table.left_out()) == set(table.variants) - set(built)
    assert {label for members in find_exact_front(table, scorer).front for label in members} <= set(
        built
    )
    again = fake_table(table.base.path, bits=(3, 3, 4, 4, 6, 8), samples=120)
    again.config.pool.build, again.seconds = "named", table.seconds
    assert next_build.build_some(again, scorer, 3) == built
    assert studies.study_config(table.config).max_builds == 0


def test_it_needs_a_pool_that_is_built_by_name(table) -> None:
    table.config.pool.build = "all"
    scorer, _ = search_and_holdout(table)
    with pytest.raises(ValueError, match=r"needs pool.build=named"):
        next_build.build_some(table, scorer, 3)
