"""The split and the limit: fixed by content, nested, and faithful to every stratum's share."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.benchmarks import Benchmark, Sample, Scenario, item_hash
from ptsearch.benchmarks.parsing import Question
from ptsearch.benchmarks.split import HOLDOUT, SEARCH, half, limit, select


def benchmark(items: int, scenarios: tuple[str, ...] = ("plain", "attacked")) -> Benchmark:
    samples = tuple(
        Sample(
            id=f"{name}/{i}",
            item=item_hash(str(i)),
            scenario=name,
            prompt="",
            question=Question(("no", "yes")),
            gold=int(i % 10 < 3),
            group=i % 2,
            stratum=f"subject {i % 7}",
        )
        for name in scenarios
        for i in range(items)
    )
    return Benchmark("ood", "file", 1, {n: Scenario(n, n) for n in scenarios}, samples, {})


@given(st.text(), st.text())
def test_halves_are_fixed(item: str, salt: str) -> None:
    assert half(item, salt) in (SEARCH, HOLDOUT)
    assert half(item, salt) == half(item, salt)


def test_halves_are_halves_and_depend_on_the_salt() -> None:
    scorers = {salt: [half(item_hash(str(i)), salt) for i in range(4000)] for salt in "ab"}
    for drawn in scorers.values():
        assert abs(drawn.count(SEARCH) - 2000) < 200
    assert abs(sum(a == b for a, b in zip(*scorers.values(), strict=True)) - 2000) < 200


@given(st.integers(1, 60), st.integers(1, 60), st.text(max_size=3))
def test_limits_are_nested_and_exact(small: int, large: int, salt: str) -> None:
    whole = benchmark(50)
    small, large = sorted((small, large))
    kept = [[s.id for s in limit(whole, n, salt).samples] for n in (small, large)]
    assert set(kept[0]) <= set(kept[1])
    for ids, n in zip(kept, (small, large), strict=True):
        assert Counter(name.split("/")[0] for name in ids) == dict.fromkeys(
            whole.scenarios, min(n, 50)
        )
        assert ids == [s.id for s in whole.samples if s.id in set(ids)]  # the old order


def test_scenarios_of_the_same_items_keep_the_same_ones() -> None:
    kept = limit(benchmark(300), 40, "salt").samples
    plain, attacked = ({s.item for s in kept if s.scenario == n} for n in ("plain", "attacked"))
    assert plain == attacked


def test_shares_are_kept() -> None:
    whole = benchmark(2000, ("plain",))
    kept = limit(whole, 200, "salt").samples
    facets = {
        "half": lambda s: half(s.item, "salt"),
        "gold and group": lambda s: (s.gold, s.group),
        "stratum": lambda s: s.stratum,
    }
    for name, facet in facets.items():
        shares, drawn = Counter(map(facet, whole.samples)), Counter(map(facet, kept))
        for value, count in shares.items():
            assert abs(drawn[value] - count / 10) <= (10 if name == "stratum" else 2)


def test_select_by_pattern() -> None:
    whole = benchmark(5, ("style.a", "style.b", "news"))
    unscored = replace(whole.scenarios["news"], scored=False)
    whole = replace(whole, scenarios=whole.scenarios | {"news": unscored})
    kept = {
        (): ["style.a", "style.b"],
        ("-*.a",): ["style.b"],
        ("*",): ["style.a", "style.b", "news"],
        ("style.*", "-style.b"): ["style.a"],
        ("news",): ["news"],
    }
    for patterns, names in kept.items():
        selected = select(whole, patterns)
        assert list(selected.scenarios) == names
        assert [s.scenario for s in selected.samples] == [n for n in names for _ in range(5)]


def test_no_limit_and_a_negative_one() -> None:
    whole = benchmark(5)
    assert limit(whole, 0, "salt") is whole
    with pytest.raises(
        ValueError, match=r"benchmarks\.limit must be 0 \(all\) or positive, got -1"
    ):
        limit(whole, -1, "salt")
