"""Dense weights of a GGUF file, and a GGUF file of dense weights.

A folder with `model.gguf` beside config.json and a tokenizer is a checkpoint like any other. Known
are the decoders of llama.cpp's architectures `llama`, `qwen2` and `qwen3`; the first interleaves
the two halves of the rows of each query and key head.
"""

import json
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, from_numpy

from ptsearch import store
from ptsearch.models import gguf_file
from ptsearch.models.architecture import read_config
from ptsearch.models.gguf_file import ARCHITECTURES, NAME, SHAPE

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PretrainedConfig

AROUND = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
IN_GGUF = {name: stem for stem, name in (AROUND | LAYER).items()}
FACTORS = "rope_freqs.weight"  # of positions, which transformers takes from its configuration
SPLITS = {"Digits": "smollm", "{1,3}": "llama-bpe", "(?i:": "qwen2"}  # what tells BPEs apart


def dense(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a folder's GGUF under a prefix, float32, by their names in transformers."""
    from gguf import dequantize

    file, config = gguf_file.read(folder / NAME), store.read_json(folder / "config.json")
    found = {}
    for stored, tensor in file.tensors.items():
        if stored == FACTORS or not (name := in_model(stored)).startswith(prefix):
            continue
        raw = np.fromfile(file.path, np.uint8, tensor.bytes, offset=tensor.start)
        values = dequantize(raw.reshape(prod(tensor.shape[:-1]), -1), tensor.type)
        W = from_numpy(values.astype(np.float32, copy=False).reshape(tensor.shape))
        if heads := _interleaved(stored, file.architecture, config):
            W = W.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        found[name] = W.contiguous()
    return found


def in_model(stored: str) -> str:
    """What transformers calls a tensor of a file. ValueError: an unknown one."""
    stem, _, suffix = stored.rpartition(".")
    *layer, leaf = stem.split(".", 2)
    known = LAYER if layer else AROUND
    if leaf not in known:
        raise ValueError(f"tensor {stored} is of an architecture that is not read here")
    return ".".join([*(["model.layers", layer[1]] if layer else []), known[leaf], suffix])


def in_gguf(name: str) -> str:
    """What llama.cpp calls a tensor of transformers."""
    stem, _, suffix = name.rpartition(".")
    if not stem.startswith("model.layers."):
        return f"{IN_GGUF[stem]}.{suffix}"
    _, _, number, leaf = stem.split(".", 3)
    return f"blk.{number}.{IN_GGUF[leaf]}.{suffix}"


def _interleaved(stored: str, architecture: str, config: dict[str, Any]) -> int:
    """Heads whose rows are interleaved in a tensor of a file; 0 = none."""
    if architecture != "llama" or not (".attn_q." in stored or ".attn_k." in stored):
        return 0
    heads = int(config["num_attention_heads"])
    return heads if ".attn_q." in stored else int(config.get("num_key_value_heads") or heads)


def check_writable(folder: Path, trust_remote_code: bool = False) -> None:
    """ValueError, in one line: the checkpoint's model cannot be written as GGUF here."""
    config = read_config(folder, trust_remote_code)
    positions = getattr(config, "rope_parameters", None) or {}
    reason = ""
    if config.model_type not in ARCHITECTURES:
        reason = f"model_type={config.model_type}; {', '.join(ARCHITECTURES)} are"
    elif (kind := positions.get("rope_type", "default")) not in ("default", "linear"):
        reason = f"positions of rope_type={kind}"
    if reason:
        raise ValueError(
            f"{folder}: not written as GGUF here: {reason} (make one with llama.cpp's "
            "convert_hf_to_gguf.py and give it as pool.paths, or take engine=transformers)"
        )


def write(folder: Path, out: Path, dtype: str, trust_remote_code: bool = False) -> None:
    """The checkpoint in `folder` as a GGUF file of dense weights, tokenizer included; dtype:
    float32, float16 or bfloat16, vectors stay float32. ValueError: see `check_writable`.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    from ptsearch.models import loading

    check_writable(folder, trust_remote_code)
    config = read_config(folder, trust_remote_code)
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(out, architecture)
    _add_fields(writer, config)
    _add_tokenizer(writer, folder, config.vocab_size)
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    model, _ = loading.load(folder, "bfloat16" if dtype == "bfloat16" else "float32")
    for name, W in loading.weights_of(model).items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = in_gguf(name)
        if heads := _interleaved(stored, architecture, config.to_dict()):
            W = W.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        form = GGMLQuantizationType["F32" if W.ndim == 1 else kind]
        writer.add_tensor(stored, quantize(W.float().numpy(), form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_fields(writer: "GGUFWriter", config: "PretrainedConfig") -> None:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    positions = config.rope_parameters
    numbers = {field: getattr(config, key) for field, key in SHAPE.items()} | {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "rope.dimension_count": width,
        "attention.key_length": width,
        "attention.value_length": width,
    }
    for field, number in numbers.items():
        writer.add_uint32(f"{writer.arch}.{field}", number)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(positions["rope_theta"])
    if positions.get("rope_type") == "linear":
        writer.add_string(f"{writer.arch}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(positions["factor"])


def _add_tokenizer(writer: "GGUFWriter", folder: Path, size: int) -> None:
    """The folder's tokenizer, if it is a byte-level BPE or Llama's; without one the file still runs
    on token ids.
    """
    from gguf import LlamaHfVocab, SpecialVocab, TokenType

    path = folder / "tokenizer.json"
    recorded = store.read_json(path) if path.is_file() else {"model": {}}
    special = SpecialVocab(folder, load_merges=True, n_vocab=size)
    if recorded["model"].get("byte_fallback"):
        vocabulary = list(LlamaHfVocab(folder).all_tokens())
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([score for _, score, _ in vocabulary])
        tokens = [(text, kind) for text, _, kind in vocabulary]
    elif special.merges:
        split = json.dumps(recorded.get("pre_tokenizer"))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(next((SPLITS[x] for x in SPLITS if x in split), "gpt-2"))
        texts = {number: text for text, number in recorded["model"]["vocab"].items()}
        kinds = dict.fromkeys(texts, TokenType.NORMAL)
        for added in recorded["added_tokens"]:
            texts[added["id"]] = added["content"]
            kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        unused = TokenType.UNUSED
        tokens = [(texts.get(n, f"[{n}]"), kinds.get(n, unused)) for n in range(size)]
    else:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    special.add_to_gguf(writer, quiet=True)
