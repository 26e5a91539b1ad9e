"""Processor time of building pools in one pass, beside a library that builds one by one.

    PEERS=FOLDER [PEERS_PYTHON=mlruns/peers/bin/python] python experiments/bench_pool.py

FOLDER holds `llmcompressor_pool.py` and `checkpoint.py`, run by PEERS_PYTHON, the Python of an
environment with llm-compressor. Every measurement is a process of its own with one thread and is
kept in OUT/results.json (OUT: mlruns/bench_pool): run again, it goes on where it stopped. Ours is
the processor time of the process until the checkpoints are written, imports included
(`checked_cpu_s`: until they are read back and their perplexity is known); the peer's is its
`build_cpu_s`. `checkpoint.py` judges all perplexities. The last line is JSON: `twelve_gptq_vs_peer`
and `six_mixed_vs_peer` are the peer's seconds over ours (to reach: 4), `one_vs_peer` is ours over
the peer's (to reach: at most 1.1).
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAMPLES, LENGTH, GROUP_SIZE, DAMP = 32, 512, 64, 0.01  # the peer's defaults
JUDGED = 64  # held-out chunks of LENGTH tokens
POOLS: dict[str, list[dict[str, Any]]] = {
    "one": [{"method": "gptq", "bits": 4}],
    "six": [{"method": ["gptq", "awq"], "bits": [3, 4, 8]}],
    "twelve": [{"method": "gptq", "bits": [3, 4, 8], "seed": [0, 1, 2, 3]}],
}


def build(name: str, model: str, text: str, out: str) -> None:
    """Build one of POOLS and print what it took; run as a process of its own."""
    import torch

    from ptsearch import build, variant
    from ptsearch.calibration import Calibration
    from ptsearch.models import BaseModel

    torch.set_num_threads(1)
    calibration = Calibration(Path(text).read_text(encoding="utf-8"), SAMPLES, LENGTH)
    defaults = {"group_size": GROUP_SIZE, "damp_percent": DAMP}
    dense = variant.Variant("model", "0")
    variants = variant.expand_pool(dense, POOLS[name], defaults, calibration.identity)
    written: dict[str, float] = {}

    def report(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("checking") and not written:
            written.update(cpu_s=_processor(), peak_rss_mb=_peak())

    started = time.perf_counter()
    build.build_pool(BaseModel("model", "0", Path(model)), variants, calibration, Path(out), report)
    row = {
        **written,
        "checked_cpu_s": _processor(),
        "checked_peak_rss_mb": _peak(),
        "wall_s": time.perf_counter() - started,
        "folders": {v.label: str(build.folder_of(Path(out), v)) for v in variants},
    }
    sys.stdout.write(json.dumps(row) + "\n")


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main() -> None:
    peers = os.environ.get("PEERS")
    if not peers:
        sys.exit("PEERS must name the folder of llmcompressor_pool.py and checkpoint.py")
    peer_python = os.environ.get("PEERS_PYTHON", "mlruns/peers/bin/python")
    out = Path(os.environ.get("OUT", "mlruns/bench_pool")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    model, text = _model(), out / "text.txt"
    from ptsearch import calibration

    text.write_text(calibration._python_docs(), encoding="utf-8")
    kept = out / "results.json"
    results: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}

    def measured(key: str, command: list[str]) -> dict[str, Any]:
        if key not in results:
            results[key] = _run(command)
            kept.write_text(json.dumps(results, indent=1), encoding="utf-8")
        sys.stdout.write(json.dumps({"measured": key, **results[key]}) + "\n")
        return results[key]

    with tempfile.TemporaryDirectory(dir=out) as scratch:
        ours, theirs, perplexity = {}, {}, {}
        for name in POOLS:
            folder = f"{scratch}/{name}"
            ours[name] = measured(
                f"ours/{name}", [sys.executable, __file__, name, str(model), str(text), folder]
            )
            for label, path in ours[name]["folders"].items():
                key = f"ours/perplexity/{label}"
                if name != "one" and label not in perplexity:
                    judge = [peer_python, f"{peers}/checkpoint.py", "--model", path]
                    judge += ["--text", str(text), "--eval-samples", str(JUDGED), "--threads", "1"]
                    perplexity[label] = measured(key, judge)["perplexity"]
        for method, bits, seed in VARIANTS:
            command = [peer_python, f"{peers}/llmcompressor_pool.py", "--model", str(model)]
            command += ["--text", str(text), "--out", f"{scratch}/peer", "--methods", method]
            command += ["--bits", str(bits), "--seeds", str(seed), "--samples", str(SAMPLES)]
            command += ["--length", str(LENGTH), "--group-size", str(GROUP_SIZE)]
            command += ["--eval-samples", str(JUDGED), "--threads", "1"]
            name = f"{method}-{bits}b-g{GROUP_SIZE}-s{seed}"
            theirs[name] = measured(f"peer/{name}", command)
    sys.stdout.write(json.dumps(_summary(ours, theirs, perplexity)) + "\n")


VARIANTS = [
    *(("gptq", bits, seed) for seed in range(4) for bits in (3, 4, 8)),
    *(("awq", bits, 0) for bits in (3, 4, 8)),
]


def _summary(
    ours: dict[str, Any], theirs: dict[str, Any], perplexity: dict[str, float]
) -> dict[str, Any]:
    def peer(pool: str) -> float:
        return sum(theirs[label]["build_cpu_s"] for label in ours[pool]["folders"])

    ratio = {pool: peer(pool) / ours[pool]["cpu_s"] for pool in POOLS}
    return {
        "twelve_gptq_vs_peer": round(ratio["twelve"], 2),
        "six_mixed_vs_peer": round(ratio["six"], 2),
        "one_vs_peer": round(1 / ratio["one"], 2),
        "cpu_s": {pool: [round(ours[pool]["cpu_s"], 1), round(peer(pool), 1)] for pool in POOLS},
        "peak_rss_mb": [
            round(max(each["peak_rss_mb"] for each in ours.values())),
            max(each["peak_rss_mb"] for each in theirs.values()),
        ],
        "perplexity": {
            label: [value, theirs[label]["perplexity"]] for label, value in perplexity.items()
        },
    }


def _model() -> Path:
    """The embedded model's checkpoint, fetched where it is not there yet."""
    from ptsearch import models
    from ptsearch.config import ModelConfig

    if given := os.environ.get("MODEL"):
        return Path(given).resolve()
    return models.prepare(ModelConfig(), Path("mlruns/cache"), lambda *_: None).path


def _run(command: list[str]) -> dict[str, Any]:
    """The JSON that a process with one thread prints last."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    if len(sys.argv) > 1:
        build(*sys.argv[1:])
    else:
        main()
