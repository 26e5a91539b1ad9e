"""A small pool over the tiny model, and how it is built."""

from pathlib import Path
from typing import Any

from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration
from ptsearch.variant import Variant, expand_pool

TEXT = "\n".join(f"Line {n}: {n * n} little foxes jump over {n} dogs." for n in range(400))
CALIBRATION = Calibration(TEXT, samples=4, length=64)


ROWS: list[dict[str, Any]] = [
    {"method": "rtn", "bits": [3, 4, 8], "sym": [True, False]},
    {"method": "gptq", "bits": [3, 4], "damp_percent": 0.05, "seed": [0, 1]},
    {"method": "gptq", "bits": 3, "sym": False, "actorder": "static", "damp_percent": 0.05},
    {"method": "gptq", "bits": 4, "group_size": -1, "damp_percent": 0.05},
    {"method": "awq", "bits": [3, 4], "sym": [True, False]},
]


def silent(_stage: str, _done: int, _total: int) -> None: ...


def pool(rows: list[dict[str, Any]]) -> list[Variant]:
    dense = Variant("tiny", "0")
    return expand_pool(dense, rows, {"group_size": 32}, CALIBRATION.identity)


def build_tiny(folder: Path, root: Path, variants: list[Variant]) -> dict[str, str]:
    base = BaseModel("tiny", "0", folder)
    return build.build_pool(base, variants, CALIBRATION, root, silent)
