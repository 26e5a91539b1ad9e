"""Codebooks, trellises, sums of entries: the optimum by enumeration, and what it is worth."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptsearch.models.coded import Coded
from ptsearch.pool import writer
from ptsearch.quantize import gptq, nested, qtip, rtn, squeezellm
from ptsearch.quantize.grid import Quantized
from ptsearch.quantize.layer import LinearGroup
from ptsearch.variant import Variant


def case(seed: int, rows: int = 64, columns: int = 256) -> tuple[Tensor, Tensor]:
    """A weight with heavy tails and the H of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator)
    W *= torch.rand(rows, columns, generator=generator).clamp(min=0.05) ** -0.3
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = torch.randn(4 * columns, columns, generator=generator) @ (mix + torch.eye(columns))
    return W, X.T @ X / len(X)


def loss(W: Tensor, H: Tensor, found: Quantized | Coded) -> float:
    d = W - found.dense()
    return float(((d @ H) * d).sum())


def stored_bits(found: Quantized | Coded) -> float:
    """A weight, everything that is stored counted."""
    tensors = writer.tensors("w", found, Variant("tiny", "0"))
    stored = sum(t.nbytes for name, t in tensors.items() if not name.endswith("shape"))
    return 8 * stored / found.dense().numel()


def cost(x: np.ndarray, h: np.ndarray, centres: np.ndarray) -> float:
    return float((h * ((x[:, None] - centres) ** 2).min(1)).sum())


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 4))
def test_kmeans_is_the_optimum(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x, h = np.sort(rng.normal(size=n)), rng.random(n) * (rng.random(n) < 0.8)
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(n + 1), k - 1):
        edges, centres = [0, *cuts, n], []
        for start, stop in itertools.pairwise(edges):
            if h[start:stop].sum() > 0:
                centres.append(np.average(x[start:stop], weights=h[start:stop]))
        best = min(best, cost(x, h, np.array(centres or [0.0])))
    found = squeezellm.kmeans(x, h, k)
    assert (np.diff(found) >= 0).all()
    assert cost(x, h, found) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("bits", [1, 2])
def test_the_path_through_the_trellis_is_the_optimum(bits: int) -> None:
    rng = np.random.default_rng(bits)
    states, length = 16, 4
    values = rng.normal(size=states).astype(np.float32)
    x, h = rng.normal(size=(20, length)).astype(np.float32), rng.random((20, length), np.float32)
    found = qtip.viterbi(x, h, values, bits)
    assert ((found[:, 1:] >> bits) == found[:, :-1] % (states >> bits)).all()
    branches = range(1 << bits)
    for wanted, weight, path in zip(x, h, found, strict=True):
        best = np.inf
        for state in range(states):
            for steps in itertools.product(branches, repeat=length - 1):
                tried = [state]
                for step in steps:
                    tried.append((tried[-1] << bits | step) % states)
                best = min(best, float((weight * (wanted - values[tried]) ** 2).sum()))
        assert float((weight * (wanted - values[path]) ** 2).sum()) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    ("method", "rows", "columns"), [("qtip", 64, 256), ("squeezellm", 64, 2048)]
)
def test_error_is_below_rounding_at_no_more_bytes(
    method: str, rows: int, columns: int, bits: int
) -> None:
    W, H = case(bits, rows, columns)
    solvers: dict[str, Callable[..., list[dict[str, Coded]]]] = {
        "qtip": qtip.solve,
        "squeezellm": squeezellm.solve,
    }
    if method == "squeezellm":  # its own objective: errors weighted by the Fisher diagonal
        H = torch.diag(H.diagonal())
    variant = Variant("m", "r", method, bits=bits, damp_percent=0.01)
    problem = LinearGroup({"w": W}, H, {"w": H.diagonal().expand_as(W).contiguous()})
    found = solvers[method](problem, [variant])[0]["w"]
    plain = rtn.quantize(W, bits, 32, True)
    assert stored_bits(found) <= stored_bits(plain)
    assert loss(W, H, found) < loss(W, H, plain)


def test_every_width_reads_the_same_codes_and_more_bits_are_closer() -> None:
    W, H = case(5, 32, 256)
    pool = [Variant("m", "r", "nested", bits=k, group_size=64) for k in (3, 4, 6, 8)]
    found = [linears["w"] for linears in nested.solve(LinearGroup({"w": W}, H, {}), pool)]
    for narrow, wide in itertools.pairwise(found):
        for plane in range(narrow.bits):
            assert torch.equal(narrow.tensors[f"plane{plane}"], wide.tensors[f"plane{plane}"])
        assert loss(W, H, wide) < loss(W, H, narrow)
    assert loss(W, H, found[0]) < loss(W, H, rtn.quantize(W, 3, 64, False))


def test_scales_of_a_width_are_the_optimum_for_its_codes() -> None:
    W, H = case(6, 4, 64)
    X = torch.randint(-4, 4, W.shape, generator=torch.Generator().manual_seed(0)).float()
    scale, offset = nested.fit(W, X, H, 2)

    def error(scale: Tensor, offset: Tensor) -> float:
        Q = X.unflatten(1, (2, -1)) * scale[..., None] + offset[..., None]
        d = W - Q.flatten(1)
        return float(((d @ H) * d).sum())

    least = error(scale, offset)
    for part in (scale, offset):
        for change in (-0.01, 0.01):
            for index in np.ndindex(tuple(part.shape)):
                part[index] += change
                assert error(scale, offset) > least
                part[index] -= change


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_random_rounding_is_right_in_the_mean(method: str) -> None:
    W, H = case(7, 8, 64)
    W[:, 0], W[:, 1] = 9, -9  # span the range; what is rounded within it is never cut off
    H[:2, 2:] = H[2:, :2] = 0
    solve = {"rtn": rtn.solve, "gptq": gptq.solve}[method]
    pool = [
        Variant(
            "m", "r", method, bits=8, group_size=-1, sym=False, damp_percent=0.1, rounding_seed=n
        )
        for n in range(300)
    ]
    found = [linears["w"] for linears in solve(LinearGroup({"w": W}, H, {}), pool)]
    step = found[0].grid.scale
    values = torch.stack([one.dense() for one in found])[:, :, 2:]
    d, spread = (values.mean(0) - W[:, 2:]) / step, values.std(0) / step
    assert (d.abs() <= 5 * spread / len(pool) ** 0.5 + 0.02).all()
    assert (spread < 1).all()
    assert not torch.equal(found[0].codes, found[1].codes)


def test_rounding_seeds_are_reproducible_and_none_is_nearest() -> None:
    W, H = case(8, 8, 64)
    problem = LinearGroup({"w": W}, H, {})
    one = Variant("m", "r", "gptq", bits=4, group_size=32, rounding_seed=3)
    again, once = (gptq.solve(problem, [one])[0]["w"] for _ in range(2))
    assert torch.equal(again.codes, once.codes)
    plain = gptq.quantize(W, gptq.factor(H, 0.0, "none"), 4, 32, True)
    nearest = gptq.solve(problem, [Variant("m", "r", "gptq", bits=4, group_size=32)])[0]["w"]
    assert torch.equal(nearest.codes, plain.codes)
