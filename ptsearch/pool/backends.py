"""The same variants built by llm-compressor or GPTQModel: the references ours are checked against.

Both are optional extras, work on one variant at a time and keep the whole model in memory.
"""

import importlib.util
import io
import os
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import writer
from ptsearch.quantize import grid
from ptsearch.quantize.grid import SCALE_DTYPE, Grid, Quantized
from ptsearch.variant import Variant

PACKAGES = {"llmcompressor": "llmcompressor", "gptqmodel": "gptqmodel"}  # extra -> module
BUILDS = {"llmcompressor": ("rtn", "gptq", "awq"), "gptqmodel": ("gptq",)}


def check_available(variant: Variant) -> None:
    """ValueError unless the variant's backend is installed and can build it."""
    backend = variant.backend
    if importlib.util.find_spec(PACKAGES[backend]) is None:
        raise ValueError(
            f"pool.backend={backend} needs the package {backend}: pip install 'ptsearch[{backend}]'"
        )
    if variant.method not in BUILDS[backend] or variant.rounding_seed is not None:
        raise ValueError(
            f"pool.backend={backend} builds {', '.join(BUILDS[backend])} only here, rounded to "
            f"nearest, got {variant.label}"
        )


def llmcompressor(base: BaseModel, variant: Variant, samples: Tensor, folder: Path) -> None:
    """Write a checkpoint of the variant; samples (n, length) token ids."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from loguru import logger

    loading.silence_libraries()
    logger.disable("llmcompressor")
    if not torch.accelerator.is_available():  # 0.14 pins memory always, which then raises
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    model, tokenizer = loading.load(base.path)
    calibrated = variant.method != "rtn"
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples.tolist()]
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows) if calibrated else None,
        recipe=_recipe(variant),
        max_seq_length=samples.shape[1],
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(folder, save_compressed=True)
    tokenizer.save_pretrained(folder)


def _recipe(variant: Variant) -> list[Any]:
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier

    weights = writer.scheme_of(variant).weights.model_dump(mode="json", exclude_none=True)
    scheme = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    if variant.method == "gptq":
        return [GPTQModifier(**scheme, dampening_frac=variant.damp_percent)]
    if variant.method == "awq":  # it rescales only; a quantizer has to follow it
        return [AWQModifier(), QuantizationModifier(**scheme)]
    return [QuantizationModifier(**scheme)]


def gptqmodel(base: BaseModel, variant: Variant, samples: Tensor) -> dict[str, Quantized]:
    """Linear -> quantized. Its own format is read by its own loader only, so it is taken apart."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(torch.get_num_threads()))
    loading.silence_libraries()
    with redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as scratch:
        return _gptqmodel(base, variant, samples, scratch)


def _gptqmodel(
    base: BaseModel, variant: Variant, samples: Tensor, scratch: str
) -> dict[str, Quantized]:
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.config import GPTQConfig

    config = GPTQConfig(
        bits=variant.bits,
        group_size=variant.group_size,
        sym=variant.sym,
        desc_act=variant.actorder != "none",
        static_groups=variant.actorder != "none",
        damp_percent=variant.damp_percent,
        offload_to_disk=False,
    )
    quantizer = GPTQModel.load(str(base.path), config, device="cpu")
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in samples.tolist()]
    quantizer.quantize(rows, batch_size=1)
    quantizer.save(scratch)
    loaded = GPTQModel.load(scratch, device="cpu", backend=BACKEND.TORCH, dtype=torch.bfloat16)
    solved = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, TorchLinear):
            module.scales = module.scales.float()  # else the values are rounded to bfloat16
            W, scale = module.dequantize_weight().T, module.scales.T
            solved[name] = from_values(W, scale, variant.bits, variant.sym)
    return solved


def from_values(W: Tensor, scale: Tensor, bits: int, sym: bool) -> Quantized:
    """AnswerCodes of a weight (out, in) that lies on a grid with these scales (out, groups).

    Where asymmetric, the zero point is placed so that the least value of each group has a code.
    Scales are rounded to the dtype they are stored in. ValueError: W is not on such a grid.
    """
    low, high = grid.code_range(bits)
    steps = W.float().unflatten(1, (scale.shape[1], -1)) / scale.float()[..., None]
    whole = steps.round()
    zero = torch.zeros_like(scale.float()) if sym else low - whole.amin(2).clamp(max=0)
    codes = whole + zero[..., None]
    off = (steps - whole).abs().max().item()
    if off > 0.05 or codes.min() < low or codes.max() > high:
        raise ValueError("the weight is not on a uniform grid of its groups in column order")
    stored = Grid(scale.to(SCALE_DTYPE).float(), zero, bits)
    return Quantized(codes.flatten(1).to(torch.int8), stored)
