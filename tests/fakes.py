"""A small table of made-up answers, as if its variants had been built and evaluated."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptsearch.benchmarks import Benchmark, Sample, Scenario, item_hash
from ptsearch.benchmarks.parsing import Question
from ptsearch.benchmarks.registry import NAMES
from ptsearch.config import Config, StudyConfig
from ptsearch.evaluation.table import Entry, Table, Timed
from ptsearch.models.base_model import BaseModel
from ptsearch.scoring.cost import VariantCost
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.store import StoredTensor, VariantMeta
from ptsearch.variant import Variant

METRICS = {"fairness": "parity"}


def fake_benchmark(name: str, rng: np.random.Generator, samples: int = 60) -> Benchmark:
    """One scenario (`ethics` has two) of two labels, with groups where fairness needs them."""
    scenarios = {"plain": Scenario("plain", "plain", METRICS.get(name, "accuracy"))}
    if name == "ethics":
        scenarios["jailbreak.1"] = Scenario("jailbreak.1", "jailbreak", "resist")
    question = Question(("no", "yes"))
    made = tuple(
        Sample(
            id=f"{scenario}-{i}",
            item=item_hash(name, str(i)),
            scenario=scenario,
            prompt=f"{name} {scenario} {i}?",
            question=question,
            gold=int(rng.integers(2)),
            group=int(rng.integers(2)) if name == "fairness" else -1,
        )
        for scenario in scenarios
        for i in range(samples)
    )
    return Benchmark(name, "fake", 1, scenarios, made, {})


def fake_cost(label: str, bits: int) -> VariantCost:
    tensors = {"shared": 50_000_000, label: 10_000_000 * bits}
    return VariantCost(tensors, kv_bytes=1_000_000, latency_ms=10.0 + bits / 10)


def unfit(table: Table, *labels: str) -> None:
    """These may not vote."""
    for label in labels:
        table.entries[label] = replace(table.entries[label], reason="degenerate")


def fake_table(
    folder: Path, bits: tuple[int, ...] = (3, 3, 4, 4, 8), samples: int = 60, **study: Any
) -> Table:
    """Variants that are right more often with more bits and refuse now and then."""
    rng = np.random.default_rng(0)
    benchmarks = [fake_benchmark(name, rng, samples) for name in NAMES]
    gold = np.array([s.gold for b in benchmarks for s in b.samples], dtype=np.int16)
    dense = Variant("fake", "0")
    variants = {
        f"v{i}-{b}b": replace(dense, method="gptq", bits=b, group_size=64, seed=i)
        for i, b in enumerate(bits)
    }
    entries = {}
    for label, variant in {"none": dense, **variants}.items():
        right = rng.random(gold.size) < 0.55 + variant.bits / 50
        codes = np.where(right, gold, 1 - gold).astype(np.int16)
        codes[rng.random(gold.size) < 0.03] = -1
        cost = fake_cost(label, variant.bits)
        seconds = [share * cost.latency_ms / 1000 for share in (0.9, 1, 2)]
        entries[label] = Entry(variant, codes, cost, Timed([3, 70, 140], seconds))
    config = Config(
        study=StudyConfig(**{"name": "fake", "trials": 20, "min_skill": "flag", **study}),
        runs_dir=str(folder),
        cache_dir=str(folder / "cache"),
    )
    base = BaseModel("fake", "0", folder)
    sizes = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 64,
    }
    (folder / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    table = Table(config, base, variants, benchmarks, None, lambda *_: None, entries)  # type: ignore[arg-type]
    table.meta = lambda label: VariantMeta(  # type: ignore[method-assign]
        table.variant(label),
        tensors={
            digest: StoredTensor(size, digest)
            for digest, size in fake_cost(label, table.variant(label).bits).tensors.items()
        },
    )
    table.changes = lambda label: {}  # type: ignore[method-assign]
    return table


def search_and_holdout(table: Table) -> tuple[EnsembleScorer, EnsembleScorer]:
    """The scorers of the search half, which chooses, and of the holdout half, which reports."""
    parts = scorers(table)
    return parts["search"], parts["holdout"]


def undominated(table: Table, ensembles: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The ensembles on the search half's front of all four objectives, each against every other."""
    scorer, _ = search_and_holdout(table)
    signs = {"trust": -1, "mmlu": -1, "memory_gb": 1, "latency_ms": 1}
    points = {
        members: tuple(sign * scorer(table, members)[name] for name, sign in signs.items())
        for members in ensembles
    }
    return {
        members
        for members, point in points.items()
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points.values()
        )
    }
