"""The Fisher diagonal of a pass layer by layer is that of a plain backward pass."""

from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model

from ptsearch.models import layers, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import fisher


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_is_the_mean_squared_gradient(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder = write_tiny_model(tmp_path / "base", architecture, tie_word_embeddings=tied)
    tokens = torch.randint(0, 200, (3, 24), generator=torch.Generator().manual_seed(0))
    fisher.measure(BaseModel("tiny", "0", folder), tokens, tmp_path, lambda *_: None)
    model, _ = loading.load(folder, str(loading.compute_dtype()).removeprefix("torch."))
    linears = layers.linears_of(model)
    expected = {name: torch.zeros(linear.weight.shape) for name, linear in linears.items()}
    for ids in tokens:
        model.zero_grad()
        model(input_ids=ids[None], labels=ids[None], use_cache=False).loss.backward()
        for name, linear in linears.items():
            expected[name] += linear.weight.grad.float().square() / len(tokens)
    found = {}
    for layer in range(2):
        found |= fisher.read({0: tmp_path}, layer)[0]
    assert found.keys() == expected.keys()
    for name, F in expected.items():
        assert (found[name] - F).norm() < 0.05 * F.norm(), name
