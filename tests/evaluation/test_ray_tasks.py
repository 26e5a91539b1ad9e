"""Tasks on a Ray cluster of this machine: as processes of this machine, bit for bit."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from small_study import SMALL
from test_conf import composed

from ptsearch.benchmarks import sources
from ptsearch.config import ComputeConfig, Config
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import DENSE, open_table
from ptsearch.evaluation.workers import Bounds, WorkerError, workers

ray = pytest.importorskip("ray")
from ptsearch.evaluation.ray_tasks import RayTasks, capacity  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
POOL = "[{method: rtn, bits: [3, 8]}, {method: gptq, bits: [3, 4], seed: [0, 1]}]"


@pytest.fixture(scope="module")
def tasks() -> Iterator[RayTasks]:
    started = RayTasks(ComputeConfig("ray", workers=2, address="local"), threads=1)
    yield started
    started.close()


def nothing(*_: object) -> None:
    pass


def test_results_reports_and_errors_arrive(tasks: RayTasks) -> None:
    def work(x: int, report) -> int:
        report("squaring", x, 9)
        if x == 3:
            raise ValueError("x must not be 3")
        return x * x

    seen: list[tuple[object, ...]] = []
    assert tasks.call(partial(work, 7), report=lambda *event: seen.append(event)) == 49
    assert seen == [("squaring", 7, 9)]
    with pytest.raises(ValueError, match=r"^x must not be 3$"):
        tasks.call(partial(work, 3), report=nothing)


def test_a_task_whose_process_is_lost_runs_again_and_one_that_kills_it_is_told(
    tasks: RayTasks, tmp_path: Path
) -> None:
    def fragile(times: int, report) -> int:
        (tmp_path / str(time.time_ns())).touch()
        if len(list(tmp_path.iterdir())) <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(list(tmp_path.iterdir()))

    assert tasks.call(partial(fragile, 1), report=nothing) == 2
    with pytest.raises(WorkerError, match="a worker process ended"):
        tasks.call(partial(fragile, 99), report=nothing)


def test_a_task_that_hangs_is_told(tasks: RayTasks) -> None:
    def hang(report) -> None:
        time.sleep(600)

    with pytest.raises(WorkerError, match="no progress in 2 seconds"):
        tasks.call(hang, report=nothing, bounds=Bounds(silence=2))


def test_what_no_node_can_ever_run_is_an_error_at_once(tasks: RayTasks) -> None:
    with pytest.raises(ValueError, match=r"a task needs CPU 1, GPU 64, and no node .* has that"):
        capacity({"CPU": 1, "GPU": 64, "memory": 0})
    assert capacity({"CPU": 0.5, "GPU": 0, "memory": 1e6}) == 2 * capacity({"CPU": 1})
    with pytest.raises(ValueError, match="memory 1e"):
        capacity({"CPU": 1, "GPU": 0, "memory": 1e15})


@pytest.mark.faults
def test_the_task_of_a_lost_node_runs_again_on_another(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    one = cluster.add_node(num_cpus=1)
    tasks = RayTasks(ComputeConfig("ray", workers=1, address=cluster.address), threads=1)

    def where(report) -> str:
        report("at work", 1, 1)
        if not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            time.sleep(600)
        return ray.get_runtime_context().get_node_id()

    def lose(*_: object) -> None:
        if not lost:
            lost.append(one.node_id)
            cluster.add_node(num_cpus=1)
            cluster.remove_node(one, allow_graceful=False)

    lost: list[str] = []
    try:
        assert tasks.call(where, report=lose) not in lost
        assert lost
    finally:
        tasks.close()
        cluster.shutdown()


def ensured(config: Config) -> dict[str, Path]:
    """Build and evaluate all; the files, by their names."""
    benchmarks = sources.load(config.benchmarks, Path(config.cache_dir))
    with workers(config) as pool:
        table = open_table(config, benchmarks, pool, nothing)
        table.ensure([DENSE, *table.variants])
    cache = Path(config.cache_dir)
    return {str(path.relative_to(cache)): path for path in cache.rglob("*.[sp]a*et*")}


def test_the_same_as_on_this_machine_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    ray.shutdown()
    found = {
        where: ensured(
            composed(
                "model=path", f"model.path={tiny_model}", "pool.group_size=32",
                f"pool.variants={POOL}", *SMALL, f"compute={where}",
                "engine.threads=1", f"cache_dir={tmp_path / where}", *more,
            )
        )
        for where, *more in (
            ("local", "compute.workers=1"), ("ray", "compute.workers=2", "compute.address=local"),
        )
    }  # fmt: skip
    assert found["local"].keys() == found["ray"].keys()
    assert sum(name.startswith("predictions") for name in found["ray"]) == 7 * 5
    for name, path in found["local"].items():
        other = found["ray"][name]
        if path.suffix == ".parquet":
            one, two = (predictions.read(file).drop(["seconds"]) for file in (path, other))
            assert one.equals(two)
        else:
            assert path.read_bytes() == other.read_bytes()
