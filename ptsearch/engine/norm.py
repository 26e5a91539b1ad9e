"""RMS norms in fewer passes over the memory than transformers' own, where they give the same."""

from typing import Any

import torch
from torch import Tensor, nn

# How far rounding may move the output, of its norm.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


class Norm(nn.Module):
    """x -> weight * x / sqrt(mean(x²) + eps), in fp32 up to the weight. x: (..., hidden)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        wide = wide * scale if wide is x else wide.mul_(scale)
        return wide.to(x.dtype).mul_(self.weight)


def swap(model: nn.Module) -> None:
    """Put a `Norm` in the place of each module that computes the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm") and _is_same(child):
                setattr(module, name, Norm(child))


@torch.no_grad()
def _is_same(norm: Any) -> bool:
    if not hasattr(norm, "variance_epsilon") or norm.weight.dtype not in TOLERANCE:
        return False
    weight = norm.weight
    x = torch.linspace(-1, 2, len(weight), dtype=weight.dtype, device=weight.device)[None]
    truth = norm(x).float()
    error = (Norm(norm)(x).float() - truth).norm().item()
    return error <= TOLERANCE[weight.dtype] * truth.norm().item()
