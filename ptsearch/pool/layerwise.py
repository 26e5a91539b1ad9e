"""One pass over a base model, layer by layer, with one layer in memory.

The forward pass is the model's own. It runs on the meta device but for the parts in use: each
decoder layer is read from the checkpoint when its turn comes, runs over the calibration samples one
by one while the moments of its linear inputs are summed, is handed to `visit`, and freed. A seed's
sums have the same bits whichever other seeds are drawn with it.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ptsearch.models.layers import (
    Arguments,
    Read,
    empty,
    fill_around,
    forwards,
    give_back,
    layers_of,
    map_tensors,
    materialise,
    run_layer,
)
from ptsearch.quantize.layer import Layer, Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel

H_BLOCK = 256  # columns: only blocks on and below the diagonal of H are computed


class Samples(NamedTuple):
    """Calibration samples, and which of them each seed draws."""

    tokens: Tensor  # (n, length)
    seeds: Mapping[int, Sequence[int]] = MappingProxyType({})  # seed -> rows whose moments it sums


def walk(
    read: Read,
    model: "PreTrainedModel",
    samples: Samples,
    visit: Callable[[Layer], Mapping[str, Tensor]],
    first: int = 0,
    sequential: bool = False,
) -> Tensor:
    """Run the samples through the model, with `visit` for each layer from `first` on.

    Where the walk is `sequential`, `visit` returns tensors that replace the layer's, by full name,
    before its output enters the next one; else all inputs are the dense model's, and held once:
    a layer's output is written over its input. Returns the last layer's output, (n, length,
    hidden).
    """
    tokens, seeds = samples
    root, layers = layers_of(model)
    decoder = cast("PreTrainedModel", model.get_submodule(root.rpartition(".")[0]))
    drawn_by = [
        tuple(seed for seed, rows in seeds.items() if row in rows) for row in range(len(tokens))
    ]
    last = torch.empty(0)

    def run_layer(index: int, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal last
        if index == 0:
            _forget_embeddings(model, decoder)  # their output is in `args`
        prefix, layer = f"{root}.{index}.", layers[index]
        stored = read(prefix)
        materialise(layer, stored, prefix)
        over = not _elsewhere(args[0], (args[1:], kwargs))
        if index < first:
            last = _run(layers, index, (args, kwargs), drawn_by, None, over)
            empty(layer)
            give_back()
            return last if index + 1 < len(layers) else last[:1]
        sums = _Sums(prefix, layer)
        rest = _rows((args[1:], kwargs), len(tokens), slice(0, 1))
        example = (args[0][:1].clone(), *rest[0]), rest[1]
        last = _run(layers, index, (args, kwargs), drawn_by, sums, over and not sequential)
        sums.close()
        give_back()
        layer_of = Layer(index, prefix, layer, stored, sums.inputs, sums.moments(), example)
        changed = visit(layer_of)
        if sequential and changed:
            materialise(layer, {**stored, **changed}, prefix)
            last = _run(layers, index, (args, kwargs), drawn_by, None, over)
        empty(layer)
        give_back()
        return last if index + 1 < len(layers) else last[:1]  # nothing after it is needed

    give_back()
    fill_around(read, decoder, root.rpartition(".")[0] + ".", layers)
    model.tie_weights()
    with forwards(layers, run_layer), torch.inference_mode():
        decoder(input_ids=tokens, use_cache=False)
    return last


def _forget_embeddings(model: "PreTrainedModel", decoder: "PreTrainedModel") -> None:
    embeddings = decoder.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    embeddings.weight = nn.Parameter(embeddings.weight.to("meta"), requires_grad=False)
    model.tie_weights()


def _run(
    layers: nn.ModuleList,
    index: int,
    arguments: Arguments,
    drawn_by: Sequence[tuple[int, ...]],
    sums: "_Sums | None",
    over: bool,
) -> Tensor:
    """What leaves a layer, sample by sample; `over`: written over what enters it."""
    entering = arguments[0][0]
    outputs = entering if over else torch.empty_like(entering)
    for row, seeds in enumerate(drawn_by):
        if sums:
            sums.drawn_by = seeds
        taken = slice(row, row + 1)
        outputs[taken] = run_layer(layers, index, _rows(arguments, len(entering), taken))
    return outputs


class _Sums:
    """Sums of the moments of a layer's linear inputs, taken by hooks while the layer runs."""

    def __init__(self, prefix: str, layer: nn.Module) -> None:
        self.inputs: list[tuple[str, ...]] = []
        self.drawn_by: tuple[int, ...] = ()  # seeds that drew the samples now running
        self._sums: list[dict[int, Moments]] = []
        self._slot: dict[str, int] = {}  # linear -> index in inputs
        self._seen: list[Tensor] = []  # each input when it came first, held to compare
        self._linears = {
            prefix + name: module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        self._hooks = [
            module.register_forward_pre_hook(lambda _, args, name=name: self._take(name, args[0]))
            for name, module in self._linears.items()
        ]

    def moments(self) -> list[dict[int, Moments]]:
        """Sums over tokens divided by their number, in their place; H made symmetric."""
        for sums in self._sums:
            for total in sums.values():
                H = total.H.tril_()
                H.add_(H.tril(-1).T).div_(total.tokens)
                total.mean_abs.div_(total.tokens)
        return self._sums

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._seen = []
        for name in self._linears.keys() - self._slot.keys():  # nothing reached it
            self.inputs.append((name,))
            self._sums.append({})

    def _take(self, name: str, X: Tensor) -> None:
        if name not in self._slot:
            self._assign(name, X)
        slot = self._slot[name]
        if self.inputs[slot][0] != name:
            return
        if not self.drawn_by:
            return
        X = X.flatten(0, -2).float()
        H = torch.zeros(X.shape[1], X.shape[1])
        for start in range(0, len(H), H_BLOCK):
            stop = min(start + H_BLOCK, len(H))
            torch.mm(X[:, start:stop].T, X[:, :stop], out=H[start:stop, :stop])
        taken = Moments(H, X.abs().sum(0), *X.aminmax(dim=0), len(X))
        for seed in self.drawn_by:
            total = self._sums[slot].get(seed)
            if total is None:
                copies = {name: getattr(taken, name).clone() for name in taken._fields[:-1]}
                self._sums[slot][seed] = taken._replace(**copies)
            else:
                total.H.add_(H)
                total.mean_abs.add_(taken.mean_abs)
                torch.minimum(total.low, taken.low, out=total.low)
                torch.maximum(total.high, taken.high, out=total.high)
                self._sums[slot][seed] = total._replace(tokens=total.tokens + len(X))

    def _assign(self, name: str, X: Tensor) -> None:
        for slot, seen in enumerate(self._seen):
            if seen.data_ptr() == X.data_ptr() and seen.shape == X.shape:
                self._slot[name] = slot
                self.inputs[slot] = (*self.inputs[slot], name)
                return
        self._slot[name] = len(self.inputs)
        self._seen.append(X)
        self.inputs.append((name,))
        self._sums.append({})


def _elsewhere(tensor: Tensor, arguments: Arguments) -> bool:
    """Whether one of the arguments has its memory."""
    places: set[int] = set()

    def note(value: Tensor) -> Tensor:
        places.add(value.untyped_storage().data_ptr())
        return value

    map_tensors(note, arguments)
    return tensor.untyped_storage().data_ptr() in places


def _rows(arguments: Arguments, count: int, taken: slice) -> Arguments:
    """The same arguments for some of `count` samples: tensors that have one row for each."""

    def part(value: Tensor) -> Tensor:
        return value[taken] if value.ndim > 0 and len(value) == count else value

    return map_tensors(part, arguments)
