"""Linear layers whose weights oneDNN has laid out for its own kernels, once.

torch multiplies fp32 matrices with MKL, which reaches less than half of oneDNN's speed on some
CPUs, and bf16 ones with oneDNN from plain weights, which is slow for few rows. The modules are
swapped in place; no model code changes. On other devices nothing is done.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ptsearch.engine import _compat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FUSED = {"SiLUActivation", "SiLU"}  # a gate's activation that oneDNN applies inside the product
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}  # the parts of a gated MLP
# Rounding once instead of three times, of the output's norm.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

BLOCK = 4096  # rows of a head's weights that stay in the CPU's cache from one product to the next


class PackedLinear(nn.Module):
    """x -> x Wᵀ + b, then SiLU where asked, W in oneDNN's layout. x: (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear, silu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = _compat.reordered(linear.weight.detach())
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.silu = silu

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """`times`: (..., out), multiplied with the result inside the product."""
        return _compat.linear(x, self.weight, self.bias, self.silu, times)


class PackedMLP(nn.Module):
    """x -> down(activation(gate x) * up x): both element-wise steps inside the products."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj = PackedLinear(mlp.gate_proj, silu=True)
        self.up_proj = PackedLinear(mlp.up_proj)
        self.down_proj = PackedLinear(mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.up_proj(x, self.gate_proj(x)))
        return y


class Head(nn.Module):
    """x -> x Wᵀ + b in fp32 where x and W are of 16 bits. x: (..., in) -> (..., out).

    A product rounds to the type of its factors: bf16 logits of 16 to 32 lie 0.125 apart, and labels
    tie. What rounding took away is left when the product is computed again less its rounded self.
    The product is W xᵀ, as oneDNN would copy all of W for x Wᵀ.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(0, -2).mT.contiguous()
        logits = torch.empty(columns.shape[1], len(self.weight), device=x.device)
        step = BLOCK if x.device.type == "cpu" else len(self.weight)
        for low in range(0, len(self.weight), step):
            weight = self.weight[low : low + step]
            rounded = torch.mm(weight, columns)
            rest = torch.addmm(rounded, weight, columns, beta=-1)
            logits[:, low : low + step].copy_(rounded.mT).add_(rest.mT)
        if self.bias is not None:
            logits += self.bias
        return logits.unflatten(0, x.shape[:-1])


def use_fp32_head(model: "PreTrainedModel") -> None:
    """Swap the head of a model of 16 bits."""
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype != torch.float32:
        model.set_output_embeddings(Head(head))


def prepack(model: nn.Module) -> None:
    """Swap the model's gated MLPs, and its other linear layers.

    Layers whose weight another module shares (a tied head) stay: a second layout would double it.
    """
    weight = next(model.parameters())
    if weight.device.type == "cpu" and _compat.can_reorder(weight.dtype):
        embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
        _swap(model, {id(module.weight) for module in embeddings})


def _swap(module: nn.Module, shared: set[int]) -> None:
    for name, child in list(module.named_children()):
        if packed := _packed_mlp(child):
            setattr(module, name, packed)
        elif type(child) is nn.Linear and id(child.weight) not in shared:
            setattr(module, name, PackedLinear(child))
        else:
            _swap(child, shared)


@torch.no_grad()
def _packed_mlp(module: nn.Module) -> PackedMLP | None:
    """The packed form, where `module` is found to be down(activation(gate x) * up x)."""
    mlp: Any = module
    if {name for name, _ in module.named_children()} != GATED:
        return None
    linears = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    if type(mlp.act_fn).__name__ not in FUSED or any(type(p) is not nn.Linear for p in linears):
        return None
    weight = mlp.gate_proj.weight
    x = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device)[None]
    packed, truth = PackedMLP(mlp), module(x).float()
    error = (packed(x).float() - truth).norm().item()
    # NaN is not greater: of a degenerate variant the first prompt will say so.
    return None if error > TOLERANCE[weight.dtype] * truth.norm().item() else packed
