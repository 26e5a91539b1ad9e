"""Linears and gated MLPs in oneDNN's layout, against the modules that they stand for."""

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ptsearch import engine
from ptsearch.config import EngineConfig
from ptsearch.engine import _compat, onednn


class Mlp(nn.Module):
    """The gated MLP of Llama and its kin."""

    def __init__(self, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(48, 96, bias)
        self.up_proj = nn.Linear(48, 96, bias)
        self.down_proj = nn.Linear(96, 48, bias)
        self.act_fn = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Other(Mlp):
    """The same parts, put together in another way."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


def model(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    whole = nn.Module()
    whole.device = torch.device("cpu")
    whole.mlp = part
    return whole.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "activation", "fused"),
    [(Mlp, "silu", True), (Mlp, "gelu_pytorch_tanh", False), (Other, "silu", False)],
)
def test_a_gated_mlp_gives_the_same(kind, activation, fused, bias, dtype) -> None:
    torch.manual_seed(0)
    if not _compat.can_reorder(dtype):
        pytest.skip(f"this processor has no oneDNN kernels for {dtype}")
    whole = model(kind(activation, bias), dtype)
    x = torch.randn(1, 7, 48, dtype=dtype)
    with torch.inference_mode():
        expected = whole.mlp(x)
        onednn.prepack(whole)
        found = whole.mlp(x)
    assert isinstance(whole.mlp, onednn.PackedMLP) == fused
    assert isinstance(whole.mlp.up_proj, onednn.PackedLinear)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=near)


def test_a_shared_weight_stays_as_it_is() -> None:
    whole = model(nn.Embedding(10, 48), torch.float32)
    whole.head, whole.free = nn.Linear(48, 10, bias=False), nn.Linear(48, 10)
    whole.head.weight = whole.mlp.weight
    onednn.prepack(whole)
    assert type(whole.head) is nn.Linear
    assert isinstance(whole.free, onednn.PackedLinear)


@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_not_rounded_to_sixteen_bits(bias) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 300, bias, dtype=torch.bfloat16)
    layer.weight.data *= 20
    x = torch.randn(1, 5, 64, dtype=torch.bfloat16)
    head = onednn.Head(layer)
    with torch.inference_mode():
        truth = x.double() @ layer.weight.double().T + (layer.bias.double() if bias else 0)
        plain = (layer(x) - truth).abs().max()
        assert (head(x) - truth).abs().max() < plain / 50
        assert head(x[:, :0]).shape == (1, 0, 300)


def test_a_model_of_sixteen_bits_gets_a_head_that_is_not_rounded(tiny_model) -> None:
    half, full = (engine.load(tiny_model, EngineConfig(dtype=t)) for t in ("bfloat16", "float32"))
    ids = [[3, 1, 4, 1, 5], [9, 2, 6]]
    found, truth = (
        engine.score(each, ids, [[[1], [2]]] * 2, lambda *_: None) for each in (half, full)
    )
    assert isinstance(half.runner.model.get_output_embeddings(), onednn.Head)
    assert type(full.runner.model.get_output_embeddings()) is nn.Linear
    assert found[0] == pytest.approx(truth[0], abs=0.1)


def test_without_kernels_a_model_stays_as_it_is(monkeypatch) -> None:
    monkeypatch.setattr(_compat, "can_reorder", lambda dtype: False)
    whole = model(nn.Linear(48, 96), torch.bfloat16)
    onednn.prepack(whole)
    assert all(type(part) is not onednn.PackedLinear for part in whole.modules())
