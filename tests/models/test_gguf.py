"""GGUF files: written, read back as dense weights, and refused in one line where they are wrong."""

import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file

from ptsearch.models import gguf_file, gguf_weights, loading
from ptsearch.testing.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def gguf(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / gguf_file.NAME
    gguf_weights.write(tiny_model, path, "bfloat16")
    return path


def beside(path, base, folder):
    """A checkpoint folder that has the file's weights."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copyfile(path, folder / gguf_file.NAME)
    return folder


def test_a_file_is_read_back_as_the_weights_that_were_written(gguf, tiny_model, tmp_path):
    folder = beside(gguf, tiny_model, tmp_path / "q")
    weights = load_file(tiny_model / "model.safetensors")
    read = gguf_weights.dense(folder)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name].float()) for name in weights)
    layer = gguf_weights.dense(folder, "model.layers.1.")
    assert len(layer) == 9
    assert all(torch.equal(part, read[name]) for name, part in layer.items())
    model, _ = loading.load(folder, "float32")
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"].float())


def test_sizes_are_those_of_the_file(gguf):
    header = gguf_file.read(gguf)
    assert set(header.types) == {"BF16", "F32"}
    start = min(tensor.start for tensor in header.tensors.values())
    assert 0 <= gguf.stat().st_size - start - header.tensor_bytes < 32 * len(header.tensors)
    assert 16 < header.bits_per_weight < 16.1
    cache = 100 * 2 * 2 * 2 * 16 * 2  # tokens, layers, keys and values, heads, width, bytes
    assert header.resident_bytes(100) - header.tensor_bytes == cache


def test_a_file_that_is_cut_off_says_where(gguf, tmp_path):
    whole = gguf.read_bytes()
    part = tmp_path / "part.gguf"
    for size in (3, 10, 30, 200, 1000, len(whole) - 100):
        part.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut off|is not a GGUF file") as error:
            gguf_file.read(part)
        assert "\n" not in str(error.value)
        assert str(part) in str(error.value)


def test_another_version_and_another_kind_of_file_are_refused(gguf, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF" + struct.pack("<I", 4) + gguf.read_bytes()[8:])
    with pytest.raises(ValueError, match="is GGUF version 4; versions 2 and 3 are read here"):
        gguf_file.read(other)
    other.write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="is not a GGUF file"):
        gguf_file.read(other)
    with pytest.raises(ValueError, match="no such file"):
        gguf_file.read(tmp_path / "none.gguf")


def test_another_model_is_refused_by_what_differs_first(gguf, tmp_path):
    header = gguf_file.read(gguf)
    for kind, sizes, reason in (
        ("Qwen2", {}, "architecture is llama, for the base model it is qwen2"),
        ("Llama", {"hidden_size": 32}, "hidden_size is 64, for the base model it is 32"),
        ("Llama", {"vocab_size": 300}, "vocab_size is 257, for the base model it is 300"),
    ):
        base = write_tiny_model(tmp_path / str(reason), kind, **sizes)
        with pytest.raises(ValueError, match=f"^here: a GGUF of another model: {reason}$"):
            gguf_file.check_like(base, header, "here")


def test_a_model_that_cannot_be_written_says_what_to_do(tmp_path):
    base = write_tiny_model(tmp_path, "GPTNeoX")
    with pytest.raises(ValueError, match=r"model_type=gpt_neox; .*convert_hf_to_gguf\.py"):
        gguf_weights.check_writable(base)
