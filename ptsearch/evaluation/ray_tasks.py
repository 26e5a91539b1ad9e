"""Where builds and evaluations run on a Ray cluster: each call is a Ray task.

Ray gives a task its cores, GPUs (through CUDA_VISIBLE_DEVICES) and memory, and runs the task of a
lost node again. All nodes see `cache_dir`, and the folder of the command, at the same path.
"""

import os
import socket
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ptsearch.config import ComputeConfig
from ptsearch.evaluation.workers import ANY, Bounds, WorkerError, perform
from ptsearch.shared import Report

Result = TypeVar("Result")

LOOK_SECONDS = 0.2  # between looks whether a task has ended
RETRIES = 2  # of a task whose node or process is lost, by Ray itself


class RayTasks:
    """Calls become tasks of a cluster, which decides what runs where and when."""

    def __init__(self, config: ComputeConfig, threads: int) -> None:
        self._threads = threads or max(1, int(config.num_cpus))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            _check_answers(config.address)
            ray.init(config.address or None, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RayError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"compute.address={config.address!r}: {reason} (a cluster with tokens needs "
                "RAY_AUTH_MODE=token here too)"
            ) from None
        memory = int(config.memory_gb * 1e9)
        room = capacity({"CPU": config.num_cpus, "GPU": config.num_gpus, "memory": memory})
        self.count = config.workers or room
        self._task = ray.remote(_run).options(
            num_cpus=config.num_cpus,
            num_gpus=config.num_gpus,
            memory=memory or None,
            max_retries=RETRIES,
        )
        here = ray.get_runtime_context().get_node_id()
        beside = NodeAffinitySchedulingStrategy(here, soft=False)
        self._board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=beside).remote()

    def call(self, job: Callable[[Report], Result], report: Report, bounds: Bounds = ANY) -> Result:
        call, threads = uuid.uuid4().hex, 1 if bounds.small else self._threads
        task = self._task.remote(job, threads, os.getcwd(), self._board, call)
        silent, at_work, done = 0.0, False, False
        while not done:
            done = bool(ray.wait([task], timeout=LOOK_SECONDS)[0])
            for event in ray.get(self._board.take.remote(call)):
                silent, at_work = 0.0, True
                if event:
                    report(*event)
            silent += LOOK_SECONDS * at_work  # a task that waits for its node is not silent
            if not done and bounds.silence and silent > bounds.silence:
                ray.cancel(task, force=True)
                raise WorkerError(f"no progress in {bounds.silence:g} seconds")
        try:
            result: Result = ray.get(task)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise WorkerError(f"a worker process ended: {str(error).splitlines()[0]}") from None
        return result

    def close(self) -> None:
        """Leave the cluster; its tasks of this study end."""
        ray.shutdown()


def _check_answers(address: str) -> None:
    """OSError at once, where Ray tries for more than a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()


def capacity(needs: dict[str, float]) -> int:
    """How many tasks with these needs the cluster runs at the same time. ValueError: no node can
    ever run one.
    """
    asked = {name: need for name, need in needs.items() if need}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(min(int(n.get(name, 0) // need) for name, need in asked.items()) for n in nodes)
    if not room:
        wanted = ", ".join(f"{name} {need:g}" for name, need in asked.items())
        have = (", ".join(f"{name} {node.get(name, 0):g}" for name in needs) for node in nodes)
        raise ValueError(
            f"compute: a task needs {wanted}, and no node of the Ray cluster has that: "
            f"{'; '.join(sorted(set(have)))}"
        )
    return room


class Board:
    """What tasks report, until it is looked at; beside the process that looks."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[str, int, int] | None]] = defaultdict(list)

    def put(self, call: str, event: tuple[str, int, int] | None) -> None:
        self.events[call].append(event)

    def take(self, call: str) -> list[tuple[str, int, int] | None]:
        return self.events.pop(call, [])


def _run(
    job: Callable[[Report], Result],
    threads: int,
    folder: str,
    board: Any,
    call: str,
) -> Result:
    board.put.remote(call, None)  # it has started
    os.chdir(folder)
    return perform(job, threads, lambda *event: board.put.remote(call, event))
