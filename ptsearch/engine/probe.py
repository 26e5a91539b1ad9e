"""Whether a model takes the packed path: found by trying it, against transformers itself."""

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ptsearch.engine import _compat, attention, onednn, packed, prefix
from ptsearch.models.layers import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Relative to the logits' own spread. Rounding moves bf16 logits by a hundredth of it; a mistaken
# position, mask or scale moves them by tenths.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
LENGTHS = (40, 33, 21)  # of the sequences that are tried; they share SHARED tokens
SHARED = 20
GROWING = {"dynamic", "longrope"}  # position encodings that depend on the longest sequence


def enable(model: "PreTrainedModel") -> str:
    """Put `model` on the packed path. Returns why not, where that is impossible; "" = done."""
    from transformers import AttentionInterface

    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "it cannot give the logits of chosen rows alone"
    if any(isinstance(module, nn.Conv1d) for module in layers_of(model)[1].modules()):
        return "its layers carry a state from token to token"
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}  # of all layers, or by kind of layer
    if any(isinstance(r, dict) and r.get("rope_type") in GROWING for r in (rope, *rope.values())):
        return "its position encoding depends on the longest sequence"
    before = _compat.attention_of(model)
    sequences = _sequences(config.vocab_size)
    AttentionInterface.register(attention.NAME, attention.attention)
    try:
        model.set_attn_implementation("eager")  # the fused kernel leaves Gemma 2's soft cap out
        expected, tolerance = _one_by_one(model, sequences), TOLERANCE[model.dtype]
        model.set_attn_implementation(attention.NAME)
        reason = _compare(expected, _together(model, sequences), tolerance)
    # Whatever a model does with the pack that it does not know, the plain path answers for it.
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if reason:
        model.set_attn_implementation(before)
        return reason
    onednn.use_fp32_head(model)
    onednn.prepack(model)
    return ""


def _sequences(vocabulary: int) -> list[tuple[int, ...]]:
    """Sequences that begin alike and go on differently."""
    alike = [(7 * k + 11) % vocabulary for k in range(SHARED)]
    return [
        (*alike, *((5 * k + 3 * length) % vocabulary for k in range(length - SHARED)))
        for length in LENGTHS
    ]


@torch.inference_mode()
def _one_by_one(model: "PreTrainedModel", sequences: list[tuple[int, ...]]) -> Tensor:
    """Logits behind each sequence's last token, as transformers gives them."""
    return torch.stack(
        [
            model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1].float()
            for ids in sequences
        ]
    )


@torch.inference_mode()
def _together(model: "PreTrainedModel", sequences: list[tuple[int, ...]]) -> Tensor:
    """The same from one pack with a shared prefix in two segments."""
    shared = prefix.share(sequences, max_run=SHARED // 2, min_saving=1)
    part = range(len(shared.segments))
    keep = [number for number in part if shared.last[number] > number]
    ends = [(chain[-1], len(shared.segments[chain[-1]].tokens) - 1) for chain in shared.chains]
    store: attention.Store = {}
    logits = packed.logits_at(model, shared, part, keep, store, ends).float()
    if any(len(kept) < model.config.get_text_config().num_hidden_layers for kept in store.values()):
        raise attention.UnsupportedError("it has layers without attention")
    return logits


def _compare(expected: Tensor, logits: Tensor, tolerance: float) -> str:
    """Why packed logits differ from the expected ones; "": they do not, or it cannot be judged."""
    if expected.shape != logits.shape:
        return f"it gives logits of shape {tuple(logits.shape)}, not {tuple(expected.shape)}"
    if not torch.isfinite(expected).all():
        return ""  # a degenerate variant, which the first prompt will report
    error = ((logits - expected).norm() / (expected - expected.mean()).norm()).item()
    return "" if error <= tolerance else f"packed logits are {error:.1%} off"
