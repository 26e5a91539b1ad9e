"""Using a loaded model: log-probabilities of labels, greedy replies, latencies."""

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ptsearch.config import EngineConfig
from ptsearch.engine import lanes
from ptsearch.engine.llamacpp import LlamaCpp
from ptsearch.engine.local import LocalModel
from ptsearch.engine.prefix_cache import Kept
from ptsearch.engine.requests import Progress, Tokens
from ptsearch.engine.vllm import Server

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WARMUPS = 8  # untimed prompts before a latency is taken

Ids = Sequence[int]  # token ids of a prompt, a label or a reply


class Engine(NamedTuple):
    """A loaded model, how to run it, and how to make tokens for it."""

    runner: LocalModel | LlamaCpp | Server  # in this process, or in another
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
        """The model where transformers runs it in this process."""
        return self.runner if isinstance(self.runner, LocalModel) else None


def score(
    engine: Engine, prompts: Sequence[Ids], labels: Sequence[Sequence[Ids]], report: Progress
) -> list[list[float]]:
    """log p(label | prompt) in nats; prompt i has labels[i], of one or several tokens each.

    Raises ValueError for a prompt that does not fit the model's context and NonFiniteLogitsError
    where the model's output is NaN or infinite.
    """
    requests: dict[Tokens, dict[int, None]] = {}
    steps: list[list[list[tuple[Tokens, int]]]] = []  # per prompt and label: its tokens
    for index, (prompt, options) in enumerate(zip(prompts, labels, strict=True)):
        check_length(engine, index, prompt, max(map(len, options), default=1) - 1)
        if not all(options):
            raise ValueError(f"prompt {index} has a label without tokens")
        steps.append(
            [[((*prompt, *label[:k]), label[k]) for k in range(len(label))] for label in options]
        )
        for before, token in itertools.chain.from_iterable(steps[-1]):
            requests.setdefault(before, {})[token] = None

    def report_prompts(done: int, total: int) -> None:
        report(done * len(prompts) // total, len(prompts))

    following = {before: list(tokens) for before, tokens in requests.items()}
    logprobs = engine.runner.logprobs(following, report_prompts)
    return [
        [sum(logprobs[before][token] for before, token in label) for label in options]
        for options in steps
    ]


def generate(
    engine: Engine, prompts: Sequence[Ids], max_new_tokens: int | list[int], report: Progress
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
    prompts: Sequence[Ids],
    labels: Sequence[Sequence[Ids]] | None,
    max_new_tokens: int = 1,
) -> list[float]:
    """Seconds from prompt to answer, one prompt at a time, nothing kept between prompts.

    With `labels` the prompts are scored, without them up to `max_new_tokens` are generated.
    """
    engine = engine._replace(runner=engine.runner.uncached())

    def ask(index: int) -> None:
        if labels is None:
            generate(engine, [prompts[index]], max_new_tokens, lambda *_: None)
        else:
            score(engine, [prompts[index]], [labels[index]], lambda *_: None)

    for index in range(WARMUPS):
        ask(index % len(prompts))
    seconds = []
    for index in range(len(prompts)):
        start = time.perf_counter()
        ask(index)  # ends with its result on the host, so the device is done as well
        seconds.append(time.perf_counter() - start)
    return seconds


def check_length(engine: Engine, index: int, prompt: Ids, new: int) -> None:
    """ValueError unless the prompt has tokens and fits the context together with `new` more."""
    if not prompt:
        raise ValueError(f"prompt {index} has no tokens")
    if engine.context and len(prompt) + new > engine.context:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens, with {new} new ones {len(prompt) + new}; "
            f"the model's context is {engine.context}"
        )


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
