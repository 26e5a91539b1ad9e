"""Requests to a model and their answers: the types that every way of running a model shares."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Tokens = tuple[int, ...]
Requests = Mapping[Tokens, Sequence[int]]  # tokens -> next tokens to give probabilities of
Logprobs = dict[Tokens, dict[int, float]]  # the same with log p(token | tokens before it) in nats
Progress = Callable[[int, int], None]  # (items done, items in all)


class NonFiniteLogitsError(ArithmeticError):
    """The model's output holds NaN or infinity: the variant is degenerate."""


def logprobs_of(logits: Tensor, requests: Requests) -> Logprobs:
    """What the requests ask, each of a row of logits (requests, vocabulary)."""
    logits = logits.float()
    norm = logits.logsumexp(-1)
    check_finite(norm)
    rows = [row for row, following in enumerate(requests.values()) for _ in following]
    tokens = [token for following in requests.values() for token in following]
    values = iter((logits[rows, tokens] - norm[rows]).tolist())
    return {key: {token: next(values) for token in requests[key]} for key in requests}


def check_finite(values: Tensor) -> None:
    """NonFiniteLogitsError unless all values, taken from the logits, are finite."""
    if not torch.isfinite(values).all():
        raise NonFiniteLogitsError("the model's logits hold NaN or infinity")


def longest(prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> dict[Tokens, int]:
    """Each prompt once, with the most new tokens that are asked of it."""
    most: dict[Tokens, int] = {}
    for prompt, new in zip(map(tuple, prompts), max_new_tokens, strict=True):
        most[prompt] = max(new, most.get(prompt, 0))
    return most


def until_eos(tokens: Sequence[int], eos: frozenset[int]) -> list[int]:
    """The tokens before the first end-of-sequence token."""
    stop = next((k for k, token in enumerate(tokens) if token in eos), len(tokens))
    return list(tokens[:stop])
