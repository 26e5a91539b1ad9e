"""Benchmarks are records of their files and of installed packages."""

from importlib.metadata import EntryPoint

import pytest

from ptsearch import shared
from ptsearch.benchmarks import BenchmarkDefinition, registry
from ptsearch.config import Config, TrustConfig
from ptsearch.evaluation import early_check

ADDED = BenchmarkDefinition("riddles", weight=0.0)
TAKEN = BenchmarkDefinition("ethics")


def installed(name: str) -> list[EntryPoint]:
    return [EntryPoint(name, f"{__name__}:{name}", registry.GROUP)]


def test_the_built_in_benchmarks_are_in_the_order_of_tables() -> None:
    assert registry.NAMES == ("mmlu", "adversarial", "fairness", "ethics", "ood")
    assert registry.NAMES[1:] == registry.PERSPECTIVES


def test_a_package_adds_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "entry_points", lambda group: installed("ADDED"))
    assert list(registry.load().values())[-1] is ADDED


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TAKEN", "a benchmark named ethics exists already"),
        ("installed", "must be a BenchmarkDefinition, got <function"),
    ],
)
def test_what_cannot_be_added(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "entry_points", lambda group: installed(name))
    with pytest.raises(ValueError, match=message):
        registry.load()


def test_trust_weighs_registered_perspectives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TrustConfig().weights == dict.fromkeys(registry.PERSPECTIVES, 1.0)
    with pytest.raises(ValueError, match=r"trust\.weights must be one of adversarial"):
        early_check.check(Config(trust=TrustConfig({"mmlu": 1.0})))
    monkeypatch.setitem(registry.BENCHMARKS, "riddles", ADDED)
    assert TrustConfig().weights["riddles"] == 0
