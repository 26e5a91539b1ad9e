"""Private names of libraries, and C functions: no other file of the engine uses any.

* `torch.ops.mkldnn._reorder_linear_weight` and `_linear_pointwise`: weights laid out for oneDNN
  once; fp32 products take half of MKL's time on some CPUs. Without: `torch.nn.functional.linear`.
* `config._attn_implementation` of transformers: what to restore after a trial of another attention.
  Without: "sdpa".
* `mallopt` of glibc: freed blocks stay with the process, 4 % of a forward's time. Without: blocks
  are mapped anew.
* `prctl` of Linux: a server that was started here ends with this process. Without: only
  `Server.close` ends it.
"""

import ctypes
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# mallopt(3): M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD at its largest. The first alone would
# map every large block anew.
MALLOC = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}
PR_SET_PDEATHSIG = 1  # prctl(2)


@cache
def can_reorder(dtype: torch.dtype) -> bool:
    """Whether this processor has oneDNN's kernels: for bf16 it needs AVX-512 or AVX-NE-CONVERT."""
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return torch.backends.mkldnn.is_available()


def reordered(weight: Tensor) -> Tensor:
    """The weight in oneDNN's layout; itself where there is none."""
    if not can_reorder(weight.dtype):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool = False, times: Tensor | None = None
) -> Tensor:
    """x Wᵀ + b of a `reordered` weight, then SiLU or a factor of the output's shape (..., out)."""
    if weight.is_mkldnn:
        product, activation = torch.ops.mkldnn._linear_pointwise, "swish" if silu else "none"
        y: Tensor = (
            product(x, weight, bias, activation, [], "")
            if times is None
            else product.binary(x, times, weight, bias, "mul")
        )
        return y
    y = functional.linear(x, weight, bias)
    y = functional.silu(y) if silu else y
    return y if times is None else y * times


def attention_of(model: "PreTrainedModel") -> str:
    """The name of the model's attention in transformers' interface."""
    return getattr(model.config, "_attn_implementation", None) or "sdpa"


def keep_freed_memory() -> None:
    """From now on glibc keeps freed memory for this process, as a GPU's allocator does.

    Otherwise each layer's activations go back to the system and are mapped, page by page, for the
    next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, size in MALLOC.items():
            mallopt(parameter, size)


def end_with_parent() -> None:
    """In a child process, on Linux: SIGTERM when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
