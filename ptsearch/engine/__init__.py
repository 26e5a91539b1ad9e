"""Label log-probabilities and greedy replies of one model.

In: prompts and labels as token ids. Out: log-probabilities per label, or generated ids.
Prompts are packed without padding and share their prefixes; `plain.py` is the reference path,
`vllm.py` asks a vLLM server. What is rounded at run time is in `fake_quant.py` and `kv_*.py`,
private names of libraries in `_compat.py`. Open `requests.py` first, then `plain.py`, `packed.py`.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ptsearch.config import EngineConfig
from ptsearch.engine import _compat, fake_quant, lanes, memory, probe, vllm
from ptsearch.engine.local import LocalModel
from ptsearch.engine.prefix_cache import Kept
from ptsearch.engine.requests import NonFiniteLogitsError, Progress, Runner, Target
from ptsearch.models import loading
from ptsearch.models.architecture import read_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "Engine",
    "Kept",
    "NonFiniteLogitsError",
    "generate",
    "keeping",
    "lane",
    "lanes_of",
    "latency",
    "load",
    "opened",
    "score",
]

WARMUPS = 8  # untimed prompts before a latency is taken

log = logging.getLogger(__name__)

Tokens = Sequence[int]


class Engine(NamedTuple):
    """A loaded model, how to run it, and how to make tokens for it."""

    runner: Runner
    tokenizer: "PreTrainedTokenizerBase"
    settings: EngineConfig
    context: int  # longest sequence the model was made for; 0 = no limit
    eos: frozenset[int]  # a reply ends before any of these

    @property
    def form(self) -> str:
        """The form of the weights that answer."""
        return self.runner.form

    @property
    def local(self) -> LocalModel | None:
        """The model where it runs in this process; None: a server has it."""
        return self.runner if isinstance(self.runner, LocalModel) else None


def keeping(engine: Engine, tokens: int) -> Engine:
    """The engine with so many tokens of prefixes kept between calls of `score`; unchanged where it
    rounds its cache, as what is kept would depend on what follows it.
    """
    local = engine.local
    if local is None or not local.packed or local.rounding is not None:
        return engine
    return engine._replace(runner=local._replace(kept=Kept(tokens)))


def lanes_of(engine: Engine) -> int:
    """How many calls of `score` or `generate` may run at the same time, each with a `lane`."""
    local = engine.local
    return lanes.count(local.model, local.limits) if local is not None and local.packed else 1


def lane(engine: Engine, count: int) -> Engine:
    """The engine with its share of the limits where `count` run at the same time."""
    if (local := engine.local) is None:
        return engine
    return engine._replace(runner=local._replace(limits=lanes.share(local.limits, count)))


@contextmanager
def opened(folder: Path, settings: EngineConfig) -> Iterator[Engine]:
    """`load`, for as long as the engine is needed: a server of its own ends with it."""
    engine = load(folder, settings)
    try:
        yield engine
    finally:
        engine.runner.close()


def load(folder: Path, settings: EngineConfig) -> Engine:
    """The checkpoint in `folder`, ready to run.

    ValueError: no such device, the weights do not fit into memory (nothing is loaded then),
    `models.load` refuses the checkpoint, or there is no server for it.
    """
    import transformers

    settings = with_dtype(settings)
    if settings.name == "vllm":
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
    if device == "cpu":
        _compat.keep_freed_memory()
    eos = eos_ids(model.config, model.generation_config)
    # Nothing of the checkpoint's sampling or penalty settings may reach a greedy reply.
    model.generation_config = transformers.GenerationConfig()
    linears = fake_quant.linear_names(model)
    reason = probe.enable(model)
    if reason:
        _say_once(f"{type(model).__name__} runs in plain batches: {reason}")
    rounding = fake_quant.apply(model, linears, runtime, packed=not reason)
    limits = memory.limits(model, settings.max_tokens)
    limits = limits._replace(align=rounding.align if rounding else 1)
    local = LocalModel(model, limits, packed=not reason, rounding=rounding)
    return Engine(local, tokenizer, settings, context_of(model.config), eos)


def with_dtype(settings: EngineConfig) -> EngineConfig:
    """`dtype=auto` made definite: what this machine multiplies natively; bfloat16 for vLLM."""
    if settings.dtype != "auto":
        return settings
    native = torch.bfloat16 if settings.name == "vllm" else loading.compute_dtype()
    return replace(settings, dtype=str(native).removeprefix("torch."))


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


def score(
    engine: Engine,
    prompts: Sequence[Tokens],
    labels: Sequence[Sequence[Tokens]],
    report: Progress,
) -> list[list[float]]:
    """log p(label | prompt) in nats; prompt i has labels[i], of one or several tokens each.

    Raises ValueError for a prompt that does not fit the model's context and NonFiniteLogitsError
    where the model's output is NaN or infinite.
    """
    sequences: dict[tuple[int, ...], dict[Target, None]] = {}
    wanted: list[list[list[tuple[tuple[int, ...], Target]]]] = []
    for index, (prompt, options) in enumerate(zip(prompts, labels, strict=True)):
        check_length(engine, index, prompt, max(map(len, options), default=1) - 1)
        rows = []
        for label in options:
            if not label:
                raise ValueError(f"prompt {index} has a label without tokens")
            sequence = (*prompt, *label[:-1])
            targets = [Target(len(prompt) - 1 + k, token) for k, token in enumerate(label)]
            sequences.setdefault(sequence, {}).update(dict.fromkeys(targets))
            rows.append([(sequence, target) for target in targets])
        wanted.append(rows)
    targets_of = {sequence: list(targets) for sequence, targets in sequences.items()}

    def report_prompts(done: int, total: int) -> None:
        report(done * len(prompts) // total, len(prompts))

    logprobs = engine.runner.logprobs(targets_of, report_prompts)
    return [[sum(logprobs[key][target] for key, target in row) for row in rows] for rows in wanted]


def generate(
    engine: Engine, prompts: Sequence[Tokens], max_new_tokens: int | list[int], report: Progress
) -> list[list[int]]:
    """Greedy replies: the most probable token at each step, up to an end-of-sequence token.

    No penalty or sampling setting of the checkpoint's generation config is applied.
    """
    if isinstance(max_new_tokens, int):
        max_new_tokens = [max_new_tokens] * len(prompts)
    for index, (prompt, new) in enumerate(zip(prompts, max_new_tokens, strict=True)):
        check_length(engine, index, prompt, new)
    return engine.runner.generate(prompts, max_new_tokens, engine.eos, report)


def latency(
    engine: Engine,
    prompts: Sequence[Tokens],
    labels: Sequence[Sequence[Tokens]] | None,
    max_new_tokens: int = 1,
) -> list[float]:
    """Seconds from prompt to answer, one prompt at a time, nothing kept between prompts.

    With `labels` the prompts are scored, without them up to `max_new_tokens` are generated.
    """
    engine = engine._replace(runner=engine.runner.uncached())

    def ask(index: int) -> None:
        if labels is None:
            generate(engine, [prompts[index]], max_new_tokens, _silent)
        else:
            score(engine, [prompts[index]], [labels[index]], _silent)

    for index in range(WARMUPS):
        ask(index % len(prompts))
    seconds = []
    for index in range(len(prompts)):
        start = time.perf_counter()
        ask(index)  # ends with its result on the host, so the device is done as well
        seconds.append(time.perf_counter() - start)
    return seconds


def check_length(engine: Engine, index: int, prompt: Tokens, new: int) -> None:
    """ValueError unless the prompt has tokens and fits the context together with `new` more."""
    if not prompt:
        raise ValueError(f"prompt {index} has no tokens")
    if engine.context and len(prompt) + new > engine.context:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens, with {new} new ones {len(prompt) + new}; "
            f"the model's context is {engine.context}"
        )


def _served(folder: Path, settings: EngineConfig) -> Engine:
    """The engine of a server: its tokenizer and limits are read from the checkpoint here.

    ValueError: no server, or what is rounded at run time would not be rounded there.
    """
    import transformers

    runtime = fake_quant.of(folder)
    if runtime.kv or runtime.folders:
        raise ValueError(
            f"{folder}: vLLM does not round keys and values as this variant does, nor does it "
            "change models within a reply; take engine=transformers"
        )
    checkpoint, trust = loading.checkpoint_of(folder)
    config = read_config(checkpoint, trust)
    try:
        generation = transformers.GenerationConfig.from_pretrained(checkpoint)
    except OSError:  # it has none
        generation = transformers.GenerationConfig()
    context = context_of(config)
    tokenizer = loading.load_tokenizer(checkpoint, trust)
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
def _say_once(text: str) -> None:
    """All variants of a model have the same to say."""
    log.warning(text)


def _silent(done: int, total: int) -> None:
    pass
