"""A tiny pool, built, and what a study recorded of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from exports import POOL, WAYS

from ptsearch.benchmarks.registry import NAMES
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration
from ptsearch.report.rows import LAZY
from ptsearch.search.objectives import costs


@pytest.fixture(scope="module")
def cache(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of three, built."""
    root = tmp_path_factory.mktemp("cache")
    text = "\n".join(f"Line {n}: {n * n} foxes jump over {n} dogs." for n in range(400))
    base = BaseModel("tiny", "0", tiny_model)
    build.build_pool(base, POOL, Calibration(text, samples=4, length=64), root, lambda *_: None)
    return root


@pytest.fixture
def study(tiny_model: Path) -> dict[str, Any]:
    """What a study of that pool recorded of itself; one ensemble of all three is its front."""
    beside = (f"{name}.refusal_rate" for name in NAMES)
    scores = dict.fromkeys(("trust", *NAMES, *beside, "refusal_rate", *costs(), *LAZY), 50.0)
    labels = [variant.label for variant in POOL]
    return {
        "front": [
            {
                "members": labels,
                "run_id": "run",
                "search": scores | {"memory_gb": 0.09},
                "holdout": scores,
                "certificate": {"verdict": "worse than dense: mmlu -16.4 (-31.0 to -4.7)"},
                "unskilled": [],
                "picks": ["knee", "best_trust"],
                "latency": {way: {"p50": 12.0, "p95": 34.0} for way in WAYS},
            }
        ],
        "ask": {"run": labels},
        "variants": {v.label: {"id": v.id, "fields": asdict(v)} for v in POOL},
        "settings": {
            "model.name": "tiny", "model.revision": "0", "engine.dtype": "bfloat16",
            "memory.context": 512, "benchmarks.rules": "clean", "benchmarks.limit": 0,
        },
        "base": {
            "source": "hub", "repo": "someone/tiny", "path": str(tiny_model), "memory_gb": 0.1,
            "kv_bytes": 51_200, "benchmarks": "pocket",
        },
    }  # fmt: skip
