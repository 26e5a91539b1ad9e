"""Where builds and evaluations run: subprocesses, so that one killed for memory takes only itself.

A worker stays alive between calls (importing torch costs seconds) and is replaced when it dies or
hangs. Tasks of a Ray cluster are in `ray_tasks.py`.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from joblib.externals import loky

from ptsearch.config import ComputeConfig, Config
from ptsearch.shared import Report

if TYPE_CHECKING:
    from ptsearch.evaluation.ray_tasks import RayTasks

Item = TypeVar("Item")
Result = TypeVar("Result")

REPORT_SECONDS = 0.05  # between looks whether a call has ended

_reports: Connection  # in a worker, where reports are sent


class WorkerError(RuntimeError):
    """The subprocess ended without an answer, or would not end."""


class Bounds(NamedTuple):
    """What a call may take."""

    silence: float = 0.0  # seconds without a report after which its worker hangs; 0 = any
    small: bool = False  # one thread


ANY = Bounds()


class Pool(Protocol):
    """Where jobs run."""

    count: int  # of jobs at the same time

    def call(self, job: Callable[[Report], Result], report: Report, bounds: Bounds = ANY) -> Result:
        """`job(report)` elsewhere, a `partial` of a function; its exceptions are raised here.

        WorkerError: the worker was killed, crashed, or was silent for too long.
        """


def each(
    pool: Pool, run: Callable[[Item, Report], Result], items: Sequence[Item], report: Report
) -> list[Result]:
    """`run` for all items, as many at the same time as the pool has workers; results in their
    order. The first error is raised after the others ended.
    """
    lock = threading.Lock()

    def guarded(stage: str, done: int, total: int) -> None:
        with lock:
            report(stage, done, total)

    with ThreadPoolExecutor(pool.count) as threads:
        futures = [threads.submit(run, item, guarded) for item in items]
    return [future.result() for future in futures]


@contextmanager
def workers(config: Config) -> Iterator[Pool]:
    """The workers of `compute`, which end with it; `engine.threads` for each, 0 = the cores shared
    out. ValueError: there is no such cluster, or none that can ever run a task.
    """
    pool = _open(config.compute, config.engine.threads)
    try:
        yield pool
    finally:
        pool.close()


def _open(compute: ComputeConfig, threads: int) -> "Here | Processes | RayTasks":
    if compute.name == "ray":
        try:
            from ptsearch.evaluation.ray_tasks import RayTasks
        except ImportError:
            raise ValueError("compute=ray needs Ray: pip install 'ptsearch[ray]'") from None
        return RayTasks(compute, threads)
    if not compute.workers:
        return Here()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shared = max(1, (cores or 1) // compute.workers)
    return Processes(compute.workers, threads or shared, visible_gpus())


class Here:
    """No worker: calls run in this process, which ends if one is killed."""

    count = 1

    def call(self, job: Callable[[Report], Result], report: Report, bounds: Bounds = ANY) -> Result:
        return job(report)

    def close(self) -> None:
        pass


class Worker(NamedTuple):
    """An executor of one process, where the reports of its calls arrive, and its GPU."""

    executor: loky.ProcessPoolExecutor
    reports: Connection
    environment: dict[str, str]


class Processes:
    """Workers of this machine that share out calls, each one at a time; with several GPUs, each
    worker sees one.
    """

    def __init__(self, count: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self.count, self._threads = count, threads
        self._all: list[Worker] = []
        self._free: queue.Queue[Worker] = queue.Queue()
        for number in range(count):
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if len(gpus) > 1 else {}
            self._free.put(self._start({"OMP_NUM_THREADS": str(threads), **gpu}))

    def call(self, job: Callable[[Report], Result], report: Report, bounds: Bounds = ANY) -> Result:
        worker = self._free.get()
        try:
            threads = 1 if bounds.small else self._threads
            answer = worker.executor.submit(_run, job, threads)
            silent = 0.0  # counted in looks: a machine that slept has not waited
            while not answer.done() or worker.reports.poll():
                if worker.reports.poll(REPORT_SECONDS):
                    report(*worker.reports.recv())
                    silent = 0.0
                elif bounds.silence and (silent := silent + REPORT_SECONDS) > bounds.silence:
                    raise WorkerError(f"no progress in {bounds.silence:g} seconds")
            result: Result = answer.result()
        except WorkerError:
            worker = self._replaced(worker)
            raise
        except loky.BrokenProcessPool as error:
            worker = self._replaced(worker)
            killed = "SIGKILL" in str(error)
            cause = "was killed, most likely for lack of memory" if killed else f"ended: {error}"
            raise WorkerError(f"a worker process {cause}") from None
        finally:
            self._free.put(worker)
        return result

    def close(self) -> None:
        """End all processes, those at work too."""
        for worker in self._all:
            worker.executor.shutdown(kill_workers=True)

    def _replaced(self, worker: Worker) -> Worker:
        """A new one in its place."""
        worker.executor.shutdown(kill_workers=True)
        self._all.remove(worker)
        return self._start(worker.environment)

    def _start(self, environment: dict[str, str]) -> Worker:
        reports, sender = multiprocessing.Pipe()
        executor = loky.ProcessPoolExecutor(
            1, initializer=_prepare, initargs=(sender,), env=environment
        )
        self._all.append(Worker(executor, reports, environment))
        return self._all[-1]


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, one each."""
    import torch

    given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return given or [str(number) for number in range(torch.cuda.device_count())]


def _prepare(reports: Connection) -> None:
    """In a new worker, before its first call."""
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from ptsearch.engine import _compat

    _compat.keep_worker()


def perform(job: Callable[[Report], Result], threads: int, report: Report) -> Result:
    """A job, in its worker."""
    import torch

    torch.set_num_threads(threads)
    return job(report)


def _run(job: Callable[[Report], Result], threads: int) -> Result:
    return perform(job, threads, lambda *report: _reports.send(report))


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
