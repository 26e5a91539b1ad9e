"""Processor time of building pools in one pass, beside a library that builds one by one.

    PEERS=FOLDER [PEERS_PYTHON=mlruns/peers/pool/bin/python] python experiments/bench_pool.py

FOLDER holds `llmcompressor_pool.py`, `gptqmodel_pool.py` and `checkpoint.py`, run by PEERS_PYTHON,
the Python of an environment with llm-compressor and GPTQModel. Every measurement is a process of
its own with one thread and is kept in OUT/results.json (OUT: mlruns/bench_pool): run again, it goes
on where it stopped. Ours is the processor time of the process until the checkpoints are written,
imports included (`checked_cpu_s`: until they are read back and their perplexity is known); the
peer's is its `build_cpu_s`. `checkpoint.py` judges our perplexities, and the peers' scripts theirs
in the same way. The last line is JSON: `twelve_gptq_vs_peer` and `six_mixed_vs_peer` are
llm-compressor's seconds over ours (to reach: 4), `one_vs_peer` is ours over its (to reach: at most
1.1).
"""

import argparse
import ast
import hashlib
import json
import os
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

SAMPLES, LENGTH, GROUP_SIZE, DAMP = 32, 512, 64, 0.01  # the peer's defaults
JUDGED = 64  # held-out chunks of LENGTH tokens
GPTQ = {"method": "gptq", "actorder": "static"}  # llm-compressor's default, too
POOLS: dict[str, list[dict[str, Any]]] = {
    "one": [{**GPTQ, "bits": 4}],
    "six": [{**GPTQ, "bits": [3, 4, 8]}, {"method": "awq", "bits": [3, 4, 8]}],
    "twelve": [{**GPTQ, "bits": [3, 4, 8], "seed": [0, 1, 2, 3]}],
}


def build(name: str, model: str, text: str, out: str) -> None:
    """Build one of POOLS and print what it took; run as a process of its own."""
    import torch

    from ptsearch import variant
    from ptsearch.models.base_model import BaseModel
    from ptsearch.pool import build
    from ptsearch.pool.calibration import Calibration

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
    peer_python = os.environ.get("PEERS_PYTHON", "mlruns/peers/pool/bin/python")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="begin of the keys to measure, such as ours/")
    only = parser.parse_args().only
    out = Path(os.environ.get("OUT", "mlruns/bench_pool")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    model, text = _model(), out / "text.txt"
    text.write_text(_documents(), encoding="utf-8")
    results = Results(out / "results.json")
    settings = ["--text", str(text), "--eval-samples", str(JUDGED), "--threads", "1"]
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        for name in POOLS:
            if not f"ours/{name}".startswith(only):
                continue
            command = [sys.executable, __file__, "--build", name, str(model), str(text)]
            built = results.measure(f"ours/{name}", [*command, f"{scratch}/{name}"])
            for label, path in built["folders"].items() if name != "one" else ():
                judge = [peer_python, f"{peers}/checkpoint.py", "--model", path, *settings]
                results.measure(f"ours/perplexity/{label}", judge)
        for peer, method, bits, seed in VARIANTS:
            key = f"{peer}/{_label(method, bits, seed)}"
            if not key.startswith(only):
                continue
            command = [peer_python, f"{peers}/{peer}_pool.py", "--model", str(model), *settings]
            command += ["--out", f"{scratch}/{peer}", "--methods", method, "--bits", str(bits)]
            command += ["--seeds", str(seed), "--samples", str(SAMPLES), "--length", str(LENGTH)]
            results.measure(key, command)
    if not only:
        sys.stdout.write(json.dumps(_summary(results.read())) + "\n")


PEERS = ("llmcompressor", "gptqmodel")
VARIANTS = [
    *((peer, "gptq", bits, 0) for peer in PEERS for bits in (3, 4, 8)),
    *(("llmcompressor", "awq", bits, 0) for bits in (4, 3, 8)),
    *((peer, "gptq", bits, seed) for seed in (1, 2, 3) for bits in (3, 4, 8) for peer in PEERS),
]


def _label(method: str, bits: int, seed: int) -> str:
    return f"{method}-{bits}b-g{GROUP_SIZE}-s{seed}"


def _theirs(label: str) -> str:
    """Our label as the peers' variants are called."""
    return label.replace("-act", "")


class Results:
    """What was measured, in a file that every process adds to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        kept = json.loads(self.path.read_text()) if self.path.is_file() else {}
        return dict(kept)

    def measure(self, key: str, command: list[str]) -> dict[str, Any]:
        """The row of this key; the command is run only where there is none yet."""
        row: dict[str, Any] = self.read().get(key) or _run(command)
        self.path.write_text(json.dumps({**self.read(), key: row}, indent=1), encoding="utf-8")
        sys.stdout.write(json.dumps({"measured": key, **row}) + "\n")
        sys.stdout.flush()
        return row


def _summary(results: dict[str, Any]) -> dict[str, Any]:
    ours = {name: results[f"ours/{name}"] for name in POOLS}
    theirs = {
        name: [results[f"llmcompressor/{_theirs(label)}"] for label in row["folders"]]
        for name, row in ours.items()
    }
    peer = {name: sum(row["build_cpu_s"] for row in rows) for name, rows in theirs.items()}
    ratio = {name: peer[name] / row["cpu_s"] for name, row in ours.items()}
    perplexity: dict[str, dict[str, float]] = {}
    for key, row in results.items():
        tool, _, label = key.rpartition("/")
        if "perplexity" in row:
            tools = perplexity.setdefault(_theirs(label), {})
            tools[tool.removesuffix("/perplexity")] = row["perplexity"]
    return {
        "twelve_gptq_vs_peer": round(ratio["twelve"], 2),
        "six_mixed_vs_peer": round(ratio["six"], 2),
        "one_vs_peer": round(1 / ratio["one"], 2),
        "cpu_s": {
            name: [round(row["cpu_s"], 1), round(peer[name], 1)] for name, row in ours.items()
        },
        "peak_rss_mb": {  # until written, until checked, the peer's largest until written
            name: [
                round(row["peak_rss_mb"]),
                round(row["checked_peak_rss_mb"]),
                max(one["peak_rss_mb"] for one in theirs[name]),
            ]
            for name, row in ours.items()
        },
        "perplexity": perplexity,
    }


def _documents() -> str:
    """Python's own help and the docstrings of its modules, in random order: enough to hold out."""
    from ptsearch.pool import calibration

    texts = calibration.python_docs()
    for path in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        module = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(module) if isinstance(node, kinds)]
        texts.append("\n\n".join(text for text in found if text))
    return "\n\n".join(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))


def _model() -> Path:
    """The embedded model's checkpoint, fetched where it is not there yet."""
    from ptsearch.config import ModelConfig
    from ptsearch.models import base_model

    if given := os.environ.get("MODEL"):
        return Path(given).resolve()
    return base_model.prepare(ModelConfig(), Path("mlruns/cache"), lambda *_: None).path


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
    if sys.argv[1:2] == ["--build"]:
        build(*sys.argv[2:])
    else:
        main()
