"""How far vLLM's answers agree with ours, for variants that have been built.

    python experiments/vllm_agreement.py --vllm PYTHON VARIANT_FOLDER...

One JSON line a variant: the form that vLLM ran, equal labels and replies in percent of a seeded
subset of the embedded benchmark, the mean difference of label log-probabilities in nats, seconds.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks import sources
from ptsearch.config import BenchmarksConfig, EngineConfig
from ptsearch.evaluation import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variants", nargs="+", type=Path)
    parser.add_argument("--vllm", required=True, help="python of vLLM's environment")
    parser.add_argument("--limit", type=int, default=8, help="samples a scenario")
    args = parser.parse_args()
    here = EngineConfig(device="cpu")
    there = EngineConfig(name="vllm", python=args.vllm, args=["--enforce-eager"])
    for folder in args.variants:
        ours, theirs = (answers(folder, settings, args.limit) for settings in (here, there))
        row = {"variant": store.read_json(folder / store.META)["label"], "form": theirs["form"]}
        pairs = list(zip(ours["rows"], theirs["rows"], strict=True))
        scored = [(a["logprobs"], b["logprobs"]) for a, b in pairs if a["logprobs"]]
        replies = [(a["reply"], b["reply"]) for a, b in pairs if a["reply"] is not None]
        row |= {
            "labels": len(scored),
            "labels_equal": percent([np.argmax(a) == np.argmax(b) for a, b in scored]),
            "difference": round(
                float(np.mean([abs(x - y) for a, b in scored for x, y in zip(a, b, strict=True)])),
                3,
            ),
            "replies": len(replies),
            "replies_equal": percent([a == b for a, b in replies]),
            "seconds": [ours["seconds"], theirs["seconds"]],
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def answers(folder: Path, settings: EngineConfig, limit: int) -> dict[str, Any]:
    """Prediction rows, the form that gave them, and seconds without loading."""
    with engines.opened(folder, settings) as engine:
        start, rows = time.perf_counter(), []
        for benchmark in sources.load(BenchmarksConfig(limit=limit), Path("unused")):
            rows += evaluate.evaluate(
                evaluate.asker(engine), benchmark, lambda *_: None
            ).to_pylist()
        seconds = round(time.perf_counter() - start, 1)
        return {"rows": rows, "form": engine.form, "seconds": seconds}


def percent(equal: list[Any]) -> float:
    return round(100 * float(np.mean(equal)), 1)


if __name__ == "__main__":
    main()
