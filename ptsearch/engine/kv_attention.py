"""Attention over a rounded cache: where the model keeps it, and how it is seen, plainly.

`attach` gives each attention layer of a model its `Rounding`. The packed path finds it there; for
every other use of the model `attention` stands in transformers' attention interface. It computes
both products of every query, with the rounded cache and with the full one, and takes what the query
sees: slow, and right for whatever prompts are together in a batch. It needs all tokens of a
sequence at once (`use_cache=False`).
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptsearch.engine import _compat, packed
from ptsearch.engine.kv_cache import KV, Recorded, Rotate, Rounding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    class AttentionLayer(packed.AttentionLayer):
        rounding: "Rounding | Recorder"  # given to it here


NAME = "ptsearch_rounded"
REACH = "ptsearch_reach"


def attach(
    model: "PreTrainedModel", method: str, bits: int, window: int, tensors: Mapping[str, Tensor]
) -> Rounding:
    """Give each attention layer its rounding; the last one's is returned.

    `tensors`: calibrated, `{layer}.{name}`. ValueError: keys and values cannot be got at.
    """
    modules = reached(model)
    rotations = Rotations(model, modules) if method == "kvquant" else None
    for module in modules:
        prefix = f"{module.layer_idx}."
        own = {
            name.removeprefix(prefix): tensor.to(model.device)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        rotate = rotations.of(module) if rotations else None
        module.rounding = Rounding(method, bits, window, own, rotate)
    last = modules[-1].rounding
    assert isinstance(last, Rounding)
    return last


def reached(model: "PreTrainedModel") -> list["AttentionLayer"]:
    """The attention layers that go through transformers' attention interface, in order."""
    from transformers import AttentionInterface

    found: list[AttentionLayer] = []

    def look(
        module: "AttentionLayer",
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_: object,
        **__: object,
    ) -> tuple[Tensor, None]:
        found.append(module)
        heads = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
        return heads.transpose(1, 2), None  # one token attends to itself

    AttentionInterface.register(REACH, look)
    with _implementation(model, REACH), torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    if not found:
        raise ValueError(
            f"kv_bits: {type(model).__name__} keeps no keys and values that can be rounded here"
        )
    return found


def use_plain(model: "PreTrainedModel") -> None:
    """From now on the model itself attends to the rounded cache."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    model.set_attn_implementation(NAME)


def attention(  # noqa: PLR0913 - transformers' signature
    module: "AttentionLayer",
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query: (R, H, n, D), key and value: (R, K, n, D)."""
    unknown = sorted(k for k in others.keys() - packed.HARMLESS if others[k] is not None)
    if unknown or attention_mask is not None or query.shape[2] != key.shape[2]:
        raise ValueError(
            "kv_bits: attention over a rounded cache needs whole sequences of equal length"
            + (f", and does not know {', '.join(unknown)}" if unknown else "")
        )
    groups = query.shape[1] // key.shape[1]
    at = torch.arange(key.shape[2], device=key.device)
    seen = at <= at[:, None]
    if sliding_window is not None:
        seen &= at > at[:, None] - sliding_window

    def scores(keys: Tensor) -> Tensor:
        found = query @ keys.repeat_interleave(groups, 1).mT
        found = found * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        return found if softcap is None else (found / softcap).tanh() * softcap

    rule: Rounding | Recorder = module.rounding
    if isinstance(rule, Recorder):
        rule.take(key, value)
        weights = scores(key).masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), None
    rounded = rule(KV(key.transpose(0, 1), value.transpose(0, 1)), 0)
    old = rule.old(at[:, None], at)
    mixed = torch.where(old, scores(rounded.keys.transpose(0, 1)), scores(key))
    weights = mixed.masked_fill(~seen, -torch.inf).softmax(-1)
    out = weights.masked_fill(old, 0) @ value.repeat_interleave(groups, 1)
    old_values = rounded.values.transpose(0, 1).repeat_interleave(groups, 1)
    return (out + weights.masked_fill(~old, 0) @ old_values).transpose(1, 2), None


