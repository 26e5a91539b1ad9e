"""The parts of a model: a skeleton on the meta device, its decoder layers, its linears."""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor, nn

from ptsearch.models import experts
from ptsearch.models.architecture import auto_class, read_config
from ptsearch.models.loading import compute_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a module's forward
Nested = TypeVar("Nested")
Read = Callable[[str], dict[str, Tensor]]  # prefix -> a checkpoint's tensors under it, by full name


def skeleton(folder: Path, trust_remote_code: bool) -> "PreTrainedModel":
    """The model on the meta device; only buffers that no checkpoint holds have values."""
    from accelerate import init_empty_weights

    config = read_config(folder, trust_remote_code)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class(config).from_config(
            config, dtype=compute_dtype(), trust_remote_code=trust_remote_code
        )
    experts.split(model)
    model.tie_weights()
    return model.eval()


def layers_of(model: "PreTrainedModel") -> tuple[str, nn.ModuleList]:
    """The decoder layers of the language model, and their name in the whole model."""
    count = model.config.get_text_config().num_hidden_layers
    inside = {id(module) for module in cast(nn.Module, model.get_decoder()).modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and id(module) in inside:
            return name, module
    raise ValueError(f"{type(model).__name__}: no list of {count} decoder layers found")


def linears_of(model: "PreTrainedModel") -> dict[str, nn.Linear]:
    """The linear layers that are quantized: those inside decoder layers, by full name."""
    name, layers = layers_of(model)
    return {
        f"{name}.{key}": module
        for key, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def map_tensors(change: Callable[[Tensor], Tensor], value: Nested) -> Nested:
    """`value` with every tensor changed that is in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return cast(Nested, change(value))
    if isinstance(value, dict):
        return cast(Nested, {key: map_tensors(change, part) for key, part in value.items()})
    if isinstance(value, tuple | list):
        return cast(Nested, type(value)(map_tensors(change, part) for part in value))
    return value


def run_layer(layers: nn.ModuleList, index: int, arguments: Arguments) -> Tensor:
    """What a layer really computes; notes for `forwards` in which form the layers return it."""
    layer, (args, kwargs) = layers[index], arguments
    output = type(layer).forward(layer, *args, **kwargs)
    layers.__dict__["return_tuples"] = isinstance(output, tuple)
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


@contextmanager
def forwards(layers: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
    """While it lasts, the layer of number i computes forward(i, *args, **kwargs).

    The model is given that as its layers return it, which is known once one of them has run.
    """

    def call(index: int, *args: Any, **kwargs: Any) -> object:
        output = forward(index, *args, **kwargs)
        return (output,) if layers.__dict__.get("return_tuples") else output

    try:
        for index, layer in enumerate(layers):
            layer.forward = partial(call, index)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def give_back() -> None:
    """Hand freed memory to the system. glibc keeps it in pieces that fit no other layer's tensors:
    over the layers of the embedded model they come to 400 MB.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def empty(layer: nn.Module) -> None:
    """Put its parameters back on the meta device; buffers that no checkpoint holds stay."""
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.to("meta"), requires_grad=False))


def fill_around(read: Read, module: nn.Module, prefix: str, layers: nn.ModuleList) -> None:
    """Give a module on the meta device its tensors, but for those of the decoder layers."""
    inner = {id(tensor) for tensor in (*layers.parameters(), *layers.buffers())}
    held = (*module.named_parameters(), *module.named_buffers())
    values: dict[str, Tensor] = {}
    for name, tensor in held:
        if id(tensor) not in inner:
            values |= read(prefix + name)
    materialise(module, values, prefix, layers)


def materialise(
    module: nn.Module, values: Mapping[str, Tensor], prefix: str, skip: nn.Module | None = None
) -> None:
    """Give a module on the meta device its tensors, floats in the dtype of computation.

    `values` by name with the prefix. ValueError: the checkpoint lacks one. `skip`: a part of the
    module that stays as it is.
    """
    values = {name.removeprefix(prefix): value for name, value in values.items()}
    skipped = set(skip.parameters()) if skip is not None else set()
    wanted = {name for name, parameter in module.named_parameters() if parameter not in skipped}
    if missing := sorted(wanted - values.keys()):
        raise ValueError(f"the checkpoint has no tensor {prefix}{missing[0]}")
    dtype = compute_dtype()
    in_dtype = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in values.items()
    }
    module.load_state_dict(in_dtype, strict=False, assign=True)
