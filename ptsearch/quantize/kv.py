"""Methods that round keys and values: KIVI (Liu et al., arXiv 2402.02750), KVQuant (Hooper et al.,
arXiv 2401.18079) and WKVQuant (Yue et al., arXiv 2402.12065).

KIVI and KVQuant leave the weights dense; WKVQuant also quantizes them, here by GPTQ. Values are
rounded and kept as floats. A query sees old keys and values rounded and recent ones in full
(`Rounding.old` says which); the keys of `group` tokens, counted from the sequence's start, get old
together. Shapes: K key/value heads, R sequences, n consecutive tokens, D head dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptsearch.quantize import gptq
from ptsearch.quantize.method import Method

GROUP = 32  # tokens (KIVI's keys) or channels (values) that share a scale
OUTLIERS = 0.01  # of KVQuant's keys and values stay in full
KMEANS_VALUES = 20_000  # of one layer that a data type is fitted to


class KV(NamedTuple):
    """Keys and values, after position encoding. (K, tokens, D), or with more dimensions before."""

    keys: Tensor
    values: Tensor


Rotate = Callable[[Tensor, int, bool], Tensor]  # X (K, R, n, D), its first position, undo


@dataclass(frozen=True)
class Rounding:
    """How one attention layer rounds its cache."""

    method: str  # kivi | kvquant | wkvquant
    bits: int
    window: int  # the newest tokens that are seen in full
    tensors: Mapping[str, Tensor]  # what was calibrated for this layer
    rotate: Rotate | None = None  # position encoding; KVQuant rounds the keys before it

    def __call__(self, kv: KV, start: int) -> KV:
        """All of these rounded; (K, R, n, D) each, the first token at position `start`.

        `start` and n are multiples of `align`; of a last group that is not full nothing is valid.
        """
        rounded = ROUND[self.method](self, KV(kv.keys.float(), kv.values.float()), start)
        return KV(rounded.keys.to(kv.keys.dtype), rounded.values.to(kv.values.dtype))

    @property
    def align(self) -> int:
        """Tokens that are rounded together."""
        return GROUP if self.method == "kivi" else 1

    def old(self, at: Tensor, key: Tensor) -> Tensor:
        """Whether a query at position `at` sees the key at position `key` rounded."""
        rounded = (key // self.align + 1) * self.align + self.recent <= at + 1
        return rounded & (key >= 1) if self.method == "kvquant" else rounded

    @property
    def recent(self) -> int:
        """WKVQuant rounds only what is past; KVQuant keeps the first token, to which all attend."""
        return max(self.window, 1) if self.method == "wkvquant" else self.window


def channel_group(width: int) -> int:
    """Channels of a token that share a scale: GROUP, or all where it does not divide them."""
    return GROUP if width % GROUP == 0 else width


def round_span(X: Tensor, bits: int, dim: int) -> Tensor:
    """X on the asymmetric grid that spans it along `dim`; float16 scale and least value."""
    low, high = X.amin(dim, keepdim=True), X.amax(dim, keepdim=True)
    low = low.half().float()
    scale = ((high - low) / (2**bits - 1)).half().float()
    scale = torch.where(scale > 0, scale, 1.0)
    return ((X - low) / scale).round_().clamp_(0, 2**bits - 1).mul_(scale).add_(low)


def _kivi(rounding: Rounding, kv: KV, start: int) -> KV:
    """Keys per channel over groups of tokens, values per token."""
    assert start % GROUP == 0, f"a group of tokens was cut at {start=}"
    whole = kv.keys.shape[-2] // GROUP * GROUP
    groups = kv.keys[..., :whole, :].unflatten(-2, (-1, GROUP))
    keys = round_span(groups, rounding.bits, -2).flatten(-3, -2)
    keys = torch.cat([keys, kv.keys[..., whole:, :]], -2)
    return KV(keys, _per_token(kv.values, rounding.bits))


def _per_token(X: Tensor, bits: int) -> Tensor:
    groups = X.unflatten(-1, (-1, channel_group(X.shape[-1])))
    return round_span(groups, bits, -1).flatten(-2)


def _kvquant(rounding: Rounding, kv: KV, start: int) -> KV:
    """Keys per channel before their position encoding, values per token over all heads, both on a
    fitted data type and with outliers in full.
    """
    assert rounding.rotate is not None
    bare = rounding.rotate(kv.keys, start, True)
    center, half = (rounding.tensors[f"key_{name}"][:, None, None] for name in ("center", "half"))
    keys = rounding.rotate(
        on_codes(bare, center, half, rounding.tensors["key_codes"]), start, False
    )
    center, half = value_range(kv.values)
    return KV(keys, on_codes(kv.values, center, half, rounding.tensors["value_codes"]))


def on_codes(X: Tensor, center: Tensor, half: Tensor, codes: Tensor) -> Tensor:
    """X with (X - center) / half at the nearest of the sorted codes (2^bits,), outliers as is."""
    scaled = ((X - center) / half).contiguous()
    nearest = codes[torch.bucketize(scaled, (codes[1:] + codes[:-1]) / 2)]
    return torch.where(scaled.abs() > 1, X, nearest * half + center)


def value_range(values: Tensor) -> tuple[Tensor, Tensor]:
    """Center and half width of each token's values without its outliers; (1, R, n, 1) each."""
    tokens = values.permute(1, 2, 0, 3).flatten(2)  # (R, n, K x D)
    count = _kept(tokens.shape[-1]) + 1
    high = tokens.topk(count).values[..., -1]
    low = tokens.topk(count, largest=False).values[..., -1]
    return _center_half(low[None, ..., None], high[None, ..., None])


