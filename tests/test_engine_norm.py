"""RMS norms in fewer passes, against transformers' own."""

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ptsearch.engine import norm


class CenteredRMSNorm(LlamaRMSNorm):
    """Has the parts of an RMS norm, and is none."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "swapped"), [(LlamaRMSNorm, True), (GemmaRMSNorm, False), (CenteredRMSNorm, False)]
)
def test_what_is_swapped_gives_the_same(kind, swapped, dtype) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(kind(72)).to(dtype)
    whole[0].weight.data.uniform_(0.5, 2)
    x = 10 * torch.randn(1, 9, 72, dtype=dtype)
    before = x.clone()
    with torch.inference_mode():
        expected = whole(x)
        norm.swap(whole)
        found = whole(x)
    assert isinstance(whole[0], norm.Norm) == swapped
    assert torch.equal(x, before)
    near = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
