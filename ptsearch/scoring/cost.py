"""What members cost: memory of stored tensors and KV cache, and latency."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ptsearch.store import KvStorage


class VariantCost(NamedTuple):
    """What one variant costs."""

    tensors: Mapping[str, int]  # SHA-256 of a stored tensor -> its bytes
    kv_bytes: int  # of its KV cache
    latency_ms: float


class Cost(NamedTuple):
    memory_gb: float  # 10^9 bytes: stored tensors, shared ones once, and KV cache
    latency_ms: float


def kv_bytes(model: Mapping[str, int], kv: KvStorage, context: int) -> int:
    """Bytes of the keys and values of `context` tokens; model: {`layers`, `kv_heads`, `width`}."""
    full = min(context, kv.window)
    bits = 16 * full + kv.bits * (context - full)
    return round(2 * model["layers"] * model["kv_heads"] * model["width"] * bits / 8)


def total_cost(
    members: Sequence[VariantCost], latency: str, shares: Sequence[float] | None = None
) -> Cost:
    """What the members cost together.

    Tensors with equal checksums are stored once; every member holds its own cache. `latency` is
    sequential (sum), parallel (slowest) or lazy (expected, `shares` being the share of samples
    for which each member is asked).
    """
    tensors = {digest: size for member in members for digest, size in member.tensors.items()}
    if latency != "lazy" or shares is None:
        shares = [1.0] * len(members)
    times = [s * member.latency_ms for s, member in zip(shares, members, strict=True)]
    return Cost(
        memory_gb=(sum(tensors.values()) + sum(member.kv_bytes for member in members)) / 1e9,
        latency_ms=max(times) if latency == "parallel" else sum(times),
    )
