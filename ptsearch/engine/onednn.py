"""Linear layers for 16-bit and AVX-512 processors: packed weights, and logits in fp32.

oneDNN multiplies faster by weights that it has laid out for its own kernels once: bf16 products of
few rows most, fp32 ones on some processors with AVX-512. The modules are replaced in place; no
model code changes. On other devices nothing is packed.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptsearch.engine import _compat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 4096  # rows of a head's weights that stay in the CPU's cache from one product to the next


class PackedLinear(nn.Module):
    """x -> x Wᵀ + b, W in oneDNN's layout. x: (..., in) -> (..., out)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(_compat.reordered(linear.weight.detach()), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return _compat.linear(x, self.weight, self.bias)


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
    """Pack the weights of the model's linear layers.

    Layers whose weight another module shares (a tied head) stay: a second layout would double it.
    """
    weight = next(model.parameters())
    if weight.device.type != "cpu" or not _compat.can_reorder(weight.dtype):
        return
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and id(module.weight) not in shared:
            model.set_submodule(name, PackedLinear(module))
