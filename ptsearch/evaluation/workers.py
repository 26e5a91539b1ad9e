"""Where builds and evaluations run: subprocesses, so that one killed for memory takes only itself.

A worker stays alive between calls (importing torch costs seconds) and is replaced when it dies.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple, TypeVar, TypeVarTuple

from joblib.externals import loky

from ptsearch.shared import Report

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")

REPORT_SECONDS = 0.05  # between looks whether a call has ended

_reports: Connection  # in a worker, where reports are sent


class WorkerError(RuntimeError):
    """The subprocess ended without an answer."""


class Worker(NamedTuple):
    """An executor of one process, and where the reports of its calls arrive."""

    executor: loky.ProcessPoolExecutor
    reports: Connection


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
    """Workers that share out calls, each one at a time."""

    def __init__(self, count: int, threads: int) -> None:
        self._threads, self._count = threads, count
        self._all: list[Worker] = []
        self._free: queue.Queue[Worker] = queue.Queue()
        for _ in range(count):
            self._free.put(self._start())

    def call(
        self, function: Callable[[*Arguments, Report], Result], *args: *Arguments, report: Report
    ) -> Result:
        """`function(*args, report)` in a subprocess; its exceptions are raised here.

        WorkerError: the subprocess was killed.
        """
        worker = self._free.get()
        try:
            answer = worker.executor.submit(_run, function, args)
            while not answer.done() or worker.reports.poll():
                if worker.reports.poll(REPORT_SECONDS):
                    report(*worker.reports.recv())
            result: Result = answer.result()
        except loky.BrokenProcessPool as error:
            worker = self._start()
            killed = "SIGKILL" in str(error)
            cause = "was killed, most likely for lack of memory" if killed else f"ended: {error}"
            raise WorkerError(f"a worker process {cause}") from None
        finally:
            self._free.put(worker)
        return result

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

        with ThreadPoolExecutor(self._count) as threads:
            futures = [threads.submit(run, args) for args in calls]
        return [future.result() for future in futures]

    def close(self) -> None:
        """End all processes, those at work too."""
        for worker in self._all:
            worker.executor.shutdown(kill_workers=True)

    def _start(self) -> Worker:
        reports, sender = multiprocessing.Pipe()
        prepare = {"initializer": _prepare, "initargs": (self._threads, sender)}
        self._all.append(Worker(loky.ProcessPoolExecutor(1, **prepare), reports))
        return self._all[-1]


def _prepare(threads: int, reports: Connection) -> None:
    """In a new worker, before its first call."""
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _run(function: Callable[[*Arguments, Report], Result], args: tuple[*Arguments]) -> Result:
    return function(*args, lambda *report: _reports.send(report))


def _end_with_parent() -> None:
    """A worker whose parent was killed ends at once, instead of working on for nobody."""
    with suppress(EOFError, OSError):
        _reports.recv()  # nothing is ever sent to a worker here
    os._exit(1)


def quiet_libraries() -> None:
    """Environment that keeps libraries in subprocesses from talking over the progress bar."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    sys.stdout.flush()
