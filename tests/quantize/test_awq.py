"""AWQ: where a layer can be scaled, that scaling changes nothing, and that it helps."""

from pathlib import Path

import pytest
import torch
from tiny import write_tiny_model
from tiny_pool import build_tiny, pool

from ptsearch import store
from ptsearch.models import layers
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors
from ptsearch.pool import build, layerwise
from ptsearch.quantize import awq, grid, rtn
from ptsearch.quantize.layer import Layer, ScalingSite
from ptsearch.variant import Variant


def first_layer(folder: Path) -> tuple[Layer, list[ScalingSite]]:
    """The first decoder layer, with moments of seed 0 over random tokens, and its sites."""
    found: list[tuple[Layer, list[ScalingSite]]] = []
    base = BaseModel("tiny", "0", folder)
    tokens = torch.randint(0, 200, (4, 32), generator=torch.Generator().manual_seed(0))

    def keep(layer: Layer) -> None:
        found.append((layer, awq.ScalingSites().of(layer)))

    layerwise.walk(
        Tensors(base.path).under,
        layers.skeleton(base.path, False),
        layerwise.Samples(tokens, {0: [0, 1, 2, 3]}),
        keep,
    )
    return found[0]


def sources(layer: Layer, sites: list[ScalingSite]) -> dict[str, tuple[str, float]]:
    """First linear of each scaled input -> what undoes the scaling."""
    return {
        layer.inputs[site.slot][0].rpartition(".")[2]: (site.source, site.offset) for site in sites
    }


def test_sites_of_a_llama_layer(tiny_model: Path) -> None:
    assert sources(*first_layer(tiny_model)) == {
        "q_proj": ("input_layernorm", 0.0),
        "gate_proj": ("post_attention_layernorm", 0.0),
        "down_proj": ("mlp.up_proj", 0.0),
    }  # v has other rows than o has columns: grouped queries


def test_sites_with_one_key_per_query(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, num_key_value_heads=4)
    assert sources(*first_layer(folder))["o_proj"] == ("self_attn.v_proj", 0.0)


def test_norms_that_add_one_are_recognised(tmp_path: Path) -> None:
    assert sources(*first_layer(write_tiny_model(tmp_path, "Gemma"))) == {
        "q_proj": ("input_layernorm", 1.0),
        "gate_proj": ("post_attention_layernorm", 1.0),
        "down_proj": ("mlp.up_proj", 0.0),
    }


def test_experts_that_the_example_is_not_sent_to(tmp_path: Path) -> None:
    """Nothing can be seen of scaling them; where others of the layer can, it holds for them too."""
    folder = write_tiny_model(
        tmp_path, "Qwen3Moe", num_experts=16, num_experts_per_tok=1, moe_intermediate_size=32
    )
    layer, sites = first_layer(folder)
    down = {layer.inputs[site.slot][0]: site.source for site in sites}
    down = {name: source for name, source in down.items() if name.endswith("down_proj")}
    asked = [names[0] for names in layer.inputs if names[0].endswith("down_proj")]
    assert len(down) == len(asked)
    for name, source in down.items():
        assert f"{layer.prefix}{source}" == name.replace("down_proj", "up_proj")


def test_layers_whose_tokens_reach_other_experts(tmp_path: Path) -> None:
    folder = write_tiny_model(
        tmp_path, "Qwen3Moe", num_experts=64, num_experts_per_tok=1, moe_intermediate_size=32
    )
    variants = pool([{"method": "awq", "bits": 3}])
    build_tiny(folder, tmp_path / "cache", variants)
    meta = store.read_meta(build.folder_of(tmp_path / "cache", variants[0]))
    assert not meta.degenerate


@pytest.mark.parametrize("bits", [3, 4])
def test_output_error_is_below_rounding(tiny_model: Path, bits: int) -> None:
    layer, sites = first_layer(tiny_model)
    variant = Variant("tiny", "0", "awq", bits=bits, group_size=32, calibration="c")
    quantized, replaced = awq.quantize(layer, sites, variant)
    assert set(replaced) == {
        f"{layer.prefix}input_layernorm.weight",
        f"{layer.prefix}post_attention_layernorm.weight",
    }
    H = layer.moments[0][0].H
    norm = f"{layer.prefix}input_layernorm.weight"
    s = layer.stored[norm].float() / replaced[norm].float()
    for name in layer.inputs[0]:
        W = layer.stored[f"{name}.weight"].float()
        scaled = W - quantized[name].dense() / s
        plain = W - rtn.quantize(W, bits, 32, True).dense()
        assert ((scaled @ H) * scaled).sum() < ((plain @ H) * plain).sum()


def test_at_eight_bits_nothing_is_lost_to_the_scales(tiny_model: Path) -> None:
    layer, sites = first_layer(tiny_model)
    variant = Variant("tiny", "0", "awq", bits=8, group_size=32, calibration="c")
    quantized, replaced = awq.quantize(layer, sites, variant)
    norm = f"{layer.prefix}input_layernorm.weight"
    s = layer.stored[norm].float() / replaced[norm].float()
    for name in layer.inputs[0]:
        W = layer.stored[f"{name}.weight"].float()
        step = quantized[name].grid.scale.repeat_interleave(32, 1) / s
        inside = quantized[name].codes.abs() < grid.code_range(8)[1]
        assert ((W - quantized[name].dense() / s).abs() <= step * 0.501)[inside].all()
