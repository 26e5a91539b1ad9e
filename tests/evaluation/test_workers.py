"""Workers: results, errors, progress, and death in a subprocess."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from ptsearch.evaluation.workers import Bounds, Processes, WorkerError, each, visible_gpus


def work(x: int, report) -> tuple[int, int]:
    report("squaring", 1, 1)
    return x * x, os.getpid()


def fail(report) -> None:
    raise ValueError("bits must be 2 to 8, got bits=9")


def die(report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(report) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def loop(report) -> None:
    while True:
        pass


def dawdle(report) -> str:
    for step in range(6):
        time.sleep(0.7)
        report("dawdling", step, 6)
    return "done"


def sees(report) -> str:
    time.sleep(0.5)  # the other call is the other worker's
    return os.environ["CUDA_VISIBLE_DEVICES"]


def threads(report) -> int:
    return torch.get_num_threads()


def grow(report) -> int:
    global held
    held = bytearray(b"1") * 400_000_000
    time.sleep(1.2)  # loky looks once a second
    return os.getpid()


def sleep(report) -> None:
    report("sleeping", os.getpid(), 0)
    time.sleep(600)


def start_a_long_call(pipe) -> None:
    Processes(1, 1).call(sleep, report=lambda _, pid, __: pipe.send(pid))


@pytest.fixture(scope="module")
def pool() -> Iterator[Processes]:
    started = Processes(1, threads=1)
    yield started
    started.close()


def nothing(*_: object) -> None:
    pass


def test_a_call_runs_elsewhere_and_reports(pool: Processes) -> None:
    seen: list[tuple[object, ...]] = []
    result, pid = pool.call(partial(work, 7), report=lambda *event: seen.append(event))
    assert (result, seen) == (49, [("squaring", 1, 1)])
    assert pid != os.getpid()
    assert pool.call(partial(work, 3), report=nothing)[1] == pid  # the worker stays


def test_an_error_arrives_as_itself(pool: Processes) -> None:
    with pytest.raises(ValueError, match="bits must be 2 to 8"):
        pool.call(fail, report=nothing)


def test_a_killed_worker_is_told_and_replaced(pool: Processes) -> None:
    with pytest.raises(WorkerError, match="lack of memory"):
        pool.call(die, report=nothing)
    assert pool.call(partial(work, 2), report=nothing)[0] == 4


@pytest.mark.parametrize("how", [stop, loop])
def test_a_worker_that_hangs_is_told_and_replaced(pool: Processes, how) -> None:
    pool.call(partial(work, 2), report=nothing)
    with pytest.raises(WorkerError, match="no progress in 2 seconds"):
        pool.call(how, report=nothing, bounds=Bounds(silence=2))
    assert pool.call(partial(work, 2), report=nothing)[0] == 4


def test_a_slow_worker_that_makes_progress_is_waited_for(pool: Processes) -> None:
    assert pool.call(dawdle, report=nothing, bounds=Bounds(silence=2)) == "done"


def test_each_worker_sees_one_gpu_and_so_does_the_one_in_its_place() -> None:
    pool = Processes(2, threads=1, gpus=["4", "GPU-7f"])
    try:
        for _ in range(2):
            seen = each(pool, lambda _, report: pool.call(sees, report=report), range(2), nothing)
            assert sorted(seen) == ["4", "GPU-7f"]
            with pytest.raises(WorkerError):
                pool.call(die, report=nothing)
    finally:
        pool.close()


def test_a_small_call_has_one_thread() -> None:
    pool = Processes(1, threads=2)
    try:
        assert pool.call(threads, report=nothing) == 2
        assert pool.call(threads, report=nothing, bounds=Bounds(small=True)) == 1
    finally:
        pool.close()


def test_the_gpus_that_workers_get_are_the_visible_ones(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,MIG-1")
    assert visible_gpus() == ["5", "MIG-1"]


def test_map_keeps_the_order(pool: Processes) -> None:
    found = each(
        pool, lambda n, report: pool.call(partial(work, n), report=report), range(4), nothing
    )
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


def test_a_worker_whose_memory_grows_as_models_do_stays(pool: Processes) -> None:
    pool.call(partial(work, 1), report=nothing)
    assert len({pool.call(grow, report=nothing) for _ in range(2)}) == 1
