"""Prompts and their labels as token ids: chat templates, beginning-of-sequence tokens, joins.

A label is never tokenized alone: tokenizers put a word's first piece together with what stands
before it, and some begin every text with a space of their own. Token ids of a label are those of
prompt + label after the tokens that it has in common with the prompt, so their log-probabilities
sum to log p(label | prompt) however the join is cut.
"""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from ptsearch.benchmarks import Turn
from ptsearch.benchmarks.prompts import ALTERNATE, FOLD, TurnForm, formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING = "enable_thinking"  # how templates of Qwen3, SmolLM3 and others name the switch
TEMPLATE_SECONDS = 5.0  # for one conversation, or the template does not end
# What a template raises by itself: it is a program, of whoever wrote the checkpoint.
TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ArithmeticError),
    *(AttributeError, LookupError, RecursionError),
)
PROBE = ("probe of the system", "probe of the user", "probe of the assistant")


class Choices(NamedTuple):
    """A prompt and its labels in tokens: log p(label | prompt) is of labels[i] after `prompt`."""

    prompt: list[int]
    labels: list[list[int]]
    merged: bool  # the tokens of a join replace some of the prompt's last ones


@dataclass(frozen=True, eq=False)
class Prompter:
    """Makes token ids of prompts for one tokenizer.

    `arguments` go to the chat template; thinking is off where a template has a switch for it.
    """

    tokenizer: "PreTrainedTokenizerBase"
    arguments: Mapping[str, object] = field(default_factory=dict)

    def prompt(self, prompt: str | Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of a text as it is, or of (role, content) turns through the chat template.

        A text begins with the special tokens that the tokenizer puts first and ends without any; a
        template writes its own. ValueError: turns, and no template or one that refuses them.
        """
        return self._ids(*self._text(prompt))

    def choices(
        self, prompt: str | Sequence[tuple[str, str]], continuations: Sequence[str]
    ) -> Choices:
        """The prompt with each continuation (a label and what stands before it)."""
        text, plain = self._text(prompt)
        alone = self._ids(text, plain)
        joined = [self._ids(text + continuation, plain) for continuation in continuations]
        common = min((common_length(alone, ids) for ids in joined), default=len(alone))
        return Choices(alone[:common], [ids[common:] for ids in joined], common < len(alone))

    def conversation(self, turns: Sequence[tuple[str, str]], reply: bool = True) -> str:
        """The turns as text; with `reply` up to where the assistant's next turn begins."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                "the prompt has chat turns and the model's tokenizer has no chat template: "
                "choose benchmarks.prompt=raw"
            )
        try:
            return self._rendered(formed([Turn(*turn) for turn in turns], self.form), reply)
        except TEMPLATE_ERRORS as error:
            raise ValueError(
                f"the model's chat template refuses turns of {', '.join(r for r, _ in turns)} "
                f"({error}): choose benchmarks.prompt=raw"
            ) from None

    @cached_property
    def template_arguments(self) -> dict[str, Any]:
        """What the template is given: `arguments`, and thinking off where it has the switch."""
        off = {THINKING: False} if THINKING in str(self.tokenizer.chat_template) else {}
        return {**off, **self.arguments}

    @cached_property
    def form(self) -> TurnForm:
        """What turns must be changed to, as the template refuses or drops them otherwise."""
        system, user, assistant = PROBE
        asked = Turn("user", user)
        alternates = self.accepts([asked, Turn("assistant", assistant), asked])
        return frozenset(
            ({FOLD} if not self.accepts([Turn("system", system), asked]) else set())
            | ({ALTERNATE} if alternates and not self.accepts([asked, asked]) else set())
        )

    @cached_property
    def thinks(self) -> bool:
        """Whether a reply begins inside a block of thoughts that no argument has turned off."""
        asked = [Turn("user", PROBE[1])]
        if not self.tokenizer.chat_template or not self.accepts(asked):
            return False
        text = self._rendered(asked, reply=True)
        return text.rstrip().endswith("<think>") or "reasoning_effort" in str(
            self.tokenizer.chat_template
        )

    def accepts(self, turns: Sequence[Turn]) -> bool:
        """Whether the chat template takes the turns and drops none."""
        try:
            text = self._rendered(turns, reply=True)
        except TEMPLATE_ERRORS:
            return False
        return all(turn.content in text for turn in turns)

    def _rendered(self, turns: Sequence[Turn], reply: bool) -> str:
        with time_limit(TEMPLATE_SECONDS, "the model's chat template"):
            return str(
                self.tokenizer.apply_chat_template(
                    [{"role": turn.role, "content": turn.content} for turn in turns],
                    tokenize=False,
                    add_generation_prompt=reply,
                    **self.template_arguments,
                )
            )

    def _text(self, prompt: str | Sequence[tuple[str, str]]) -> tuple[str, bool]:
        """(the prompt as text, whether it is plain)."""
        if isinstance(prompt, str):
            return prompt, True
        return self.conversation(prompt), False

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, none added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _ids(self, text: str, plain: bool) -> list[int]:
        return [*self.first, *self.tokens(text)] if plain else self.tokens(text)

    @cached_property
    def first(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text."""
        alone = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        starts = range(len(whole) - len(alone) + 1)
        return list(whole[: next(k for k in starts if whole[k : k + len(alone)] == alone)])


class _TimeoutError(BaseException):
    """Raised from outside, between two steps of the interpreter."""


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """ValueError if the block of Python code takes longer, in whatever thread it runs."""
    thread, lock, ended = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def end() -> None:
        with lock:
            if not ended:
                expired = ctypes.py_object(_TimeoutError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, expired)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    except _TimeoutError:
        raise ValueError(f"{what} took longer than {seconds:g} s") from None
    finally:
        with lock:
            ended = True
        timer.cancel()


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((k for k, (x, y) in pairs if x != y), min(len(a), len(b)))
