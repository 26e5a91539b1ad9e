"""Whether an architecture can be built and run is known before any work, in one line."""

import json
from pathlib import Path

import pytest
from tiny import write_tiny_model
from zoo import refusal, write

from ptsearch.models.architecture import attention_sizes


def changed(folder: Path, **fields: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


@pytest.mark.parametrize("name", ["Llama", "Qwen3-MoE", "Gemma 3 multimodal", "Falcon-H1"])
def test_what_can_be_built(name: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path, name)) is None


def test_layers_that_keep_keys_and_values(tmp_path: Path) -> None:
    """Also where a published configuration leaves out what is the architecture's default."""
    pictures = write(tmp_path / "a", "Gemma 3 multimodal")
    config = json.loads((pictures / "config.json").read_text())
    for name in ("num_attention_heads", "num_key_value_heads", "head_dim"):
        del config["text_config"][name]
    changed(pictures, text_config=config["text_config"])
    names = ("Granite 4 hybrid", "Mamba", "Llama")
    folders = [pictures, *(write(tmp_path / name, name) for name in names)]
    assert [tuple(attention_sizes(folder).values()) for folder in folders] == [
        (2, 4, 256), (1, 2, 16), (0, 2, 16), (2, 2, 16),
    ]  # fmt: skip


def test_what_cannot_is_one_line(tmp_path: Path) -> None:
    reasons = [
        refusal(write(tmp_path / "a", "GPT-2")),
        refusal(write(tmp_path / "b", "T5")),
        refusal(write(tmp_path / "f", "Mamba")),
        refusal(changed(write_tiny_model(tmp_path / "c"), model_type="klingon")),
        refusal(changed(write_tiny_model(tmp_path / "d"), num_hidden_layers=3)),
        refusal(changed(write_tiny_model(tmp_path / "e"), model_type="clip")),
    ]
    parts = [
        "no linear layers",
        "encoder-decoder",
        "no layer has attention",
        "klingon",
        "no tensor",
        "no causal LM",
    ]
    for reason, part in zip(reasons, parts, strict=True):
        assert reason
        assert part in reason
        assert "\n" not in reason
        assert len(reason) < 250
