"""What is wrong with a config, as far as it shows without a model: before torch is imported.

A CUDA device is looked for by its driver, a method by the literals of its record.
"""

import ctypes
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptsearch.benchmarks import own_file
from ptsearch.config import Config, EngineConfig, GateConfig, default_weights
from ptsearch.models import gguf_file
from ptsearch.models.architecture import (
    check_base,
    check_same_model,
    check_source,
    need_checkpoint,
)
from ptsearch.scoring import file_check
from ptsearch.shared import did_you_mean, one_of
from ptsearch.variant import Variant, expand_pool, method_of, unique_labels

ENSEMBLE = "ensemble.yaml"  # of an exported ensemble
PATH_ROW: dict[str, type] = {"path": str, "label": str, "bits": int}  # of `pool.paths`


def check(config: Config) -> str:
    """What is known of the user's own questions. ValueError, FileNotFoundError: what is wrong."""
    if config.export:
        free_folder(config.export.out)
    if config.rescore and not Path(config.rescore.replies).is_file():
        raise ValueError(f"rescore.replies={config.rescore.replies!r} is not a file")
    if config.study:
        if "@" in config.study.name:
            raise ValueError(
                f"study.name={config.study.name}: what follows @ is the hash of a view"
            )
        _check_writable(Path(config.runs_dir).absolute())
    known = _about_questions(config)
    if config.check and config.check.name == "benchmark":
        return known
    if config.gate:
        _check_gate(config.gate)
    if config.study or config.gate or config.check or config.build or config.evaluate:
        _check_pool(config)
    return known


def _about_questions(config: Config) -> str:
    """ValueError: a row is wrong, or `trust.weights` has a name of no perspective."""
    asked, path = config.benchmarks, Path(config.benchmarks.path)
    needed = config.check is not None and config.check.name == "benchmark"
    own = own_file.load(path) if asked.path or asked.name == "file" or needed else []
    perspectives = *default_weights(), *asked.also, *(benchmark.name for benchmark in own)
    for name in config.trust.weights:
        one_of("trust.weights", name, perspectives)
    return file_check.check(own, path, asked.split.salt)


def free_folder(out: str) -> Path:
    """ValueError: there is something at `export.out` already."""
    if not out:
        raise ValueError("export.out is missing: give export.out=DIR, a folder that does not exist")
    if Path(out).exists():
        raise ValueError(f"export.out={out} exists already; give a folder that does not")
    return Path(out)


def _check_gate(gate: GateConfig) -> None:
    """ValueError: a checkpoint is not there, or a result has nowhere to go."""
    if not gate.candidate:
        raise ValueError("gate.candidate is missing: give gate.candidate=DIR, a checkpoint")
    if gate.base:
        check_base(Path(gate.base), f"gate.base={gate.base!r}")
    if not (Path(gate.candidate) / ENSEMBLE).is_file():
        need_checkpoint(Path(gate.candidate), f"gate.candidate={gate.candidate!r}")
    for key in ("json", "junit", "markdown"):
        path = Path(getattr(gate, key))
        if not path.parent.is_dir() or (getattr(gate, key) and path.is_dir()):
            raise ValueError(f"gate.{key}={path}: give a file in a folder that exists")


def check_server(engine: EngineConfig) -> None:
    """ValueError, FileNotFoundError: vLLM cannot be reached with these settings."""
    if engine.name == "vllm" and bool(engine.python) == bool(engine.url):
        raise ValueError(
            "engine=vllm needs either engine.python=PATH, the python of an environment with "
            "vLLM, or engine.url=http://HOST/v1, a server that has the variant"
        )
    if engine.python and not shutil.which(engine.python):
        raise FileNotFoundError(f"engine.python: no such program: {engine.python}")


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"runs_dir={folder}: {there} is no folder that can be written to")


def _check_pool(config: Config) -> None:
    check_server(config.engine)
    if config.compute.name == "local":
        _check_engine(config.engine)
    for model in (config.model, *config.baseline_models):
        check_source(model)
    if config.calibration.source == "file" and not Path(config.calibration.path).is_file():
        raise ValueError(f"calibration.path={config.calibration.path!r} is not a file")
    root = config.benchmarks.root
    if root and not Path(root).is_dir():
        raise ValueError(f"benchmarks.root={root!r} is not a folder")
    labels = _labels(config)
    if config.evaluate and (asked := config.evaluate.variant) not in labels:
        known = ", ".join(labels)
        raise ValueError(f"no variant {asked!r}{did_you_mean(asked, labels)}; the pool has {known}")


def _labels(config: Config) -> list[str]:
    """Of the pool and the dense model. ValueError: a row is wrong, a package is missing."""
    pool, dense = config.pool, Variant(config.model.name, "")
    defaults = {"group_size": pool.group_size, "backend": pool.backend}
    variants = expand_pool(dense, pool.variants, defaults, "")
    for variant in variants:
        method_of(variant.method).check_available()
    variants += [_ready_made(dense, row) for row in pool.paths]
    for row in pool.paths if config.model.source == "path" else ():
        base, path, what = Path(config.model.path), Path(row["path"]), f"pool.paths, {row['label']}"
        if path.suffix == ".gguf":
            gguf_file.check_like(base, gguf_file.read(path), what)
        else:
            check_same_model(base, path, what)
    return ["none", *unique_labels(variants)]


def _ready_made(dense: Variant, row: Mapping[str, Any]) -> Variant:
    gguf = str(row.get("path")).endswith(".gguf")
    needed = PATH_ROW.keys() - ({"bits"} if gguf else set())
    wrong = [k for k in row if not isinstance(row[k], PATH_ROW.get(k, ()))]
    if wrong or not needed <= row.keys():
        raise ValueError(
            "pool.paths needs rows {path: FOLDER, label: NAME, bits: N} or "
            f"{{path: FILE.gguf, label: NAME}}, got {row}"
        )
    if gguf:
        row = {"bits": gguf_file.read(Path(row["path"])).bits, **row}
    else:
        need_checkpoint(Path(row["path"]), f"pool.paths, {row['label']}")
    args = (("label", row["label"]), ("path", row["path"]))
    return Variant(dense.model, "", "path", bits=row["bits"], method_args=args)


def _check_engine(engine: EngineConfig) -> None:
    """ValueError: a package is missing, or torch will find no CUDA device. `local` versions say
    what it was built for.
    """
    if engine.name == "llamacpp" and importlib.util.find_spec("llama_cpp") is None:
        raise ValueError("engine=llamacpp needs llama.cpp: pip install 'ptsearch[llamacpp]'")
    if engine.dtype == "float16" and engine.name != "llamacpp":
        raise ValueError("engine.dtype=float16 is llama.cpp's alone: take bfloat16 or float32")
    if engine.device != "cuda" or engine.name != "transformers":
        return
    built = version("torch").partition("+")[2]
    if built == "cpu":
        raise ValueError("engine.device=cuda, and this torch is built for cpu: take cpu or auto")
    if sys.platform == "linux" and not built.startswith("rocm"):
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise ValueError("engine.device=cuda, and there is no CUDA driver here") from None
