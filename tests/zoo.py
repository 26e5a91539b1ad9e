"""Tiny random checkpoints of many architectures, with the byte tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from tiny import byte_tokenizer

from ptsearch.models import support
from ptsearch.testing.tiny_model import SIZES

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,  # as many as the text's: the lists of layers differ in nothing else
    "num_attention_heads": 2,
    "num_heads": 2,
    "depth": 2,
    "embed_dim": 32,
    "out_hidden_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "deepstack_visual_indexes": [0],
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {**ROPE, "mrope_section": [2, 3, 3]}
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = 24  # shorter than the prompts


class Member(NamedTuple):
    """An architecture, and what its configuration has besides `SIZES` and `VISION`."""

    name: str  # of its classes in transformers
    text: Mapping[str, Any] = {}
    outer: Mapping[str, Any] | None = None  # beside its two parts; None = text alone
    config: str = ""  # class of its configuration, where it is not called as the model


ZOO = {
    "Llama": Member("Llama"),
    "Mistral": Member("Mistral", {"sliding_window": WINDOW}),
    "Qwen2": Member("Qwen2"),
    "Qwen3": Member("Qwen3"),
    "Qwen3-MoE": Member(
        "Qwen3Moe", {"num_experts": 64, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
    ),
    "Gemma 2": Member("Gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "Gemma 3": Member(
        "Gemma3",
        {
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING],
            "vocab_size": 20000,
        },
        config="Gemma3TextConfig",
    ),
    "Phi-3": Member("Phi3"),
    "Phi-4-mini": Member("Phi3", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.75}}),
    "SmolLM3": Member("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 2}),
    "OLMo 2": Member("Olmo2"),
    "Granite": Member("Granite", {"residual_multiplier": 0.5, "logits_scaling": 4.0}),
    "GPT-OSS": Member(
        "GptOss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL],
            "rope_parameters": ROPE,
        },
    ),
    "Falcon-H1": Member(
        "FalconH1",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
    ),
    "Granite 4 hybrid": Member(
        "GraniteMoeHybrid",
        {
            "layer_types": ["mamba", "attention"],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
        },
    ),
    "Mamba": Member("Mamba", {"state_size": 8, "time_step_rank": 32}),
    "Qwen2-VL": Member("Qwen2VL", {"rope_parameters": MROPE}, {}),
    "Qwen3-VL": Member("Qwen3VL", {"rope_parameters": MROPE}, {}),
    "Idefics3": Member("Idefics3", {}, {}),
    "SmolVLM": Member("SmolVLM", {}, {}),
    "Gemma 3 multimodal": Member(
        "Gemma3",
        {"num_key_value_heads": 1, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL]},
        {"mm_tokens_per_image": 4},
    ),
    "GPT-2": Member("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4}),
    "T5": Member("T5", {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}),
}
PICTURES = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292}


def write(folder: Path, name: str) -> Path:
    """The member's checkpoint, with random bf16 weights and some channels that are always 0."""
    member, tokenizer = ZOO[name], byte_tokenizer()
    sees = member.outer is not None
    special = {
        "vocab_size": 300 if sees else len(tokenizer),  # the last ones stand for pictures
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    }
    text = {**SIZES, **special, **member.text}
    kind = getattr(transformers, member.config or f"{member.name}Config")
    if sees:
        parts = {"text_config": text, "vision_config": VISION, "tie_word_embeddings": True}
        config = kind(**parts, **PICTURES, **(member.outer or {}))
    else:
        config = kind(**text)
    task = "ForConditionalGeneration" if sees or config.is_encoder_decoder else "ForCausalLM"
    torch.manual_seed(0)
    task = {"GPT2": "LMHeadModel"}.get(member.name, task)
    model = getattr(transformers, member.name + task)(config).to(torch.bfloat16)
    for key, weight in model.named_parameters():
        if key.endswith("layernorm.weight"):
            weight.data[:8] = -1.0 if "Gemma" in member.name else 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refusal(folder: Path) -> str | None:
    """Why the checkpoint can be neither built nor run; None = it can."""
    try:
        support.checked(folder)
    except ValueError as error:
        return str(error)
    return None
