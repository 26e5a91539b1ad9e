"""Where builds and evaluations run: subprocesses, so that one killed for memory takes only itself.

A worker stays alive between calls (importing torch costs seconds) and is replaced when it dies.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar, TypeVarTuple

from ptsearch.shared import Report

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

CLOSE_SECONDS = 5.0  # for an idle worker to end


class WorkerError(RuntimeError):
    """The subprocess ended without an answer."""


class Worker:
    """A subprocess that runs functions of the package, one at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._running: tuple[SpawnProcess, Connection] | None = None
        self._busy = False

    def call(
        self, function: Callable[[*Arguments, Report], Result], *args: *Arguments, report: Report
    ) -> Result:
        """`function(*args, report)` in the subprocess; its exceptions are raised here."""
        if self._running is None or not self._running[0].is_alive():
            self._running = self._start()
        process, pipe = self._running
        self._busy = True
        try:
            pipe.send((function, args))
            kind, payload = pipe.recv()
            while kind == "report":
                report(*payload)
                kind, payload = pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            process.join()
            raise WorkerError(_cause_of_death(process.exitcode)) from None
        self._busy = False
        if kind == "error":
            raise _revived(*payload)
        result: Result = payload
        return result

    def close(self) -> None:
        """Let the process end by itself; one that is still at work is stopped."""
        if self._running is not None and self._running[0].is_alive():
            process, pipe = self._running
            pipe.close()
            process.join(timeout=0 if self._busy else CLOSE_SECONDS)
            process.terminate()
            process.join()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        process.start()
        theirs.close()
        return process, ours


@contextmanager
def workers(count: int, threads: int = 0) -> Iterator["Pool"]:
    """`count` workers; `threads` for each, 0 = the cores shared out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = Pool(count, threads or max(1, (cores or 1) // count))
    try:
        yield pool
    finally:
        pool.close()


class Pool:
    """Workers that share out calls."""

    def __init__(self, count: int, threads: int) -> None:
        self._workers = [Worker(threads) for _ in range(count)]
        self._free: queue.Queue[Worker] = queue.Queue()
        for worker in self._workers:
            self._free.put(worker)

    def call(
        self, function: Callable[[*Arguments, Report], Result], *args: *Arguments, report: Report
    ) -> Result:
        worker = self._free.get()
        try:
            return worker.call(function, *args, report=report)
        finally:
            self._free.put(worker)

    def map(
        self,
        function: Callable[[*Arguments, Report], Result],
        calls: Iterable[tuple[*Arguments]],
        report: Report,
    ) -> list[Result]:
        """Results in the order of `calls`; the first error is raised after the others ended."""
        lock = threading.Lock()

        def guarded(stage: str, done: int, total: int) -> None:
            with lock:
                report(stage, done, total)

        def run(args: tuple[*Arguments]) -> Result:
            return self.call(function, *args, report=guarded)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            futures = [threads.submit(run, args) for args in calls]
        return [future.result() for future in futures]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


def _serve(pipe: Connection, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.environ["OMP_NUM_THREADS"] = str(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(threads)

    def report(stage: str, done: int, total: int) -> None:
        pipe.send(("report", (stage, done, total)))

    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            result = function(*args, report)
        except Exception as error:  # noqa: BLE001  (crosses the process boundary whole)
            pipe.send(("error", (error, traceback.format_exc())))
        else:
            pipe.send(("result", result))


def _end_with_parent() -> None:
    """A worker whose parent was killed ends at once, instead of working on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _revived(error: Exception, trace: str) -> Exception:
    error.add_note(f"in a worker process:\n{trace}")
    return error


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "a worker process was killed, most likely for lack of memory"
    return f"a worker process ended with status {exitcode}; its message is above"


def quiet_libraries() -> None:
    """Environment that keeps libraries in subprocesses from talking over the progress bar."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    sys.stdout.flush()
