"""A tiny random causal LM and a byte-level tokenizer, written as a Hugging Face checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING

from ptsearch.models.loading import silence_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 8192,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index for index, letter in enumerate(alphabet)}
    vocab["<|end|>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_tiny_model(
    folder: Path, architecture: str = "Llama", max_shard_size: str = "5GB", **overrides: object
) -> Path:
    """Write `{architecture}ForCausalLM` with random bf16 weights and the byte tokenizer."""
    import torch
    import transformers

    tokenizer = byte_tokenizer()
    sizes = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    text = getattr(transformers, f"{architecture}TextConfig", None)  # Gemma 3 has pictures too
    kind = text or getattr(transformers, f"{architecture}Config")
    config = kind(**{**sizes, **overrides})
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).to(torch.bfloat16)
    silence_libraries()
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder
