"""What members cost: memory while they run, bytes on disk, and latency."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class VariantCost(NamedTuple):
    """What one variant costs."""

    tensors: Mapping[str, int]  # what tells a tensor in memory from others -> its bytes
    kv_bytes: int  # of its KV cache
    latency_ms: float  # NaN: not measured on the target
    stored: Mapping[str, int] = {}  # SHA-256 of a stored tensor -> its bytes


class Cost(NamedTuple):
    memory_gb: float  # 10^9 bytes: tensors in memory, shared ones once, and KV cache
    latency_ms: float
    stored_gb: float  # 10^9 bytes on disk, equal tensors once


def kv_bytes(model: Mapping[str, int], itemsize: int, context: int) -> int:
    """Bytes of the keys and values of `context` tokens; model: {`layers`, `kv_heads`, `width`}.
    Where they are rounded, they are held in the same type: no target here packs them.
    """
    return 2 * model["layers"] * model["kv_heads"] * model["width"] * itemsize * context


def total_cost(
    members: Sequence[VariantCost], latency: str, shares: Sequence[float] | None = None
) -> Cost:
    """What the members cost together.

    Equal tensors are held once; every member holds its own cache. `latency` is
    sequential (sum), parallel (slowest) or lazy (expected, `shares` being the share of samples
    for which each member is asked).
    """
    held = {key: size for member in members for key, size in member.tensors.items()}
    stored = {key: size for member in members for key, size in member.stored.items()}
    if latency != "lazy" or shares is None:
        shares = [1.0] * len(members)
    times = [s * member.latency_ms for s, member in zip(shares, members, strict=True)]
    return Cost(
        memory_gb=(sum(held.values()) + sum(member.kv_bytes for member in members)) / 1e9,
        latency_ms=max(times) if latency == "parallel" else sum(times),
        stored_gb=sum(stored.values()) / 1e9,
    )
