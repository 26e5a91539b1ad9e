"""What the intervals of the picks' trust hold, and how wide they are, with the choice included.

`PYTHONPATH=.:tests python experiments/pick_power.py [WORLDS]`: the recorded answers of a default
study (tests/golden) are the population. Each world draws its items with replacement within the
strata, splits them in halves, finds the exact front and the picks on the search half, and asks on
the held-out half for the picks' gains in trust over dense and the best single variant. The truth is
their gain on the whole population. Printed: how often all intervals of the picks hold it, median
half-widths of this family, and those of the same gains among all gains of the front.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import test_golden

from ptsearch.benchmarks import Sample, item_hash
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import rows as results
from ptsearch.report.answer import with_picks
from ptsearch.search.comparisons import gains
from ptsearch.search.exact_front import find_exact_front
from ptsearch.search.scorer import scorers
from ptsearch.search.study import CompletedTrial

WORLDS = 300


class Factory:
    """What pytest's fixture of the recorded table asks for a folder."""

    def mktemp(self, _: str) -> Path:
        return Path(tempfile.mkdtemp())


def population() -> Table:
    recorded = json.loads((test_golden.GOLDEN / "study.json").read_text(encoding="utf-8"))
    table: Table = test_golden.table.__wrapped__(recorded, Factory())
    search = replace(table.config.study, min_skill="require")
    return replace(table, config=replace(table.config, study=search))


def drawn(table: Table, rng: np.random.Generator) -> Table:
    """The table of as many items, drawn with replacement within benchmark, group and label."""
    samples = [sample for benchmark in table.benchmarks for sample in benchmark.samples]
    rows: list[int] = []
    benchmarks, start = [], 0
    for benchmark in table.benchmarks:
        mine: list[Sample] = []
        places: dict[str, list[int]] = {}
        strata: dict[tuple[int, int], list[str]] = {}
        for row in range(start, start + len(benchmark.samples)):
            if samples[row].item not in places:
                side = (samples[row].group, samples[row].gold if samples[row].group >= 0 else -1)
                strata.setdefault(side, []).append(samples[row].item)
            places.setdefault(samples[row].item, []).append(row)
        for items in strata.values():
            for draw, item in enumerate(rng.choice(items, len(items))):
                name = item_hash(benchmark.name, item, str(draw), str(rng.integers(2**62)))
                for row in places[item]:
                    mine.append(replace(samples[row], id=str(len(mine)), item=name))
                    rows.append(row)
        benchmarks.append(replace(benchmark, samples=tuple(mine)))
        start += len(benchmark.samples)
    entries = {n: replace(each, codes=each.codes[rows]) for n, each in table.entries.items()}
    return replace(table, benchmarks=benchmarks, entries=entries)


def worlds(table: Table, number: int) -> Iterator[tuple[bool, list[float], list[float]]]:
    """Whether all intervals hold the truth; half-widths among the picks', and among all gains."""
    rng, truth = np.random.default_rng(0), scorers(table)["all"]
    for _ in range(number):
        world = drawn(table, rng)
        parts = scorers(world)
        exact = find_exact_front(world, parts["search"])
        trials = [CompletedTrial(i, members, "") for i, members in enumerate(exact.front)]
        front = results.front_rows(world, parts["search"], trials)
        front = with_picks(world, parts["search"], front, exact.names)
        _, *singles = results.baseline_rows(world, parts["search"])
        best = results.best_single(singles)
        assert best is not None
        over = {"dense": (DENSE,), "best_single": best.members}
        picks = [row.members for row in front if row.picks]
        first = gains(world, parts["holdout"], picks, over, ["trust"])
        every = gains(world, parts["holdout"], exact.front, over)
        among = dict(zip(exact.front, every, strict=True))
        held, narrow, wide = True, [], []
        for members, found in zip(picks, first, strict=True):
            for name, baseline in over.items():
                gain, of_all = found[name]["trust"], among[members][name]["trust"]
                true = truth(table, members)["trust"] - truth(table, baseline)["trust"]
                held &= gain.low <= true <= gain.high
                if members != baseline:
                    narrow.append((gain.high - gain.low) / 2)
                    wide.append((of_all.high - of_all.low) / 2)
        yield held, narrow, wide


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else WORLDS
    held, narrow, wide = zip(*worlds(population(), number), strict=True)
    report = {
        "worlds": number,
        "coverage_pct": 100 * float(np.mean(held)),
        "half_width_picks": float(np.median(np.concatenate(narrow))),
        "half_width_among_all_gains": float(np.median(np.concatenate(wide))),
        "half_width_picks_p90": float(np.quantile(np.concatenate(narrow), 0.9)),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
