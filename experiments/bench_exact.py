"""How fast all ensembles are scored, whether exactly, and whether the intervals cover.

    [PEERS=folder of greedy_reference.py] python experiments/bench_exact.py

The table is made up: 40,000 samples of 5 labels, variants right in 60 % of them and else guessing,
so that hardly two samples are answered alike. The last line is JSON: `ensembles_*_s` are seconds of
wall time, `*_cpu_s` of processor time over all threads; compilation is not counted.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ptsearch.benchmarks import Scenario
from ptsearch.scoring import rates, scores
from ptsearch.scoring.cost import VariantCost
from ptsearch.scoring.intervals import ClusterSums, max_t_intervals
from ptsearch.scoring.scores import Part, Questions
from ptsearch.search import enumeration, pareto
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting import votes as voting

SAMPLES, LABELS = 40_000, 5
ALL = {"adversarial": 1.0, "fairness": 1.0, "ethics": 1.0, "ood": 1.0}
OF_ONE: tuple[tuple[str, str, str], ...] = (("ood", "all", "accuracy"),)
OF_ALL = (
    *(("mmlu", name, "accuracy") for name in ("zero", "five")),
    *(("adversarial", name, "accuracy") for name in ("sst2", "qqp", "mnli")),
    *(("fairness", f"setting.{i}", "parity") for i in range(8)),
    *(("ethics", name, "accuracy") for name in ("zero", "few")),
    *(("ethics", f"evasive.{i}", "resist") for i in range(5)),
    *(("ood", name, "accuracy") for name in ("style", "knowledge")),
)
VOTERS, ITEMS, REPETITIONS, RESAMPLES = 12, 500, 1000, 1000  # of the null simulation


def table(rng: np.random.Generator, places: tuple[tuple[str, str, str], ...]) -> Questions:
    """`SAMPLES` samples spread over scenarios; gold 0 or 1 where groups or wrong acts count."""
    gold, place = rng.integers(0, LABELS, SAMPLES), rng.integers(0, len(places), SAMPLES)
    metric = np.array([metric for _, _, metric in places])[place]
    gold = np.where(metric == "accuracy", gold, gold % 2)
    abstains = np.array([name == "knowledge" for _, name, _ in places])[place]
    return Questions(
        gold=gold.astype(np.int16),
        n_labels=np.full(SAMPLES, LABELS - 1, dtype=np.int16),
        group=np.where(metric == "parity", rng.integers(0, 2, SAMPLES), -1).astype(np.int8),
        abstain_ok=abstains & (rng.random(SAMPLES) < 0.5),
        holdout=np.zeros(SAMPLES, dtype=bool),
        parts=tuple(
            Part(benchmark, Scenario(name, name, metric), np.flatnonzero(place == i))
            for i, (benchmark, name, metric) in enumerate(places)
        ),
    )


def answers(rng: np.random.Generator, asked: Questions, variants: int) -> AnswerCodes:
    shape = (variants, asked.gold.size)
    guess = rng.integers(-1, LABELS, shape)
    return np.where(rng.random(shape) < 0.5, asked.gold, guess).astype(np.int16)


def timed(act: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, wall seconds and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    result = act()
    return result, time.perf_counter() - wall, time.process_time() - processor


def time_ensembles(variants: int, places: tuple[tuple[str, str, str], ...]) -> dict[str, float]:
    """Time for every ensemble, the share of distinct votes, the largest error in 30 ensembles."""
    rng = np.random.default_rng(variants)
    asked = table(rng, places)
    codes, precision = answers(rng, asked, variants), rng.integers(2, 9, variants).astype(float)
    weights = ALL if places == OF_ALL else {"ood": 1.0}
    masks = enumeration.enumerate_ensembles(variants, variants)
    enumeration.score_all(asked, codes, precision, weights, masks[:1])  # compiles
    found, wall, processor = timed(
        lambda: enumeration.score_all(asked, codes, precision, weights, masks)
    )
    worst = 0.0
    for place in rng.integers(0, masks.size, 30):
        chosen = list(enumeration.members(masks[place]))
        voted = voting.majority(codes[chosen], precision[chosen])
        slow = scores.score(asked, voted, weights)
        worst = max(worst, *(abs(values[place] - slow[key]) for key, values in found.items()))
    distinct = np.unique(np.vstack([asked.gold, codes]), axis=1).shape[1] / SAMPLES
    return {"s": wall, "cpu_s": processor, "distinct": distinct, "error": worst}


def same_as_reference(peers: Path) -> bool:
    """Front and greedy choice on accuracy and bytes, against the plain Python of the peers."""
    rng = np.random.default_rng(7)
    variants, samples = 9, 600
    gold = rng.integers(0, LABELS, samples)
    guess = rng.integers(-3, LABELS, (variants, samples))
    codes = np.where(rng.random(guess.shape) < 0.5, gold, guess).astype(np.int16)
    precision = rng.integers(2, 9, variants).astype(float)
    sizes, shared = rng.integers(10**7, 10**8, variants), 50_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pool.npz")
        arrays = {"answers": codes, "gold": gold, "precisions": precision, "bytes": sizes}
        np.savez(path, **arrays, shared_bytes=shared)
        command = [sys.executable, str(peers / "greedy_reference.py"), str(path)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    none, on = np.full(samples, -1, dtype=np.int8), np.zeros(samples, dtype=bool)
    everything = (Part("ood", Scenario("all", "all"), np.arange(samples)),)
    asked = Questions(
        gold.astype(np.int16), np.full(samples, LABELS, np.int16), none, on, on, everything
    )
    costs = [
        VariantCost({"common": shared, str(v): int(size)}, kv_bytes=0, latency_ms=1.0)
        for v, size in enumerate(sizes)
    ]

    def objectives(masks: enumeration.Masks) -> Floats:
        found = enumeration.score_all(asked, codes, precision, {"ood": 1.0}, masks)
        memory_gb, _ = enumeration.cost_all(costs, "parallel", masks)
        correct = np.round(found["trust"] * samples / 100)
        answered = np.round((100 - found["refusal_rate"]) * samples / 100)
        return np.stack([correct, -np.round(memory_gb * 1e9), answered], axis=1)

    def as_told(masks: enumeration.Masks) -> list[tuple[Any, ...]]:
        rows = zip(masks.tolist(), objectives(masks).astype(int).tolist(), strict=True)
        return sorted((enumeration.members(m), c, samples - a, -b) for m, (c, b, a) in rows)

    def as_named(results: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        names = ("correct", "refused", "bytes")
        return sorted((tuple(r["members"]), *(r[name] for name in names)) for r in results)

    masks = enumeration.enumerate_ensembles(variants, variants)
    front = pareto.pareto_front(objectives(masks)[:, :2], ["maximize", "maximize"])
    path_masks = enumeration.greedy(lambda m: objectives(m)[:, :2], variants, variants)
    same_front = as_told(masks[front]) == as_named(told["front"])
    return same_front and as_told(path_masks[-1:]) == as_named([told["greedy"]])


def null_coverage(parity: bool, few: int = 0) -> float:
    """How often the intervals of all voters against the first hold 0, all voters being equal.

    Answers are copied from a common draw with probability sqrt(0.7): their correlation is 0.7.
    With `parity` the contrasts are DPD and EOD of one scenario, else accuracies; `few` leaves so
    many items of one label in one group.
    """
    rng = np.random.default_rng(11)
    gold, group = np.arange(ITEMS) % 2, np.arange(ITEMS) // 2 % 2
    if few:
        gold[np.flatnonzero((gold == 1) & (group == 1))[few:]] = 0
    kind = "fairness" if parity else "ood"
    part = Part(
        kind, Scenario("null", "null", "parity" if parity else "accuracy"), np.arange(ITEMS)
    )
    asked = Questions(
        gold=gold.astype(np.int16),
        n_labels=np.full(ITEMS, 2, dtype=np.int16),
        group=np.where(parity, group, -1).astype(np.int8),
        abstain_ok=np.zeros(ITEMS, dtype=bool),
        holdout=np.zeros(ITEMS, dtype=bool),
        parts=(part,),
    )
    plan = rates.plan(asked, {kind: 1.0})
    keys = ("fairness/null.dpd", "fairness/null.eod") if parity else ("trust",)
    pairs = [(voter, 0) for voter in range(1, VOTERS)]
    chance = 0.65 + 0.1 * group  # right more often in one group
    held = 0
    for _ in range(REPETITIONS):
        common, own = (rng.random((n, ITEMS)) < chance for n in (1, VOTERS))
        correct = np.where(rng.random((VOTERS, ITEMS)) < np.sqrt(0.7), common, own)
        votes = np.where(correct, gold, 1 - gold).astype(np.int16)
        sums: ClusterSums = rates.cluster_sums(plan, asked, votes, np.arange(ITEMS))
        coefficients = rates.contrasts(plan, sums, keys, pairs)
        found = max_t_intervals(sums, coefficients, rng, resamples=RESAMPLES)
        held += not found.significant.any()
    return held / REPETITIONS


def time_bootstrap() -> dict[str, float]:
    """2,000 resamples of 50 contrasts of all kinds between 11 systems, 40,000 samples."""
    rng = np.random.default_rng(3)
    asked = table(rng, OF_ALL)
    votes, items = answers(rng, asked, 11), rng.integers(0, 8000, SAMPLES)
    plan = rates.plan(asked, ALL)

    def intervals() -> Any:
        sums = rates.cluster_sums(plan, asked, votes, items)
        keys, pairs = ("trust", "mmlu", *list(ALL)[:3]), [(i, 10) for i in range(10)]
        return max_t_intervals(sums, rates.contrasts(plan, sums, keys, pairs), rng)

    _, wall, processor = timed(intervals)
    return {"s": wall, "cpu_s": processor}


def main() -> None:
    runs = {"16": (16, OF_ONE), "16_all": (16, OF_ALL), "20": (20, OF_ONE)}
    measured = {name: time_ensembles(*run) for name, run in runs.items()}
    result: dict[str, Any] = {}
    for name, found in measured.items():
        result[f"ensembles_{name}_s"] = round(found["s"], 2)
        result[f"ensembles_{name}_cpu_s"] = round(found["cpu_s"], 2)
    result["distinct"] = round(min(found["distinct"] for found in measured.values()), 3)
    result["identical"] = all(found["error"] < 1e-9 for found in measured.values())
    if peers := os.environ.get("PEERS"):
        result["identical"] = result["identical"] and same_as_reference(Path(peers))
    result["reference"] = "slow path and greedy_reference.py" if peers else "slow path"
    result |= {f"bootstrap_{key}": round(value, 2) for key, value in time_bootstrap().items()}
    result["null_coverage"] = null_coverage(parity=False)
    result["null_coverage_dpd_eod"] = null_coverage(parity=True)
    result["null_coverage_dpd_eod_6_items"] = null_coverage(parity=True, few=6)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