class Rotations:
    """The position encodings that attention layers were given, by position.

    They are taken from the layers' own arguments, and applied by the model's own function: turning
    back is turning by the opposite angle.
    """

    def __init__(self, model: "PreTrainedModel", modules: list["AttentionLayer"]) -> None:
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}  # kind of layer -> cos, sin (n, d)
        self._last: dict[str, object] = {}
        for module in modules:
            module.register_forward_pre_hook(self._take, with_kwargs=True)
        reached(model)  # so that what is missing shows at once

    def of(self, module: "AttentionLayer") -> Rotate:
        turn = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
        if turn is None or _kind(module) not in self._tables:
            raise ValueError(
                f"kvquant rounds keys before their position encoding, which "
                f"{type(module).__name__} does not have in a form known here"
            )
        kind = _kind(module)

        def rotate(X: Tensor, start: int, undo: bool) -> Tensor:
            tables = self._tables[kind]
            at = torch.arange(start, start + X.shape[2]).clamp(max=len(tables[0]) - 1)  # padding
            cos, sin = (part[None, at].float() for part in tables)
            if not undo:
                turned: Tensor = turn(X, X, cos, sin)[1]
                return turned
            size = cos.square() + sin.square()  # not 1 where rounded, or scaled
            back: Tensor = turn(X, X, cos / size, -sin / size)[1]
            return back

        return rotate

    def _take(self, module: "AttentionLayer", args: object, kwargs: dict[str, Tensor]) -> None:
        given, kind = kwargs.get("position_embeddings"), _kind(module)
        if given is None or self._last.get(kind) is given:
            return
        self._last[kind] = given
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(given[0].shape[1], device=given[0].device)[None]
        size = int(positions.max()) + 1
        tables = self._tables.get(kind)
        if tables is None or len(tables[0]) < size:
            room = 1 << size.bit_length()
            grown = [part.new_ones(room, part.shape[-1]) for part in given]
            for part, old in zip(grown, tables or (), strict=False):
                part[: len(old)] = old
            self._tables[kind] = tables = (grown[0], grown[1])
        for table, part in zip(tables, given, strict=True):
            table[positions[0]] = part[0]


def _kind(module: "AttentionLayer") -> str:
    kinds = getattr(module.config, "layer_types", None)
    return str(kinds[module.layer_idx]) if kinds else "all"


class Recorder:
    """Keeps what a layer is given as keys and values, with their gradients."""

    def __init__(self, rotate: Rotate | None) -> None:
        self.rotate = rotate
        self.kept: list[Recorded] = []
        self._held: tuple[Tensor, Tensor] | None = None

    def take(self, key: Tensor, value: Tensor) -> None:
        key.retain_grad()
        value.retain_grad()
        self._held = (key, value)

    def settle(self, stride: int) -> None:
        """After the backward pass: keep every `stride`-th token."""
        assert self._held is not None
        tensors = [t.detach().float() for t in self._held]
        tensors += [t.grad.float() for t in self._held if t.grad is not None]
        tensors = [t.transpose(0, 1) for t in tensors]  # (K, R, n, D)
        if self.rotate:  # a gradient turns as what it belongs to
            tensors[0], tensors[2] = (self.rotate(tensors[i], 0, True) for i in (0, 2))
        some = [t[:, :, ::stride].flatten(1, 2) for t in tensors]
        self.kept.append(Recorded(KV(*some[:2]), KV(*some[2:])))
        self._held = None


def record(
    model: "PreTrainedModel", chunks: Tensor, before_position: bool, tokens: int
) -> dict[int, Recorded]:
    """Layer -> about `tokens` keys and values of chunks (n, length), and the loss's gradients.

    The whole model is in memory, with the activations of one chunk.
    """
    modules = reached(model)
    rotations = Rotations(model, modules) if before_position else None
    recorders = [Recorder(rotations.of(module) if rotations else None) for module in modules]
    for module, recorder in zip(modules, recorders, strict=True):
        module.rounding = recorder
    use_plain(model)
    model.get_input_embeddings().weight.requires_grad_(True)  # the graph begins there
    for ids in chunks:
        output = model(input_ids=ids[None], labels=ids[None], use_cache=False)
        output.loss.backward()
        for recorder in recorders:
            recorder.settle(max(1, chunks.numel() // tokens))
        model.zero_grad(set_to_none=True)
    layers = [module.layer_idx for module in modules]
    return {n: _joined(each.kept) for n, each in zip(layers, recorders, strict=True)}


def _joined(parts: list[Recorded]) -> Recorded:
    kv, gradients = (
        KV(*(torch.cat(tensors, 1) for tensors in zip(*pairs, strict=True)))
        for pairs in zip(*parts, strict=True)
    )
    return Recorded(kv, gradients)


@contextmanager
def _implementation(model: "PreTrainedModel", name: str) -> Iterator[None]:
    """The model's attention is `name` for a while. ValueError: the model has its own."""
    before = _compat.attention_of(model)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
