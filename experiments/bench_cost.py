"""What an exported ensemble costs: predicted of its members' own times, and measured.

    python experiments/bench_cost.py FOLDER [ROUNDS]

Prompts of its verify.jsonl, one at a time. In each round every prompt goes to each member alone, to
all of them one after the other, the same again (what a repeat is worth), lazily, and together, each
core the next member, so that a change of the machine's speed meets all alike. Members side by side
are measured with as many of them as there are cores, each with one thread in a process of its own:
alone, then all at once, twice. The last line is JSON: for each way p50 and p95 in ms, predicted
(sums, or maxima, over the members asked, prompt by prompt) and measured, the ratio of the rounds'
totals (median), and by how much a repeat differs; then bytes: resident with all members loaded,
stored, counted.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.deploy.ensemble import PrecisionEnsemble, say, tokenized
from ptsearch.deploy.folder import open_folder, read_verify
from ptsearch.deploy.query import MemberAnswer, Query
from ptsearch.evaluation.workers import quiet_libraries
from ptsearch.search.scorer import percentiles

PROMPTS = 20  # at most
ALL, AGAIN, LAZY, TOGETHER = "ensemble", "ensemble again", "lazy", "together"

Times = NDArray[np.float64]  # (rounds, prompts) ms


def main(folder: Path, rounds: int) -> None:
    queries = [row.query for row in read_verify(open_folder(folder))]
    queries = queries[:: -(-len(queries) // PROMPTS)]
    found = side_by_side(folder, queries, rounds)
    before = resident()
    ensemble = PrecisionEnsemble.from_pretrained(folder)
    loaded = resident() - before
    found |= one_by_one(ensemble, queries, rounds)
    described = ensemble.description
    found |= {
        "prompts": len(queries),
        "rounds": rounds,
        "bytes": {
            "resident_loaded": loaded,
            "resident_after": resident() - before,
            "stored": sum(member.bytes for member in described.members),
            "counted_with_cache": int(1e9 * described.cost.memory_gb),
            "dense_weights": described.cost.dense_bytes,
        },
    }
    sys.stdout.write(json.dumps(found) + "\n")


def ask_member(ensemble: PrecisionEnsemble, member: str, asked: Query) -> MemberAnswer:
    """What one member says, without the others."""
    tokens = tokenized(ensemble.prompters[member], asked)
    return say(ensemble.engines[member], {0: tokens}, lambda _: True)[0]


def one_by_one(
    ensemble: PrecisionEnsemble, queries: Sequence[Query], rounds: int
) -> dict[str, Any]:
    """Members in this process, with all cores; together they are beside the sum, not predicted."""
    ways: dict[str, Callable[[Query], Any]] = {
        member: lambda asked, member=member: ask_member(ensemble, member, asked)  # type: ignore[misc]
        for member in ensemble.members
    }
    ways[ALL] = ways[AGAIN] = lambda asked: [
        ask_member(ensemble, member, asked) for member in ensemble.members
    ]
    ways[TOGETHER] = lambda asked: ensemble.ask([asked])
    ways[LAZY] = lambda asked: ensemble.ask([asked], lazy=True)[0]
    for ask in ways.values():
        ask(queries[0])
    asked = [[m in ways[LAZY](each).members for each in queries] for m in ensemble.members]
    times = interleaved(ways, queries, rounds)
    alone = np.stack([times[member] for member in ensemble.members])
    found = {
        "members": {m: percentiles(times[m]) for m in ensemble.members},
        "sequential": compared(alone.sum(axis=0), times[ALL], times[AGAIN]),
        "lazy": compared((alone * np.array(asked)[:, None]).sum(axis=0), times[LAZY]),
        "together": compared(alone.sum(axis=0), times[TOGETHER]),
    }
    found["lazy"]["calls"] = round(float(np.sum(asked) / len(queries)), 2)
    return found


def side_by_side(folder: Path, queries: Sequence[Query], rounds: int) -> dict[str, Any]:
    """As many members as cores, a process and a thread each: the slowest is predicted."""
    members = list(open_folder(folder).members)[: len(os.sched_getaffinity(0))]
    with workers(folder, members) as pipes:

        def ask(who: Sequence[Connection]) -> Callable[[Query], None]:
            def asked(query: Query) -> None:
                for pipe in who:
                    pipe.send(query)
                for pipe in who:
                    pipe.recv()

            return asked

        ways = {member: ask([pipe]) for member, pipe in zip(members, pipes, strict=True)}
        ways[ALL] = ways[AGAIN] = ask(pipes)
        for way in ways.values():
            way(queries[0])
        times = interleaved(ways, queries, rounds)
    slowest = np.stack([times[member] for member in members]).max(axis=0)
    return {"parallel": compared(slowest, times[ALL], times[AGAIN]) | {"members": len(members)}}


def interleaved(
    ways: dict[str, Callable[[Query], Any]], queries: Sequence[Query], rounds: int
) -> dict[str, Times]:
    times = {way: np.empty((rounds, len(queries))) for way in ways}
    for turn in range(rounds):
        for i, query in enumerate(queries):
            for way, ask in ways.items():
                start = perf_counter()
                ask(query)
                times[way][turn, i] = 1000 * (perf_counter() - start)
    return times


def compared(predicted: Times, measured: Times, again: Times | None = None) -> dict[str, Any]:
    ratios = measured.sum(axis=1) / predicted.sum(axis=1)
    found: dict[str, Any] = {
        "predicted": percentiles(predicted),
        "measured": percentiles(measured),
        "measured_of_predicted": round(float(median(ratios)), 3),
    }
    if again is not None:
        repeats = abs(again.sum(axis=1) / measured.sum(axis=1) - 1)
        found["repeat_spread"] = round(float(median(repeats)), 3)
    return found


@contextmanager
def workers(folder: Path, members: Sequence[str]) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in members]
    started = [
        context.Process(target=answer, args=(str(folder), member, theirs), daemon=True)
        for member, (_, theirs) in zip(members, pairs, strict=True)
    ]
    for process in started:
        process.start()
    pipes = [ours for ours, _ in pairs]
    for pipe in pipes:
        pipe.recv()  # it is ready
    try:
        yield pipes
    finally:
        for process in started:
            process.terminate()
            process.join()


def answer(folder: str, member: str, pipe: Connection) -> None:
    """Answers queries with one member and one thread, for good."""
    opened = open_folder(folder)
    settings = EngineConfig(dtype=opened.description.dtype("bfloat16"), threads=1)
    engine = engines.load(opened.members[member], settings)
    ensemble = PrecisionEnsemble(opened, {member: engine})
    pipe.send(None)
    while True:
        ask_member(ensemble, member, pipe.recv())
        pipe.send(None)


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    quiet_libraries()
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
