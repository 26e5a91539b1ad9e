"""What an exported ensemble costs where it is served in one process: time a prompt, and memory.

    python experiments/bench_cost.py FOLDER [ROUNDS]

Prompts of its verify.jsonl, one at a time. In each round every prompt goes to each member alone, to
all of them, to all of them again (what a repeat is worth) and lazily, one after the other, so that
a change of the machine's speed meets all alike. The last line is JSON: milliseconds (p50, p95),
resident bytes, and `measured_of_summed`, the ensemble's time over the sum of its members'.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from ptsearch.compute import quiet_libraries
from ptsearch.ensemble import PrecisionEnsemble
from ptsearch.exported import read_verify
from ptsearch.query import Query

PROMPTS = 16
ALL, AGAIN, LAZY = "ensemble", "ensemble again", "lazy"


def main(folder: Path, rounds: int) -> None:
    before = resident()
    ensemble = PrecisionEnsemble.from_pretrained(folder)
    loaded = resident() - before
    queries = [row.query for row in read_verify(ensemble.folder)][:: max(1, 64 // PROMPTS)]
    ways: dict[str, Callable[[Query], object]] = {
        member: lambda asked, member=member: ensemble.ask_member(member, [asked])  # type: ignore[misc]
        for member in ensemble.members
    }
    ways[ALL] = ways[AGAIN] = lambda asked: ensemble.ask([asked])
    ways[LAZY] = lambda asked: ensemble.ask([asked], lazy=True)
    for ask in ways.values():
        ask(queries[0])
    times = {way: np.empty((rounds, len(queries))) for way in ways}
    for turn in range(rounds):
        for i, asked in enumerate(queries):
            for way, ask in ways.items():
                start = perf_counter()
                ask(asked)
                times[way][turn, i] = 1000 * (perf_counter() - start)
    summed = sum(times[member] for member in ensemble.members)
    repeat = median(abs(times[AGAIN].sum(axis=1) / times[ALL].sum(axis=1) - 1))
    calls = [len(answer.members) for answer in ensemble.ask(queries, lazy=True)]
    found = {
        "prompts": len(queries),
        "rounds": rounds,
        "ms": {
            way: {p: round(float(np.percentile(t, int(p[1:]))), 1) for p in ("p50", "p95")}
            for way, t in times.items()
        },
        "measured_of_summed": round(median(times[ALL].sum(axis=1) / summed.sum(axis=1)), 3),
        "repeat_spread": round(repeat, 3),
        "lazy_of_all": round(median(times[LAZY].sum(axis=1) / times[ALL].sum(axis=1)), 3),
        "lazy_calls": round(sum(calls) / len(calls), 2),
        "resident_bytes": loaded,
        "stored_bytes": sum(row["bytes"] for row in ensemble.description["members"]),
        "counted_gb": ensemble.description["cost"]["memory_gb"],
    }
    sys.stdout.write(json.dumps(found) + "\n")


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    quiet_libraries()
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
