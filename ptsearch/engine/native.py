"""All layers of a gathered pack in one call that never asks for Python's lock.

A server's batch is a few hundred tokens: of a small model, thirty layers of products that take a
few hundred microseconds each. Between them the CPU's caches hold weights and no code, so that a
line of Python takes many times its usual time, and lanes wait for each other at every one. Here the
layers are a Numba loop: torch's own products (`shim`), and `kernels` between them. For models like
Llama, in bf16 on a CPU, where a trial gives the bits that transformers gives.
"""

import itertools
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, finalize

import numba
import numpy as np
import torch
from torch import Tensor, nn

from ptsearch.engine import elementwise, kernels, packed, prefix, shim
from ptsearch.engine.elementwise import codes
from ptsearch.engine.gathered import Gathered
from ptsearch.engine.kernels import Codes, Places
from ptsearch.engine.kv_cache import KV
from ptsearch.engine.onednn import PackedLinear, PackedMLP
from ptsearch.engine.packed import Window

MODELS = {"llama", "mistral", "qwen2", "qwen3"}  # as transformers writes them
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
Q, K, V, O, GATE, UP, DOWN = range(7)  # noqa: E741 - the papers' letters
TILE = 16  # tokens of a forward are a multiple: oneDNN makes a kernel for each number that it meets


class Weights(NamedTuple):
    """Of a model: handles and addresses, layer by layer; 0 = none."""

    products: Places  # (layers, 7) handles
    biases: Places  # (layers, 7) handles
    norms: Places  # (2 layers + 1,) before attention and MLP, and behind the last: (d,) each
    head_norms: Places  # (layers, 2) of queries and of keys: (D,) each
    eps: np.float32
    names: Places  # "none", the activation, "mul"


class Way(NamedTuple):
    """Of a model that goes this way."""

    window: Window  # of every layer
    weights: Weights


_ways: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()


class Rows(NamedTuple):
    """What is known of some tokens, P of them with the zeros behind."""

    x: Codes  # (P, d)
    normed: Codes  # (P, d)
    attended: Codes  # (P, H D)
    handles: Places  # (2,) of `normed` and `attended`


class Room(NamedTuple):
    """Of a forward: what its layers use one after the other. Shapes as in `gathered`."""

    whole: Rows  # T tokens
    asked: Rows  # those that logits are read off, all that the last layer's MLP computes
    where: Places  # they are among all
    cos: Codes  # (T, D)
    sin: Codes
    queries: Codes  # (rows, D)
    query_place: Places  # (T x H,) rows of these
    own: Codes  # (K x T, D), keys
    own_place: Places  # (T x K,) rows of these
    answers: Codes  # (rows, D), as the queries
    taken: Places  # (2,) addresses of the rows' keys and values
    runs: Places  # (n, 5) what goes there, for `kernels.gather`
    sources: Places  # (layers, 2, s, 3) from where
    kept: Places  # (layers, 2, k) addresses of copies for later forwards
    kept_runs: Places  # (k, 5) what goes there
    buckets: Places  # (buckets, 5) handles: queries, keys turned, values, scores, answers
    scores: Places  # (buckets, 5): address, rows, keys of a row, where it begins and ends in:
    first: Places  # the first key that each query sees
    end: Places  # the one behind its last
    scale: np.float32


def forward(model: Any, pack: packed.Pack | Gathered, rows: Tensor) -> Tensor:
    """`packed.forward`, in this way where it can be."""
    if not isinstance(pack, Gathered) or not _fits(model, pack.ids.numel()):
        return packed.forward(model, pack.ids, pack.positions, rows, pack)
    with shim.handles() as handles:
        room, normed = _room(model, pack, rows, handles)
        if not _layers(shim.functions(), _ways[model].weights, room):
            raise RuntimeError("a product failed in torch")
    logits: Tensor = model.lm_head(normed[: len(rows)])
    return logits


