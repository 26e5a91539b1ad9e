"""The pass over the base model, one layer at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ptsearch.models.checkpoint import tensors_of
from ptsearch.models.layers import skeleton
from ptsearch.pool import layerwise
from ptsearch.pool.layerwise import Samples
from ptsearch.quantize.layer import Layer, Moments


def moments(
    folder: Path, tokens: Tensor, seeds: Mapping[int, Sequence[int]]
) -> list[dict[int, Moments]]:
    found: list[dict[int, Moments]] = []

    def visit(layer: Layer) -> dict[str, Tensor]:
        found.extend(layer.moments)
        return {}

    model = skeleton(folder, False)
    layerwise.walk(tensors_of(model, folder).under, model, Samples(tokens, seeds), visit)
    return found


def test_a_seeds_sums_are_the_same_whichever_others_are_drawn(
    tiny_model: Path,
) -> None:
    tokens = torch.randint(0, 200, (12, 48), generator=torch.Generator().manual_seed(0))
    seeds = {0: [0, 2, 3, 5, 9], 1: [1, 2, 4, 5, 8, 10], 2: [6, 7, 9, 11]}
    together = moments(tiny_model, tokens, seeds)
    for seed, rows in seeds.items():
        alone = moments(tiny_model, tokens[rows], {seed: range(len(rows))})
        assert len(alone) == len(together) > 0
        for one, several in zip(alone, together, strict=True):
            for name in ("H", "mean_abs", "low", "high"):
                assert torch.equal(getattr(one[seed], name), getattr(several[seed], name)), name