def _kept(count: int) -> int:
    """Outliers at either end of `count` values."""
    return max(1, round(OUTLIERS / 2 * count))


def _center_half(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return (high + low) / 2, ((high - low) / 2).clamp(min=1e-6)


def _wkvquant(rounding: Rounding, kv: KV, start: int) -> KV:
    """Channels evened out as calibrated, then token by token."""
    rounded = []
    for name, X in kv._asdict().items():
        center, half = (rounding.tensors[f"{name[:-1]}_{key}"][:, None, None] for key in RANGE)
        rounded.append(_per_token((X - center) / half, rounding.bits) * half + center)
    return KV(*rounded)


RANGE = ("center", "half")
ROUND = {"kivi": _kivi, "kvquant": _kvquant, "wkvquant": _wkvquant}


class Recorded(NamedTuple):
    """What calibration saw of one layer, (K, n, D) each; gradients are of the model's loss."""

    kv: KV
    gradients: KV


def fit(method: str, bits: int, recorded: Recorded, seed: int) -> dict[str, Tensor]:
    """The tensors of a `Rounding`; KVQuant's recorded keys are those before position encoding."""
    if method == "kivi":
        return {}
    if method == "kvquant":
        return _fit_kvquant(bits, recorded, seed)
    ranges: dict[str, Tensor] = {}
    for name, X in recorded.kv._asdict().items():
        center_half = _center_half(X.amin(1), X.amax(1))
        ranges |= {f"{name[:-1]}_{key}": t for key, t in zip(RANGE, center_half, strict=True)}
    return ranges


def _fit_kvquant(bits: int, recorded: Recorded, seed: int) -> dict[str, Tensor]:
    """Ranges of the keys' channels without outliers, and a data type each for keys and values."""
    keys, values = recorded.kv
    ends = torch.tensor([OUTLIERS / 2, 1 - OUTLIERS / 2])
    center, half = _center_half(*keys.quantile(ends, 1))
    of_values = value_range(values[:, None])
    return {
        "key_center": center,
        "key_half": half,
        "key_codes": data_type(
            keys, center[:, None], half[:, None], recorded.gradients.keys, bits, seed
        ),
        "value_codes": data_type(
            values, of_values[0][:, 0], of_values[1][:, 0], recorded.gradients.values, bits, seed
        ),
    }


def data_type(
    X: Tensor, center: Tensor, half: Tensor, gradient: Tensor, bits: int, seed: int
) -> Tensor:
    """Codes (2^bits,) in [-1, 1], sorted: of the least error weighted by the Fisher information.

    K-means of (x - center) / half with weights (gradient half)^2 (equation 1 of KVQuant).
    """
    from sklearn.cluster import KMeans

    scaled = ((X - center) / half).flatten()
    weight = (gradient * half).square().flatten()
    inside = (scaled.abs() <= 1).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    sample = inside[torch.randperm(len(inside), generator=generator)[:KMEANS_VALUES]]
    weight = weight[sample] + 1e-12 + 1e-3 * weight[sample].mean()  # no value is free
    points = scaled[sample, None].double().numpy()
    means = KMeans(2**bits, n_init=1, random_state=seed)
    means.fit(points, sample_weight=(weight / weight.mean()).double().numpy())
    return torch.from_numpy(means.cluster_centers_[:, 0]).float().sort().values


METHODS = (
    Method("kivi", storage="dense", kv=True),
    Method("kvquant", storage="dense", kv=True, needs=("kv",)),
    Method("wkvquant", gptq.solve, kv=True, needs=("hessian", "kv"), agree_on=gptq.AGREE_ON),
)
