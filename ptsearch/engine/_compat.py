"""Private names of libraries, and C functions: no other file of the engine uses any.

* `torch.ops.mkldnn._reorder_linear_weight` and `_linear_pointwise`: weights laid out for oneDNN
  once, which pays with AVX-512, in bf16 most. Without: `torch.nn.functional.linear`.
* `config._attn_implementation` of transformers: what to restore after a trial of another attention.
  Without: "sdpa".
* `prctl` of Linux: a server that was started here ends with this process. Without: only
  `Server.close` ends it.
* `_USE_PSUTIL` of loky: it ends a worker whose memory grew by 300 MB during a call, which models
  do. Without: a worker starts and imports torch before every evaluation.
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

PR_SET_PDEATHSIG = 1  # prctl(2)


@cache
def can_reorder(dtype: torch.dtype) -> bool:
    """Whether the processor has oneDNN's kernels and gains by them: without AVX-512 fp32 products
    of MKL are faster.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype))
    except (RuntimeError, AttributeError):
        return False
    return torch.backends.mkldnn.is_available()


def reordered(weight: Tensor) -> Tensor:
    """The weight in oneDNN's layout; itself where that does not pay."""
    if not can_reorder(weight.dtype):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b of a `reordered` weight."""
    if not weight.is_mkldnn:
        return functional.linear(x, weight, bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def attention_of(model: "PreTrainedModel") -> str:
    """The name of the model's attention in transformers' interface."""
    return getattr(model.config, "_attn_implementation", None) or "sdpa"


def end_with_parent() -> None:
    """In a child process, on Linux: SIGTERM when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_worker() -> None:
    """This process, a worker of loky, collects garbage after a call instead of ending."""
    from joblib.externals.loky import process_executor

    process_executor._USE_PSUTIL = False
