"""llama.cpp's own quantizer: one of its types for a whole model, stored as GGUF.

A type is a recipe: llama.cpp gives each tensor what it finds fit for its place and shape, and falls
back where rows are no multiple of 256 (K- and most I-quants). How important an input column is, is
its second moment: the diagonal of H.
"""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ptsearch.models import llama_library
from ptsearch.quantize.method import Method


def quantize(source: Path, out: Path, type_: str, importance: Mapping[str, Tensor]) -> None:
    """The GGUF `source` of floats as one of `type_`; importance: tensor's name there -> (in,).

    ValueError: llama.cpp's reason.
    """
    api = llama_library.binding()
    kept = [(name.encode(), columns.float().contiguous()) for name, columns in importance.items()]
    entries = (api.llama_model_imatrix_data * (len(kept) + 1))()  # the last one is empty
    for entry, (name, columns) in zip(entries, kept, strict=False):
        pointer = ctypes.cast(columns.data_ptr(), ctypes.POINTER(ctypes.c_float))
        entry.name, entry.data, entry.size = name, pointer, len(columns)
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{type_}")
    settings.nthread, settings.imatrix = torch.get_num_threads(), entries
    if api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(settings)):
        raise ValueError(f"llama.cpp does not quantize to {type_}: {llama_library.reason()}")


# fmt: off
METHOD = Method(
    "gguf", bits=(1, 8), storage="gguf", needs=("hessian",), grouped=False, package="llama_cpp",
    types={
        "IQ1_S": 1, "IQ1_M": 1, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 2, "IQ2_M": 2, "Q2_K": 2,
        "Q2_K_S": 2, "IQ3_XXS": 3, "IQ3_XS": 3, "IQ3_S": 3, "IQ3_M": 3, "Q3_K_S": 3, "Q3_K_M": 3,
        "Q3_K_L": 3, "IQ4_XS": 4, "IQ4_NL": 4, "Q4_0": 4, "Q4_1": 4, "Q4_K_S": 4, "Q4_K_M": 4,
        "Q5_0": 5, "Q5_1": 5, "Q5_K_S": 5, "Q5_K_M": 5, "Q6_K": 6, "Q8_0": 8,
    },
)