def _rows(model: Any, tokens: int, handles: shim.Handles) -> tuple[Rows, Tensor, Tensor]:
    """Room for so many tokens, its `x` and its `normed`."""
    padded, width = max(1, -(-tokens // TILE)) * TILE, model.config.hidden_size
    like = model.model.embed_tokens.weight
    x, normed = like.new_zeros(padded, width), like.new_empty(padded, width)
    attended = like.new_zeros(padded, model.model.layers[0].self_attn.o_proj.in_features)
    made = np.array([handles.of(normed), handles.of(attended)])
    return Rows(codes(x), codes(normed), codes(attended), made), x, normed


def _fits(model: Any, tokens: int) -> bool:
    few = tokens * model.config.hidden_size <= elementwise.FEW
    return model in _ways and (few or torch.get_num_threads() == 1)


def _weights(model: Any, handles: shim.Handles) -> Weights:
    layers = model.model.layers
    linears = [_linears(layer) for layer in layers]
    norms = [n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    head_norms = [[_address(norm, handles) for norm in _head_norms(layer)] for layer in layers]
    return Weights(
        products=np.array([[handles.of(each.weight) for each in row] for row in linears]),
        biases=np.array([[handles.of(each.bias) for each in row] for row in linears]),
        norms=np.array([_address(norm, handles) for norm in (*norms, model.model.norm)]),
        head_norms=np.array(head_norms),
        eps=norms[0].eps,
        names=np.array([shim.name(n) for n in ("none", linears[0][GATE].activation, "mul")]),
    )


def _linears(layer: Any) -> list[Any]:
    """In the order of `Weights`."""
    attention = [getattr(layer.self_attn, part) for part in ATTENTION]
    return attention + [getattr(layer.mlp, part) for part in MLP]


def _head_norms(layer: Any) -> list[Any]:
    return [getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm")]


def _address(norm: Any, handles: shim.Handles) -> int:
    """Of a norm's weights, which stay as long as the handles."""
    if norm is None:
        return 0
    weight = norm.norm.weight.detach()
    handles.of(weight)
    return int(weight.data_ptr())


def _room(model: Any, pack: Gathered, rows: Tensor, handles: shim.Handles) -> tuple[Room, Tensor]:
    """And what is behind the last norm of the rows."""
    base, window, of = model.model, _ways[model].window, handles.of
    whole, x, _ = _rows(model, pack.ids.numel(), handles)
    x[: pack.ids.numel()] = nn.functional.embedding(pack.ids[0], base.embed_tokens.weight)
    asked, _, normed = _rows(model, len(rows), handles)
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    tokens, width = pack.ids.numel(), base.layers[0].self_attn.head_dim
    own = x.new_empty(kv_heads, tokens, width)
    kept = _keep(pack, len(base.layers), own)  # the sources may be among it
    layout = pack.layout(heads, own)
    bounds = [pack.seen(n, heads // kv_heads, window) for n in range(len(layout.rooms))]
    ends = np.cumsum([0, *(len(first) for first, _ in bounds)])
    cos, sin = base.rotary_emb(own, pack.positions)
    room = Room(
        whole=whole,
        asked=asked,
        where=rows.contiguous().numpy(),
        cos=codes(cos[0]),
        sin=codes(sin[0]),
        queries=codes(layout.queries),
        query_place=layout.order.back.numpy(),
        own=codes(own).reshape(-1, width),
        own_place=np.arange(kv_heads * tokens).reshape(kv_heads, tokens).T.flatten(),
        answers=codes(layout.out),
        taken=np.array([layout.keys.data_ptr(), layout.values.data_ptr()]),
        runs=layout.runs,
        sources=_sources(pack, len(base.layers), own),
        kept=kept,
        kept_runs=np.array(
            [[0, n, len(pack.before), first, n] for first, n in pack.kept.values()], np.int64
        ).reshape(-1, 5),
        buckets=np.array(
            [
                [of(r.queries), of(r.keys.mT), of(r.values), of(r.scores), of(r.out)]
                for r in layout.rooms
            ]
        ),
        scores=np.array(
            [
                [r.scores.data_ptr(), r.scores[..., 0].numel(), r.scores.shape[-1], *where]
                for r, where in zip(layout.rooms, itertools.pairwise(ends), strict=True)
            ]
        ),
        first=np.concatenate([first.numpy() for first, _ in bounds]),
        end=np.concatenate([end.numpy() for _, end in bounds]),
        scale=np.float32(window.scale),
    )
    return room, normed


def _keep(pack: Gathered, layers: int, own: Tensor) -> Places:
    """Make room for what is kept of this forward: its addresses (layers, 2, segments)."""
    for number, (_, count) in pack.kept.items():
        room = own.new_empty(layers, 2, len(own), count, own.shape[2])
        pack.store[number] = packed.Layers((layer, KV(*kv)) for layer, kv in enumerate(room))
    stored = [pack.store[number] for number in pack.kept]
    found = np.empty((layers, 2, len(stored)), np.int64)
    for place, each in enumerate(stored):
        found[..., place] = each.places[..., 0]
    return found


def _sources(pack: Gathered, layers: int, own: Tensor) -> Places:
    """Where each layer's keys and values are, for `kernels.gather`; at last this forward's own."""
    row = own.shape[2] * own.itemsize
    found = np.empty((layers, 2, len(pack.before) + 1, 3), np.int64)
    for place, number in enumerate(pack.before):
        found[:, :, place] = pack.store[number].places
    found[:, 0, -1] = own.data_ptr(), own.shape[1] * row, row
    found[:, 1, -1] = 0, row, own.shape[0] * row  # as the product gives them
    return found


@numba.njit(nogil=True, cache=True)
def _layers(f: Places, model: Weights, room: Room) -> bool:
    """From the embeddings to the last norm of what is asked; False: a product failed."""
    x, last = room.whole.x, len(model.products) - 1
    kernels.norm(x, _codes(model.norms[0], x), model.eps, room.whole.normed)
    for layer in range(last + 1):
        made, rows = np.zeros(7, np.int64), room.whole
        done = _attend(f, made, model, room, layer)
        if layer == last:
            rows = room.asked
            kernels.take(x, room.where, rows.x)
            kernels.take(room.whole.attended, room.where, rows.attended)
        done = done and _add(f, made, model, rows, layer)
        shim.delete_all(f, made)
        if not done:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _add(f: Places, made: Places, model: Weights, rows: Rows, layer: int) -> bool:
    """What was attended to, and the MLP of it; and the norm behind the layer."""
    plain, activation, mul = model.names
    weights, biases = model.products[layer], model.biases[layer]
    normed, attended = rows.handles
    made[O] = shim.linear(f, attended, weights[O], biases[O], plain)
    if not made[O]:
        return False
    kernels.add(rows.x, _numbers(f, made[O], rows.x))
    kernels.norm(rows.x, _codes(model.norms[2 * layer + 1], rows.x), model.eps, rows.normed)
    made[GATE] = shim.linear(f, normed, weights[GATE], biases[GATE], activation)
    made[UP] = shim.linear_times(f, normed, made[GATE], weights[UP], biases[UP], mul)
    made[DOWN] = shim.linear(f, made[UP], weights[DOWN], biases[DOWN], plain)
    if not made[DOWN]:
        return False
    kernels.add(rows.x, _numbers(f, made[DOWN], rows.x))
    kernels.norm(rows.x, _codes(model.norms[2 * layer + 2], rows.x), model.eps, rows.normed)
    return True


@numba.njit(nogil=True, cache=True)
def _attend(f: Places, made: Places, model: Weights, room: Room, layer: int) -> bool:
    """A layer's attention; `made`: what its products give, in the order of their weights."""
    weights, biases = model.products[layer], model.biases[layer]
    for part in (Q, K, V):
        made[part] = shim.linear(
            f, room.whole.handles[0], weights[part], biases[part], model.names[0]
        )
    if not made[:O].all():
        return False
    tokens, width = room.cos.shape
    kv_heads = len(room.own) // tokens
    q = shim.codes_at(shim.data(f, made[Q]), room.query_place.size, width)
    k = shim.codes_at(shim.data(f, made[K]), room.own_place.size, width)
    norms = model.head_norms[layer]
    if norms[0]:
        kernels.norm(q, shim.codes_at(norms[0], 1, width)[0], model.eps, q)
        kernels.norm(k, shim.codes_at(norms[1], 1, width)[0], model.eps, k)
    shape = (tokens, -1, width)
    kernels.rotate(q.reshape(shape), room.cos, room.sin, room.query_place, room.queries)
    kernels.rotate(k.reshape(shape), room.cos, room.sin, room.own_place, room.own)
    sources = room.sources[layer]
    sources[1, -1, 0] = shim.data(f, made[V])
    for part in range(2):
        for n in range(len(room.kept_runs)):
            run, to = room.kept_runs[n : n + 1], room.kept[layer, part, n]
            kernels.gather(run, sources[part], kv_heads, 2 * width, to)
        kernels.gather(room.runs, sources[part], kv_heads, 2 * width, room.taken[part])
    for n in range(len(room.buckets)):
        queries, keys, values, scores, answers = room.buckets[n]
        address, rows, length, low, high = room.scores[n]
        if not shim.bmm(f, queries, keys, scores):
            return False
        numbers = shim.codes_at(address, rows, length)
        kernels.softmax_seen(numbers, room.first[low:high], room.end[low:high], room.scale)
        if not shim.bmm(f, scores, values, answers):
            return False
    attended = room.whole.attended.reshape(-1, width)
    kernels.take(room.answers, room.query_place, attended)
    return True


@numba.njit(nogil=True, cache=True)
def _codes(weight: int, x: Codes) -> Codes:
    """The weights of x's norm."""
    return shim.codes_at(weight, 1, x.shape[1])[0]


@numba.njit(nogil=True, cache=True)
def _numbers(f: Places, handle: int, x: Codes) -> Codes:
    """Of a tensor of x's shape."""
    return shim.codes_at(shim.data(f, handle), x.shape[0], x.shape[1])


def enable(model: Any) -> None:
    """Let gathered packs of `model` go this way, if torch has what it needs and the bits are those
    that transformers gives. What its weights share with other models they share already.
    """
    if not _is_known(model) or not len(shim.functions()):
        return
    threads, handles = torch.get_num_threads(), shim.Handles()
    torch.set_num_threads(1)  # as in a lane: then both ways have the same kernels
    try:
        usual, windows = _try(model)
        if len(set(windows)) > 1 or windows[0].softcap is not None:
            return
        _ways[model] = Way(windows[0], _weights(model, handles))
        found, _ = _try(model)
        if not torch.equal(found.nan_to_num(), usual.nan_to_num()):
            del _ways[model]
    finally:
        torch.set_num_threads(threads)
        finalize(model, handles.delete).atexit = False


def _is_known(model: Any) -> bool:
    """Whether the model has just the parts that are used here."""
    if not type(model).__module__.startswith("transformers.models."):
        return False
    if model.config.model_type not in MODELS or model.dtype != torch.bfloat16:
        return False
    layers = model.model.layers
    norms = [n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    norms += [n for layer in layers for n in _head_norms(layer) if n] + [model.model.norm]
    turned = 2 * model.model.rotary_emb.inv_freq.numel()
    return (
        model.device.type == "cpu"
        and all(isinstance(layer.mlp, PackedMLP) for layer in layers)
        and all(isinstance(each, PackedLinear) for layer in layers for each in _linears(layer))
        and all(isinstance(norm, elementwise.Norm) for norm in norms)
        and len({norm.eps for norm in norms}) == 1
        and all(layer.self_attn.head_dim == turned for layer in layers)
        and not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
        and not any(hasattr(layer.self_attn, "rounding") for layer in layers)
    )


@torch.inference_mode()
def _try(model: Any) -> tuple[Tensor, list[Window]]:
    """Logits of sequences and of what they begin with, and how the layers attend."""
    vocabulary = model.config.vocab_size
    alike = tuple(7 * k % vocabulary for k in range(20))
    sequences = [(*alike, *(k * n % vocabulary for k in range(3, 3 + n))) for n in (5, 9, 40)]
    plan = prefix.share(sequences, max_run=12, min_saving=1)
    begins = [n for n in range(len(plan.segments)) if plan.last[n] > n]
    rest = [n for n in range(len(plan.segments)) if plan.last[n] == n]
    store: packed.Store = {}
    logits, windows = [], list[Window]()
    for part, keep in ((begins, begins), (rest, [])):
        pack = Gathered(plan, part, keep, store, model)
        logits.append(forward(model, pack, torch.arange(pack.ids.numel())))
        windows += pack.windows.values()
    return torch.cat(logits), windows
