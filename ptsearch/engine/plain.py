"""The reference path: batches of equally long sequences, which need no padding and no mask.

It works for every causal LM that transformers runs, recurrent ones included.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ptsearch.engine.memory import Limits
from ptsearch.engine.requests import Logprobs, Progress, Requests, logprobs_of, until_eos

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptsearch.engine.local import LocalModel

Value = TypeVar("Value")


@torch.inference_mode()
def logprobs(
    model: "PreTrainedModel", requests: Requests, limits: Limits, report: Progress
) -> Logprobs:
    """log p(token | tokens before it) in nats, for every request."""
    values: Logprobs = {}
    last_only = {"logits_to_keep": 1}
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        last_only = {}
        limits = limits._replace(tokens=min(limits.tokens, limits.rows))  # one row of logits each
    for batch in equal_lengths([((len(tokens), 0), tokens) for tokens in requests], limits):
        ids = torch.tensor(batch, device=model.device)
        logits = model(ids, use_cache=False, **last_only).logits[:, -1]
        values |= logprobs_of(logits, {tokens: requests[tokens] for tokens in batch})
        report(len(values), len(requests))
    return values


@torch.inference_mode()
def generate(
    local: "LocalModel",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    eos: frozenset[int],
    report: Progress,
) -> list[list[int]]:
    """Greedy replies without their end-of-sequence token."""
    model: Any = local.model  # transformers' `generate` has no type
    later: Any = local.later
    cached = local.rounding is None  # else attention needs all tokens of a sequence at once
    replies: list[list[int]] = [[] for _ in prompts]
    keyed = [((len(p), n), i) for i, (p, n) in enumerate(zip(prompts, max_new_tokens, strict=True))]
    done = 0
    for batch in equal_lengths(keyed, local.limits):
        ids = torch.tensor([list(prompts[i]) for i in batch], device=model.device)
        new = max_new_tokens[batch[0]]
        settings: dict[str, object] = {
            "do_sample": False,
            "use_cache": cached,
            "eos_token_id": sorted(eos) or None,
            "pad_token_id": min(eos, default=0),
            "return_dict_in_generate": True,
        }
        first = new if later is None else min(new, local.first)
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, max_new_tokens=first, **settings)
        if later is not None and first < new:  # rows that have ended are cut at their first end
            if not cached or output.past_key_values is None:
                raise ValueError("decode_schedule: this model's cache cannot be handed over")
            mask = torch.ones_like(output.sequences)
            settings["past_key_values"] = output.past_key_values
            output = later.generate(
                output.sequences, attention_mask=mask, max_new_tokens=new - first, **settings
            )
        for index, row in zip(batch, output.sequences[:, ids.shape[1] :].tolist(), strict=True):
            replies[index] = until_eos(row, eos)
        done += len(batch)
        report(done, len(prompts))
    return replies


def equal_lengths(
    keyed: Sequence[tuple[tuple[int, int], Value]], limits: Limits
) -> Iterator[list[Value]]:
    """Values with equal keys together, in batches within the limits (or of one value).

    A key is (tokens of the prompt, tokens to generate).
    """
    groups: dict[tuple[int, int], list[Value]] = {}
    for key, value in keyed:
        groups.setdefault(key, []).append(value)
    for key, values in sorted(groups.items(), key=lambda group: group[0]):
        size = max(1, min(limits.tokens // sum(key), limits.rows))
        for start in range(0, len(values), size):
            yield values[start : start + size]
