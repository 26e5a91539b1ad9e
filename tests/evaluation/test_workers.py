"""Workers: results, errors, progress, and death in a subprocess."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from ptsearch.evaluation.workers import Pool, WorkerError, workers


def work(x: int, report) -> tuple[int, int]:
    report("squaring", 1, 1)
    return x * x, os.getpid()


def fail(report) -> None:
    raise ValueError("bits must be 2 to 8, got bits=9")


def die(report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(report) -> None:
    report("sleeping", os.getpid(), 0)
    time.sleep(600)


def start_a_long_call(pipe) -> None:
    Pool(1, 1).call(sleep, report=lambda _, pid, __: pipe.send(pid))


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with workers(1, threads=1) as started:
        yield started


def nothing(*_: object) -> None:
    pass


def test_a_call_runs_elsewhere_and_reports(pool: Pool) -> None:
    seen: list[tuple[object, ...]] = []
    result, pid = pool.call(work, 7, report=lambda *event: seen.append(event))
    assert (result, seen) == (49, [("squaring", 1, 1)])
    assert pid != os.getpid()
    assert pool.call(work, 3, report=nothing)[1] == pid  # the worker stays


def test_an_error_arrives_as_itself(pool: Pool) -> None:
    with pytest.raises(ValueError, match="bits must be 2 to 8"):
        pool.call(fail, report=nothing)


def test_a_killed_worker_is_told_and_replaced(pool: Pool) -> None:
    with pytest.raises(WorkerError, match="lack of memory"):
        pool.call(die, report=nothing)
    assert pool.call(work, 2, report=nothing)[0] == 4


def test_map_keeps_the_order(pool: Pool) -> None:
    found = pool.map(work, [(n,) for n in range(4)], nothing)
    assert [square for square, _ in found] == [0, 1, 4, 9]


def test_a_worker_ends_with_its_parent() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=start_a_long_call, args=(theirs,))
    parent.start()
    assert ours.poll(60)
    worker = ours.recv()
    parent.kill()
    parent.join()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker was still alive ten seconds after its parent")
