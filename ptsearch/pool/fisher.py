"""The diagonal of the Fisher information, layer by layer, with one layer in memory.

SqueezeLLM (Kim et al., arXiv 2306.07629, equation 4): the mean over calibration samples of the
squared gradient of the loss. A pass of its own over the dense model: forward, keeping each layer's
inputs; then backward, each layer computed again from them. Beside one layer and its squared
gradients the inputs of all layers are in memory, (layers, samples, length, hidden).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import tensors_of
from ptsearch.models.layers import (
    Arguments,
    empty,
    fill_around,
    forwards,
    layers_of,
    materialise,
    run_layer,
    skeleton,
)
from ptsearch.shared import Report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE = "gradients: layer"


def measure(base: BaseModel, tokens: Tensor, folder: Path, report: Report) -> None:
    """Write `folder/N.safetensors` for each layer N: linear -> diagonal (out, in) bfloat16.

    tokens (samples, length).
    """
    model = skeleton(base.path, base.trust_remote_code).requires_grad_(False)
    tensors = tensors_of(model, base.path)
    root, layers = layers_of(model)
    fill_around(tensors.under, model, "", layers)
    model.tie_weights()
    materialise(layers[0], tensors.under(f"{root}.0."), f"{root}.0.")
    hidden, calls = _embed(model, layers, tokens)
    inputs = []
    for index, layer in enumerate(layers):
        report(STAGE, index, 2 * len(layers))
        materialise(layer, tensors.under(f"{root}.{index}."), f"{root}.{index}.")
        inputs.append(hidden)
        with torch.no_grad():
            hidden = [_run(layers, index, X, calls[index]) for X in hidden]
        empty(layer)
    gradients = _head(model, layers, tokens, hidden)
    for index in reversed(range(len(layers))):
        report(STAGE, 2 * len(layers) - 1 - index, 2 * len(layers))
        prefix, layer = f"{root}.{index}.", layers[index]
        materialise(layer, tensors.under(prefix), prefix)
        diagonal, gradients = _backward(layers, index, inputs.pop(), gradients, calls[index])
        found = {prefix + name: F.to(torch.bfloat16) for name, F in diagonal.items()}
        save_file(found, folder / f"{index}.safetensors")
        empty(layer)


def read(folders: Mapping[int, Path], layer: int) -> dict[int, dict[str, Tensor]]:
    """Seed -> linear -> diagonal (out, in) float32, as `measure` wrote them."""
    return {
        seed: {name: F.float() for name, F in load_file(folder / f"{layer}.safetensors").items()}
        for seed, folder in folders.items()
    }


def _embed(
    model: "PreTrainedModel", layers: nn.ModuleList, tokens: Tensor
) -> tuple[list[Tensor], list[Arguments]]:
    """(the first layer's input for each sample, each layer's other arguments, alike for all)."""
    hidden: list[Tensor] = []
    calls: list[Arguments] = []

    def note(index: int, X: Tensor, *args: object, **kwargs: object) -> Tensor:
        if index == 0:
            if not hidden:
                run_layer(layers, 0, ((X, *args), kwargs))  # in which form its model takes `X`
            hidden.append(X)
        if len(hidden) == 1:
            calls.append((args, kwargs))
        return X

    with forwards(layers, note), torch.no_grad():
        for ids in tokens:
            model(input_ids=ids[None], use_cache=False, logits_to_keep=1)
    return hidden, calls


def _head(
    model: "PreTrainedModel", layers: nn.ModuleList, tokens: Tensor, hidden: list[Tensor]
) -> list[Tensor]:
    """Gradients of each sample's loss with respect to the last layer's output."""
    gradients = []
    for ids, X in zip(tokens, hidden, strict=True):
        leaf = X.detach().requires_grad_()
        with forwards(layers, lambda *_args, _leaf=leaf, **_kwargs: _leaf):
            model(input_ids=ids[None], labels=ids[None], use_cache=False).loss.backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    return gradients


def _backward(
    layers: nn.ModuleList,
    index: int,
    inputs: list[Tensor],
    gradients: list[Tensor],
    call: Arguments,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """(mean squared gradient of each linear's weight, gradients with respect to the inputs)."""
    named = layers[index].named_modules()
    linears = {name: m for name, m in named if isinstance(m, nn.Linear)}
    diagonal = {name: torch.zeros(linear.weight.shape) for name, linear in linears.items()}
    passed = []
    for X, gradient in zip(inputs, gradients, strict=True):
        leaf = X.detach().requires_grad_()
        for linear in linears.values():
            linear.weight.requires_grad_().grad = None
        _run(layers, index, leaf, call).backward(gradient)
        for name, linear in linears.items():
            if linear.weight.grad is not None:  # an expert that no token reached has none
                diagonal[name] += linear.weight.grad.float().square() / len(inputs)
        assert leaf.grad is not None
        passed.append(leaf.grad)
    return diagonal, passed


def _run(layers: nn.ModuleList, index: int, X: Tensor, call: Arguments) -> Tensor:
    args, kwargs = call
    return run_layer(layers, index, ((X, *args), kwargs))
