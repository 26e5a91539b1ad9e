"""The reference path: batches of equally long sequences, which need no padding and no mask.

It holds for every causal LM that transformers runs, recurrent ones included.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptsearch.engine import kv_attention
from ptsearch.engine.memory import Limits

Report = Callable[[int, int], None]  # (items done, items in all)


class NonFiniteLogitsError(ArithmeticError):
    """The model's output holds NaN or infinity: the variant is degenerate."""


class Target(NamedTuple):
    """The token whose probability is asked, given the sequence up to and with `position`."""

    position: int
    token: int


Sequences = Mapping[tuple[int, ...], Sequence[Target]]
Found = dict[tuple[int, ...], dict[Target, float]]


@torch.inference_mode()
def logprobs(model: Any, sequences: Sequences, limits: Limits, report: Report) -> Found:
    """log p(target token | sequence up to its position) in nats, for every target."""
    found: Found = {}
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    if not keeps:  # every token gives a row of logits
        limits = limits._replace(tokens=min(limits))
    for batch in equal_lengths([(len(s), s) for s in sequences], limits):
        positions = sorted({t.position for sequence in batch for t in sequences[sequence]})
        keep = torch.tensor(positions, device=model.device)
        ids = torch.tensor(batch, device=model.device)
        if keeps:
            logits = model(ids, use_cache=False, logits_to_keep=keep).logits
        else:
            logits = model(ids, use_cache=False).logits[:, keep]
        column = {position: k for k, position in enumerate(positions)}
        targets = [(row, t) for row, sequence in enumerate(batch) for t in sequences[sequence]]
        values = token_logprobs(
            logits.flatten(0, 1),
            [row * len(positions) + column[t.position] for row, t in targets],
            [t.token for _, t in targets],
        )
        for (row, target), value in zip(targets, values, strict=True):
            found.setdefault(batch[row], {})[target] = value
        report(len(found), len(sequences))
    return found


@torch.inference_mode()
def generate(
    engine: Any, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], report: Report
) -> list[list[int]]:
    """Greedy replies without their end-of-sequence token."""
    model, eos = engine.model, engine.eos
    replies: list[list[int]] = [[] for _ in prompts]
    keyed = [((len(p), n), i) for i, (p, n) in enumerate(zip(prompts, max_new_tokens, strict=True))]
    done = 0
    for batch in equal_lengths(keyed, engine.limits):
        ids = torch.tensor([list(prompts[i]) for i in batch], device=model.device)
        new = max_new_tokens[batch[0]]
        how = {
            "do_sample": False,
            "use_cache": model.config._attn_implementation
            != kv_attention.NAME,  # it wants all tokens
            "eos_token_id": sorted(eos) or None,
            "pad_token_id": min(eos, default=0),
            "return_dict_in_generate": True,
        }
        first = new if engine.later is None else min(new, engine.first)
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, max_new_tokens=first, **how)
        if first < new:  # rows that have ended go on, and are cut at their first end
            if not how["use_cache"] or output.past_key_values is None:
                raise ValueError("decode_schedule: this model's cache cannot be handed over")
            mask = torch.ones_like(output.sequences)
            how["past_key_values"] = output.past_key_values
            output = engine.later.generate(
                output.sequences, attention_mask=mask, max_new_tokens=new - first, **how
            )
        for index, row in zip(batch, output.sequences[:, ids.shape[1] :].tolist(), strict=True):
            replies[index] = until(row, eos)
        done += len(batch)
        report(done, len(prompts))
    return replies


def equal_lengths(keyed: Sequence[tuple[Any, Any]], limits: Limits) -> Iterator[list[Any]]:
    """Values with equal keys together, in batches within the limits (or of one value).

    A key is a length in tokens or starts with one.
    """
    groups: dict[Any, list[Any]] = {}
    for key, value in keyed:
        groups.setdefault(key, []).append(value)
    for key, values in sorted(groups.items(), key=lambda group: group[0]):
        length = key[0] + key[1] if isinstance(key, tuple) else key
        size = max(1, min(limits.tokens // length, limits.rows))
        for start in range(0, len(values), size):
            yield values[start : start + size]


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


def until(tokens: Sequence[int], eos: frozenset[int]) -> list[int]:
    """The tokens before the first end-of-sequence token."""
    stop = next((k for k, token in enumerate(tokens) if token in eos), len(tokens))
    return list(tokens[:stop])
