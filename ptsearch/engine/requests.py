"""Requests to a model and their answers: the types that every way of running a model shares."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Tokens = tuple[int, ...]
Progress = Callable[[int, int], None]  # (items done, items in all)


class NonFiniteLogitsError(ArithmeticError):
    """The model's output holds NaN or infinity: the variant is degenerate."""


class Target(NamedTuple):
    """A token whose probability is wanted, given its sequence up to and including `position`."""

    position: int
    token: int


Sequences = Mapping[Tokens, Sequence[Target]]
TargetLogprobs = dict[Tokens, dict[Target, float]]


class Runner(Protocol):
    """Runs one model: `local.LocalModel` in this process, `vllm.Server` in another."""

    @property
    def form(self) -> str:
        """The form of the weights that answer."""

    def logprobs(self, sequences: Sequences, report: Progress) -> TargetLogprobs:
        """log p(target token | sequence up to its position) in nats, for every target."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        eos: frozenset[int],
        report: Progress,
    ) -> list[list[int]]:
        """Greedy replies without their end-of-sequence token."""

    def uncached(self) -> "Runner":
        """The same, with nothing kept from one request to the next: for latencies."""

    def close(self) -> None:
        """Release what this process started for it."""


def token_logprobs(logits: Tensor, rows: list[int], tokens: list[int]) -> list[float]:
    """log softmax(logits)[row, token] for each pair. logits: (rows, vocabulary)."""
    logits = logits.float()
    norm = logits.logsumexp(-1)
    check_finite(norm)
    values: list[float] = (logits[rows, tokens] - norm[rows]).tolist()
    return values


def check_finite(values: Tensor) -> None:
    """NonFiniteLogitsError unless all values, taken from the logits, are finite."""
    if not torch.isfinite(values).all():
        raise NonFiniteLogitsError("the model's logits hold NaN or infinity")


def until_eos(tokens: Sequence[int], eos: frozenset[int]) -> list[int]:
    """The tokens before the first end-of-sequence token."""
    stop = next((k for k, token in enumerate(tokens) if token in eos), len(tokens))
    return list(tokens[:stop])
