"""Quantize a checkpoint several ways in one pass: python examples/quantize.py MODEL OUT

MODEL is a folder with safetensors weights. Each variant becomes a checkpoint under OUT/variants,
which AutoModelForCausalLM.from_pretrained loads.
"""

import sys
from pathlib import Path

from ptsearch import Variant, store
from ptsearch.config import CalibrationConfig
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import build, calibration

SETTINGS = {"group_size": 32, "damp_percent": 0.05, "actorder": "static", "sym": False}


def silent(stage: str, done: int, total: int) -> None:
    """Progress is reported here: what is being done, steps done, steps in total."""


def main(model: Path, out: Path, samples: int = 32, length: int = 512) -> dict[str, float | None]:
    text = calibration.read(CalibrationConfig(samples=samples, length=length))
    variants = [
        Variant("mine", "0", "gptq", bits=bits, calibration=text.identity, **SETTINGS)
        for bits in (3, 4, 8)
    ]
    build.build_pool(BaseModel("mine", "0", model), variants, text, out, silent)
    return {
        variant.label: store.read_meta(build.folder_of(out, variant)).perplexity
        for variant in variants
    }


if __name__ == "__main__":
    for label, perplexity in main(Path(sys.argv[1]), Path(sys.argv[2])).items():
        print(f"{label}: perplexity {perplexity}")
