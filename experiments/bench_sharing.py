"""One study by several processes: what they did together, and how long it took.

    python experiments/bench_sharing.py COUNTS [KEY=VALUE...]

For each of COUNTS (such as 1,2,1,2) so many processes start one study on new databases and a new
cache, with one thread each, of 12 variants of a random Llama (6 layers, hidden size 256) on all
samples of the pocket benchmark. KEY=VALUE: overrides of the study; databases given so must be new,
and COUNTS one number. A JSON line each: seconds from the first start to the last end, the machine's
load before, trials by samplers, different ensembles among all trials, trials by process, states of
the parent runs and of the nested ones, variants built, readings of the held-out half.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from ptsearch.report.tracking import PARENT_RUN
from ptsearch.search import study as studies
from ptsearch.shared import database_url
from ptsearch.testing.tiny_model import write_tiny_model

SIZES = {"num_hidden_layers": 6, "hidden_size": 256, "intermediate_size": 768}
POOL = "[{method: [rtn, gptq], bits: [3, 4, 8], group_size: 64, seed: [0, 1]}]"
STUDY = ("study.name=shared", "study.trials=100", "study.need_skill=false", "engine.threads=1",
         "calibration.samples=8", "calibration.length=256")  # fmt: skip


def main() -> None:
    counts, overrides = [int(n) for n in sys.argv[1].split(",")], sys.argv[2:]
    with tempfile.TemporaryDirectory() as place:
        model = write_tiny_model(Path(place, "model"), **SIZES)
        for number, count in enumerate(counts):
            folder = Path(place, str(number))
            folder.mkdir()
            sys.stdout.write(json.dumps(run(folder, model, count, overrides)) + "\n")
            sys.stdout.flush()


def run(folder: Path, model: Path, count: int, overrides: list[str]) -> dict[str, object]:
    command = [sys.executable, "-m", "ptsearch", "+study=pareto", "model=path", "model.name=random",
               f"model.path={model}", f"pool.variants={POOL}", *STUDY, *overrides]  # fmt: skip
    load, start = os.getloadavg()[0], time.perf_counter()
    processes = [
        subprocess.Popen(
            command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=(folder / f"said{i}").open("w"),
        )
        for i in range(count)
    ]  # fmt: skip
    codes = [process.wait() for process in processes]
    seconds = time.perf_counter() - start
    if any(codes):
        sys.exit("\n".join(path.read_text() for path in sorted(folder.glob("said*"))))
    given = dict(each.split("=", 1) for each in overrides)
    urls = {key: database_url(key, given.get(f"{key}_db", "")) for key in ("optuna", "mlflow")}
    urls = {key: url or f"sqlite:///{folder}/mlruns/{key}.db" for key, url in urls.items()}
    row: dict[str, object] = {"processes": count, "seconds": round(seconds, 1)}
    return row | {"load": round(load, 1)} | counted(folder, urls["optuna"], urls["mlflow"])


def counted(folder: Path, optuna_url: str, mlflow_url: str) -> dict[str, object]:
    study = studies.load_study("shared", optuna_url)
    found, client = studies.completed(study), MlflowClient(mlflow_url)
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=50_000)
    status = {
        kind: Counter(
            r.info.status for r in runs if (PARENT_RUN in r.data.tags) == (kind == "nested")
        )
        for kind in ("parents", "nested")
    }
    owners = Counter(t.user_attrs["claim"]["process"] for t in study.trials if t.values)
    variants = [path for path in folder.glob("mlruns/cache/variants/*") if path.is_dir()]
    return {
        "by_samplers": sum(trial.by_sampler for trial in found),
        "trials": len(found),
        "different": len({trial.members for trial in found}),
        "by_process": sorted(owners.values()),
        **status,
        "variants": len(variants),
        "holdout_reads": study.user_attrs["holdout_reads"],
    }


if __name__ == "__main__":
    main()
