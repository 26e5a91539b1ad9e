"""GPTQ: what it equals, what it improves, what it does with a bad H."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ptsearch.quantize import gptq, grid, rtn
from ptsearch.quantize.grid import Quantized


def case(seed: int, rows: int = 8, columns: int = 128) -> tuple[Tensor, Tensor]:
    """A weight and the H of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, generator=generator)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    X = torch.randn(4 * columns, columns, generator=generator) @ (mix + 0.3)
    return W, X.T @ X / len(X)


def loss(W: Tensor, H: Tensor, found: Quantized) -> float:
    d = W - found.dense()
    return float(((d @ H) * d).sum())


@settings(max_examples=25)
@given(st.integers(0, 50), st.integers(2, 8), st.sampled_from([32, 64, -1]), st.booleans())
def test_with_independent_inputs_it_rounds_to_the_nearest(
    seed: int, bits: int, group_size: int, sym: bool
) -> None:
    W, _ = case(seed)
    factor = gptq.factor(torch.eye(W.shape[1]) * 3, 0.01, "none")
    found = gptq.quantize(W, factor, bits, group_size, sym)
    alone = grid.fit_weighted(W, torch.ones(W.shape[1]), bits, group_size, sym)
    assert torch.equal(found.grid.scale, alone.scale)
    assert torch.equal(found.grid.zero, alone.zero)
    assert torch.equal(found.codes, grid.quantize(W, alone))


@settings(max_examples=25)
@given(
    st.integers(0, 50),
    st.integers(2, 6),
    st.sampled_from([32, 64, 128, -1]),
    st.sampled_from(["none", "static"]),
)
def test_output_error_is_below_rounding(
    seed: int, bits: int, group_size: int, actorder: str
) -> None:
    W, H = case(seed)
    found = gptq.quantize(W, gptq.factor(H, 0.01, actorder), bits, group_size, False)
    assert loss(W, H, found) < loss(W, H, rtn.quantize(W, bits, group_size, False))


def published(W: Tensor, H: Tensor, bits: int, group_size: int, damp: float) -> Tensor:
    """Algorithm 1 of arXiv 2210.17323, through the inverse of H, in float64 and without blocks."""
    importance = H.diagonal()
    H = H.double() + damp * H.double().diagonal().mean() * torch.eye(len(H), dtype=torch.double)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    left, Q = W.double().clone(), torch.zeros_like(W)
    for k in range(W.shape[1]):
        if k % group_size == 0:
            group = slice(k, k + group_size)
            fitted = grid.fit_weighted(left[:, group].float(), importance[group], bits, -1, True)
        Q[:, k] = grid.dequantize(grid.quantize(left[:, [k]].float(), fitted), fitted)[:, 0]
        error = (left[:, k] - Q[:, k]) / U[k, k]
        left[:, k:] -= error[:, None] * U[k, k:]
    return Q


@pytest.mark.parametrize("columns", [64, 192])
def test_it_is_the_published_algorithm(columns: int) -> None:
    W, H = case(1, rows=6, columns=columns)
    found = gptq.quantize(W, gptq.factor(H, 0.01, "none"), 4, 32, True).dense()
    expected = published(W, H, 4, 32, 0.01)
    # float32 against float64: a tie that falls the other way changes a row from there on
    rows = (found - expected).abs().amax(1) < 1e-5
    assert rows.float().mean() >= 0.5
    d, e = W - found, W - expected
    assert float(((d @ H) * d).sum()) == pytest.approx(float(((e @ H) * e).sum()), rel=0.05)


def test_factor_reproduces_h() -> None:
    _, H = case(2)
    for actorder in ("none", "static"):
        factor = gptq.factor(H, 0.05, actorder)
        damped = H + 0.05 * H.diagonal().mean() * torch.eye(len(H))
        ordered = damped[factor.order][:, factor.order]
        whole = torch.linalg.inv(factor.U + torch.eye(len(H)))
        D = whole @ ordered @ whole.T
        off = D - torch.diag(D.diagonal())
        assert off.abs().max() < 1e-3 * D.diagonal().max()
    assert (H.diagonal()[factor.order].diff() <= 0).all()


def test_damping_is_raised_where_needed_and_told() -> None:
    H = torch.ones(64, 64)  # rank one
    H[0, 0] = 0.5  # and not even semidefinite
    factor = gptq.factor(H, 0.0, "none")
    assert factor.damp > 0
    W = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    found = gptq.quantize(W, factor, 4, 32, True)
    assert found.damp == factor.damp
    assert found.dense().isfinite().all()


def test_a_layer_that_nothing_reached_is_rounded() -> None:
    W, _ = case(3)
    factor = gptq.factor(torch.zeros(128, 128), 0.01, "static")
    found = gptq.quantize(W, factor, 3, 64, True)
    assert torch.equal(found.codes, grid.quantize(W, found.grid))


def test_a_hopeless_h_is_an_error() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        gptq.factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), 0.01, "none")
