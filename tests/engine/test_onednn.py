"""Linear layers in oneDNN's layout, and the fp32 head, against the modules they replace."""

import pytest
import torch
from torch import nn

from ptsearch import engine
from ptsearch.config import EngineConfig
from ptsearch.engine import _compat, onednn


def model(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    whole = nn.Module()
    whole.device = torch.device("cpu")
    whole.mlp = part
    return whole.to(dtype)


@pytest.fixture
def packs(monkeypatch) -> None:
    """This processor packs fp32 weights, whether that pays or not."""
    monkeypatch.setattr(_compat, "can_reorder", lambda dtype: dtype == torch.float32)


@pytest.mark.usefixtures("packs")
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_the_same(bias) -> None:
    torch.manual_seed(0)
    whole = model(nn.Sequential(nn.Linear(48, 96, bias), nn.SiLU()), torch.float32)
    x = torch.randn(1, 7, 48)
    with torch.inference_mode():
        expected = whole.mlp(x)
        onednn.prepack(whole)
        found = whole.mlp(x)
    assert isinstance(whole.mlp[0], onednn.PackedLinear)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("packs")
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
