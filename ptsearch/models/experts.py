"""Mixture-of-experts blocks with a linear layer for each product, as checkpoints store them.

transformers fuses the experts of a block into two tensors (experts, out, in), which leaves no
linear layer whose input could be watched. `split` undoes that on a model's skeleton.
"""

from typing import Any

import torch
from torch import Tensor, nn

FUSED = {"gate_up_proj", "down_proj"}  # of all experts: (E, 2 x inner, hidden), (E, hidden, inner)


def split(model: nn.Module) -> None:
    """Put `Experts` in place of every block of fused experts."""
    for name, module in list(model.named_modules()):
        if is_fused(module):
            owner, _, key = name.rpartition(".")
            setattr(model.get_submodule(owner), key, Experts(module))


def is_fused(module: nn.Module) -> bool:
    own = dict(module.named_parameters(recurse=False))
    return set(own) == FUSED and all(weight.ndim == 3 for weight in own.values())


class Experts(nn.Module):
    """down(act(gate x) * up x) of the experts that each token is sent to, weighted."""

    def __init__(self, fused: Any) -> None:
        super().__init__()
        count, hidden, inner = fused.down_proj.shape
        self.act_fn = fused.act_fn
        for expert in range(count):
            self.add_module(str(expert), nn.Module())
            for name, sizes in (
                ("gate_proj", (hidden, inner)),
                ("up_proj", (hidden, inner)),
                ("down_proj", (inner, hidden)),
            ):
                part = nn.Linear(*sizes, bias=False, device="meta", dtype=fused.down_proj.dtype)
                self.get_submodule(str(expert)).add_module(name, part)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x: (tokens, hidden), chosen and weights: (tokens, experts of each) -> as x."""
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            part: Any = self.get_submodule(str(expert))
            token, slot = torch.where(chosen == expert)
            state = x[token]
            state = part.down_proj(self.act_fn(part.gate_proj(state)) * part.up_proj(state))
            out.index_add_(0, token, (state * weights[token, slot, None]).to(out.dtype))
        return out
