"""A build and an evaluation of the tiny model that can be killed, and what they leave behind."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from ptsearch import config as c
from ptsearch.benchmarks import sources
from ptsearch.evaluation import predictions, table, workers

POOL = [{"method": "rtn", "bits": 3}, {"method": "gptq", "bits": 4, "seed": [0, 1]}]
MEASURED = {"seconds", "cpu_seconds", "gradient_cpu_seconds"}  # of meta.json
forks = multiprocessing.get_context("forkserver")  # of a process in which torch has no threads
forks.set_forkserver_preload(["killed", "transformers.models.llama"])


def start(model: Path, cache: Path, told: Path | None = None) -> BaseProcess:
    """The whole pool, in a process of its own; `told` gets a line per report of an evaluation."""
    process = forks.Process(target=work, args=(model, cache, told))
    process.start()
    return process


def work(model: Path, cache: Path, told: Path | None = None) -> None:
    def report(stage: str, _done: int, _total: int) -> None:
        if told and stage.startswith("evaluating"):
            with told.open("a", encoding="utf-8") as file:
                file.write(f"{stage}, {os.getpid()}\n")

    config = c.Config(
        model=c.ModelConfig("tiny", "path", path=str(model)),
        pool=c.PoolConfig(variants=POOL, group_size=32),
        calibration=c.CalibrationConfig(samples=4, length=64),
        benchmarks=c.BenchmarksConfig(limit=2),
        latency=c.LatencyConfig(prompts=2),
        compute=c.ComputeConfig(workers=0),
        cache_dir=str(cache),
    )
    benchmarks = sources.load(config.benchmarks, cache)
    with workers.workers(config) as pool:
        opened = table.open_table(config, benchmarks, pool, report)
        opened.ensure([table.DENSE, *opened.variants])


def kill_at(moment: float, start_it: Callable[[], BaseProcess]) -> bool:
    """Kill the process after `moment` seconds; False: it had ended."""
    process = start_it()
    process.join(moment)
    alive = process.is_alive()
    if alive and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


def contents(cache: Path) -> dict[str, object]:
    """Every file, without what is measured anew each time; locks are empty and not listed."""
    found: dict[str, object] = {}
    for path in sorted(path for path in cache.rglob("*") if path.is_file()):
        name = str(path.relative_to(cache))
        if path.suffix == ".lock":
            assert path.stat().st_size == 0
        elif path.suffix == ".parquet":
            found[name] = predictions.read(path).drop(["seconds"])
        elif path.name == "meta.json":
            meta = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in meta.items() if key not in MEASURED}
        elif path.name == "files.json":
            found[name] = set(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[name] = name if path.parent.name == "latency" else path.read_bytes()
    return found


def undisturbed(model: Path, cache: Path) -> float:
    """Seconds that it takes, imports of the first start not counted."""
    warm = forks.Process(target=int)
    warm.start()
    warm.join()
    started = time.perf_counter()
    process = start(model, cache)
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - started
