"""What lies between and behind a model's products, in one pass each: norms, position encodings,
softmax, and what is read off logits.

torch widens, multiplies and rounds in passes of their own, a sixth of the time of a model of 16
bits whose products run at their peak. Here numbers are rounded where transformers rounds them; the
order of a sum is not torch's. For one core (`fits`); everything else torch does.
"""

import functools
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptsearch.engine import kernels

ROTARY = "apply_rotary_pos_emb"  # in the code of transformers' models


FEW = 2**17  # numbers that one core is done with before others have begun


def fits(x: Tensor) -> bool:
    """bf16 on a CPU, of which this thread has one core or needs no more."""
    one = torch.get_num_threads() == 1 or x.numel() <= FEW
    return one and x.dtype == torch.bfloat16 and x.device.type == "cpu"


def softmax_(scores: Tensor) -> None:
    """scores (R, N, keys) -> their softmax over the keys, in place."""
    if fits(scores):
        kernels.softmax(codes(scores.view(-1, scores.shape[-1])))
    else:
        torch.softmax(scores, -1, out=scores)


def softmax_seen_(scores: Tensor, first: Tensor, end: Tensor, scale: float) -> None:
    """The same of scale x scores over the keys first <= key < end; zero elsewhere.

    first, end: (n,), of which row t of all R x N has number t mod n.
    """
    if fits(scores):
        rows = codes(scores.view(-1, scores.shape[-1]))
        kernels.softmax_seen(rows, first.numpy(), end.numpy(), np.float32(scale))
        return
    key = torch.arange(scores.shape[-1], device=scores.device)
    unseen = (key < first[:, None]) | (key >= end[:, None])
    scores.mul_(scale).view(-1, *unseen.shape).masked_fill_(unseen, -torch.inf)
    torch.softmax(scores, -1, out=scores)


def logsumexp(logits: Tensor) -> Tensor:
    """(rows, vocabulary) -> (rows,)"""
    if not _lies_by_token(logits):
        return logits.logsumexp(-1)
    out = torch.empty(len(logits))
    kernels.logsumexp(logits.mT.numpy(), out.numpy())
    return out


def peaks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row's logits, and its token. (rows, vocabulary) -> (rows,) each."""
    if not _lies_by_token(logits):
        largest, token = logits.max(-1)
        return largest, token
    largest, token = torch.empty(len(logits)), torch.empty(len(logits), dtype=torch.long)
    kernels.peaks(logits.mT.numpy(), largest.numpy(), token.numpy())
    return largest, token


def _lies_by_token(logits: Tensor) -> bool:
    """As `linear.Head` gives them on a CPU: torch is slow along a dimension that is strided."""
    plain = logits.device.type == "cpu" and logits.dtype == torch.float32
    return plain and logits.mT.is_contiguous() and len(logits) > 1


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-second half, first half) sin (Su et al., 2021, eq. 34), rounded as Llama's.

    x: (1, H, T, D); cos, sin: (1, T, D).
    """
    tokens = x[0].transpose(0, 1)
    out = torch.empty(tokens.shape, dtype=x.dtype)
    rows = codes(out).reshape(-1, out.shape[-1])
    place = np.arange(len(rows))
    kernels.rotate(codes(tokens), codes(cos[0]), codes(sin[0]), place, rows)
    return out.transpose(0, 1)[None]


class Norm(nn.Module):
    """x -> weight x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019, eq. 4), rounded as Llama's.

    x: (..., d).
    """

    def __init__(self, norm: Any, eps: float) -> None:
        super().__init__()
        self.norm, self.eps = norm, np.float32(eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.one_pass(x) if fits(x) else self.norm(x)
        return y

    def one_pass(self, x: Tensor) -> Tensor:
        """The same wherever the thread runs."""
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        kernels.norm(codes(rows), codes(self.norm.weight.detach()), self.eps, codes(out))
        return out.view(x.shape)


@torch.no_grad()
def swap(model: Any) -> None:
    """Norms and position encodings of a bf16 model, where they are found to be Llama's.

    A position encoding is a function of transformers' code, for all its models: what does not fit
    it still gets.
    """
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return
    for name, module in list(model.named_modules()):
        if norm := _norm(module):
            model.set_submodule(name, norm)
    for code in {sys.modules[type(module).__module__] for module in model.modules()}:
        original = getattr(code, ROTARY, None)
        if original and not hasattr(original, "__wrapped__") and _turns_as_llama(original):
            setattr(code, ROTARY, _rotary(original))


def _norm(module: Any) -> Norm | None:
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if eps is None or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    x = torch.linspace(-3, 2, module.weight.numel(), dtype=torch.bfloat16)[None]
    norm = Norm(module, eps)
    # NaN: of a degenerate variant the first prompt will say so.
    alike = torch.allclose(norm.one_pass(x), module(x), rtol=1e-2, equal_nan=True)
    return norm if alike else None


def _rotary(original: Any) -> Any:
    @functools.wraps(original)
    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> Any:
        if others or named or torch.is_grad_enabled() or q.shape[0] > 1 or not fits(q):
            return original(q, k, cos, sin, *others, **named)
        return rotated(q, cos, sin), rotated(k, cos, sin)

    return turn


def _turns_as_llama(original: Any) -> bool:
    x = torch.linspace(-3, 2, 96, dtype=torch.bfloat16).view(1, 2, 3, 16)
    cos, sin = x[:, 0].cos(), x[:, 1].sin()
    try:
        given = original(x, x[:, :1], cos, sin)
    except (RuntimeError, TypeError, ValueError):
        return False  # another function of that name
    return all(
        torch.equal(theirs, rotated(part, cos, sin))
        for theirs, part in zip(given, (x, x[:, :1]), strict=True)
    )


def codes(x: Tensor) -> kernels.Codes:
    """The same memory as NumPy and Numba take it: bf16 is none of their types."""
    return x.view(torch.int16).numpy().view(np.uint16)
