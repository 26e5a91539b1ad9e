"""Loading a checkpoint, here or in another engine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ptsearch.config import EngineConfig
from ptsearch.engine import fake_quant, llamacpp, memory, probe, stored_weights, vllm
from ptsearch.engine.answering import Engine
from ptsearch.engine.local import LocalModel
from ptsearch.models import loading
from ptsearch.models.architecture import read_config
from ptsearch.models.layers import linears_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

log = logging.getLogger(__name__)


@contextmanager
def opened(folder: Path, settings: EngineConfig) -> Iterator[Engine]:
    """`load` as a context: a server that was started for it ends with it."""
    engine = load(folder, settings)
    try:
        yield engine
    finally:
        engine.runner.close()


def load(folder: Path, settings: EngineConfig) -> Engine:
    """The checkpoint in `folder`, ready to run; `form=auto`: in less memory, see `stored_weights`.

    ValueError: no such device, the weights do not fit into memory (nothing is loaded then),
    `models.load` refuses the checkpoint, or there is no server for it.
    """
    import transformers

    settings = with_dtype(settings)
    if settings.name != "transformers":
        return _served(folder, settings)
    runtime = fake_quant.of(folder)
    if runtime.folders:
        first, later = (load(part, settings) for part in runtime.folders)
        assert first.local is not None and later.local is not None
        if first.local.packed != later.local.packed:
            raise ValueError(f"{folder}: one of its two models runs in plain batches only")
        both = first.local._replace(first=runtime.first, later=later.local.model)
        return first._replace(runner=both)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = loading.checkpoint_of(folder)
    memory.collect(checkpoint[0])
    device = check_fits(*checkpoint, settings)
    model, tokenizer = loading.load(folder, settings.dtype, device)
    model.requires_grad_(False)
    eos = eos_ids(model.config, model.generation_config)
    # Nothing of the checkpoint's sampling or penalty settings may reach a greedy reply.
    model.generation_config = transformers.GenerationConfig()
    linears = list(linears_of(model))
    if settings.form == "auto":
        stored_weights.keep_stored(model, checkpoint[0])
    reason = probe.enable(model)
    if reason:
        _warn_once(f"{type(model).__name__} runs in plain batches: {reason}")
    rounding = fake_quant.apply(model, linears, runtime)
    limits = memory.limits(model, settings.max_tokens)
    limits = limits._replace(align=rounding.align if rounding else 1)
    local = LocalModel(model, limits, packed=not reason, rounding=rounding)
    return Engine(local, tokenizer, settings, context_of(model.config), eos)


def with_dtype(settings: EngineConfig) -> EngineConfig:
    """`dtype=auto` made definite: what this machine multiplies natively; bfloat16 for vLLM,
    float16 for llama.cpp.
    """
    if settings.dtype not in ("auto", *([] if settings.name == "llamacpp" else ["float16"])):
        return settings
    if settings.name == "llamacpp":
        return replace(settings, dtype="float16")
    native = torch.bfloat16 if settings.name == "vllm" else loading.compute_dtype()
    return replace(settings, dtype=loading.dtype_name(native))


def check_fits(checkpoint: Path, trust_remote_code: bool, settings: EngineConfig) -> str:
    """The device that would run a checkpoint's dense weights. ValueError: no such device, or they
    do not fit into its memory.
    """
    settings, device = with_dtype(settings), settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device=cuda, and torch finds no CUDA device: take cpu or auto")
    memory.check_fits(checkpoint, trust_remote_code, getattr(torch, settings.dtype), device)
    return device


def _served(folder: Path, settings: EngineConfig) -> Engine:
    """vLLM or llama.cpp: tokenizer and limits are read from the checkpoint here.

    ValueError: not there, or what is rounded at run time would not be rounded there.
    """
    import transformers

    runtime = fake_quant.of(folder)
    if runtime.kv or runtime.folders:
        raise ValueError(
            f"{folder}: engine={settings.name} does not round keys and values as this variant "
            "does, nor does it change models within a reply; take engine=transformers"
        )
    checkpoint, trust = loading.checkpoint_of(folder)
    config = read_config(checkpoint, trust)
    try:
        generation = transformers.GenerationConfig.from_pretrained(checkpoint)
    except OSError:  # it has none
        generation = transformers.GenerationConfig()
    context = context_of(config)
    tokenizer = loading.load_tokenizer(checkpoint, trust)
    if settings.name == "llamacpp":
        if runtime.act_bits < 16:
            raise ValueError(
                f"{folder} rounds the inputs of its layers, which llama.cpp does not; take "
                "engine=transformers"
            )
        runner = llamacpp.load(checkpoint, settings, trust)
        return Engine(runner, tokenizer, settings, context, eos_ids(config, generation))
    server = vllm.connect(folder, settings, context)
    if runtime.act_bits < 16 and server.form.startswith("dense"):
        server.close()
        raise ValueError(
            f"{folder} rounds the inputs of its layers, which dense weights do not, and vLLM does "
            f"not run it as stored ({server.form}); take engine=transformers"
        )
    # The server always adds a token to the prompt.
    return Engine(server, tokenizer, settings, max(0, context - 1), eos_ids(config, generation))


def context_of(config: "PreTrainedConfig") -> int:
    """The longest sequence that the model was made for; 0 = no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or 0


def eos_ids(config: "PreTrainedConfig", generation: "GenerationConfig") -> frozenset[int]:
    """End-of-sequence ids of the generation config and of the model's own config."""
    ids: set[int] = set()
    for part in (generation, config.get_text_config()):
        value = getattr(part, "eos_token_id", None)
        if value is not None:
            ids.update(value if isinstance(value, list) else [value])
    return frozenset(ids)


@cache
def _warn_once(text: str) -> None:
    """Once for all variants of a model."""
    log.warning(text)
