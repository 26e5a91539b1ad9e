"""Every checkpoint that transformers loads, and their tokenizers."""

import io
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ptsearch import store
from ptsearch.models import checkpoint, coded
from ptsearch.models.architecture import auto_class, read_config

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    Tokenizer: TypeAlias = PreTrainedTokenizerBase


def load(
    folder: Path, dtype: str = "bfloat16", device: str = "cpu"
) -> tuple["PreTrainedModel", "Tokenizer"]:
    """(model in eval mode, tokenizer); quantized checkpoints are decompressed to dense weights.

    What such a checkpoint rounds while it runs is left to `engine.runtime`.

    A variant's folder without a checkpoint of its own leads to the one its meta.json names.
    ValueError: the installed compressed-tensors would misread it.
    """
    silence_libraries()
    folder, trust = checkpoint_of(folder)
    if checkpoint.needs_decoding(folder):
        return _on(device, _load_decoded(folder, trust, dtype)), load_tokenizer(folder, trust)
    config = read_config(folder, trust)
    quantization = quantization_config(folder)
    if quantization.get("quant_method") == "compressed-tensors":
        check_format(folder, quantization)
        groups = quantization.get("config_groups", {}).items()
        weights_only = {name: {**group, "input_activations": None} for name, group in groups}
        config.quantization_config = {
            **quantization, "config_groups": weights_only, "dequantize": True
        }  # fmt: skip
    with redirect_stderr(io.StringIO()):  # compressed-tensors draws bars and has no switch for them
        model: PreTrainedModel = auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=trust,
        )
    floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if checkpoint.is_uniform(quantization) and floats != {getattr(torch, dtype)}:
        model = _load_decoded(folder, trust, dtype)  # renamed tensors stay as they are stored
    return _on(device, model), load_tokenizer(folder, trust)


def _on(device: str, model: "PreTrainedModel") -> "PreTrainedModel":
    return model.to(device).eval()  # type: ignore[arg-type]  # its `to` is wrapped without self


def write_dense(folder: Path, dtype: str, out: Path) -> None:
    """The checkpoint in `folder` with its weights dequantized, and nothing else."""
    _save(*load(folder, dtype), out)


def quantization_config(folder: Path) -> dict[str, Any]:
    """How the checkpoint in `folder` says that it is quantized; {} for one that is not."""
    return store.read_json(folder / "config.json").get("quantization_config") or {}


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> "Tokenizer":
    import transformers

    silence_libraries()
    return transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )


def dense_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a variant's folder by name, as an ordinary checkpoint would have it."""
    where, _ = checkpoint_of(folder)
    if (where / coded.INDEX).is_file():
        return checkpoint.dense(where)
    state: dict[str, torch.Tensor] = load(folder)[0].state_dict()
    return state


def _load_decoded(folder: Path, trust: bool, dtype: str) -> "PreTrainedModel":
    """A model whose weights are decoded here."""
    import transformers

    config = read_config(folder, trust)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        kind = type(auto_class(config).from_config(config, trust_remote_code=trust))
    generation = None
    if (folder / "generation_config.json").is_file():
        generation = transformers.GenerationConfig.from_pretrained(folder)
    return _from_state(kind, config, checkpoint.dense(folder), getattr(torch, dtype), generation)


def _from_state(
    kind: type["PreTrainedModel"],
    config: "PretrainedConfig",
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    generation: "GenerationConfig | None",
) -> "PreTrainedModel":
    """A model with these weights, as if it had never been quantized."""
    model = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    if generation is not None:
        model.generation_config = generation
    return model


def checkpoint_of(folder: Path) -> tuple[Path, bool]:
    """(where the checkpoint of a variant's folder lies, whether its code is trusted)."""
    if not (folder / store.META).is_file():
        return folder, False
    meta = store.read_json(folder / store.META)
    return folder / meta["checkpoint"], meta["trust_remote_code"]


def check_format(folder: Path, quantization: Mapping[str, Any]) -> None:
    """ValueError: a compressed-tensors checkpoint that the installed version would misread.

    Version 0.18 changed how widths that do not divide 32 are packed, under one name; 0.19 ignores
    `weight_g_idx`, the group of each column, that `actorder=group` stores.
    """
    import compressed_tensors

    ours, theirs = compressed_tensors.__version__, str(quantization.get("version", "unknown"))
    number = re.match(r"(\d+)\.(\d+)", theirs)
    dense = number is not None and (int(number[1]), int(number[2])) >= (0, 18)
    for group in (quantization.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        packed = "pack" in (group.get("format") or quantization.get("format") or "")
        bits = weights.get("num_bits") or 16
        if packed and 32 % bits and not dense:
            raise ValueError(
                f"{folder}: {bits} bits packed by compressed-tensors {theirs}; from 0.18 on they "
                f"are packed in another way, and {ours} is installed: quantize it again with 0.18 "
                "or newer, or load it with a version before 0.18 (2, 4 and 8 bits load from any)"
            )
        if weights.get("actorder") == "group":
            raise ValueError(
                f"{folder}: actorder=group, which compressed-tensors {ours} does not read; "
                "versions before 0.19 do"
            )


def compute_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    native = torch.cuda.is_available() or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def silence_libraries() -> None:
    """No progress bars and log lines of the libraries; their exceptions stay."""
    import transformers
    from loguru import logger

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logger.disable("compressed_tensors")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def weights_of(model: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """Its tensors without what decompressing leaves in it: scales and packed shapes."""
    with torch.device("meta"):
        names = type(model)(model.config).state_dict().keys()
    return {name: value for name, value in model.state_dict().items() if name in names}


def _save(model: "PreTrainedModel", tokenizer: "Tokenizer", folder: Path) -> None:
    """Both as a checkpoint of dense weights."""
    quantized = hasattr(model.config, "quantization_config")  # it was, as it is after GGUF
    if quantized:  # else it would be saved as a quantized one
        del model.config.quantization_config
    weights = weights_of(model)
    if quantized or weights.keys() != model.state_dict().keys():
        model = _from_state(
            type(model), model.config, weights, model.dtype, model.generation_config
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
