"""What a model needs and what the machine has, in bytes."""

import gc
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ptsearch.models.architecture import auto_class, read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAVE = 4  # forwards' worth of tokens whose keys and values a generation holds
SHARE = 0.5  # of the free memory, for the engine's tensors
MOST = {"cpu": 3072, "cuda": 16384}  # tokens of one forward beyond which none is gained
LANE = 768  # of one of several forwards on the CPU at the same time, at least
LEAST = 256
LARGE = 2**25  # bytes of a checkpoint whose model must not be in memory twice
LOGITS = 2**24  # values of one forward


class Limits(NamedTuple):
    """What one forward may hold."""

    tokens: int
    rows: int  # of logits
    align: int = 1  # shared runs of tokens have a multiple of this many


def limits(model: "PreTrainedModel", max_tokens: int) -> Limits:
    """Tokens (`max_tokens`, or 0 = from free memory) and rows of logits of one forward."""
    config = model.config.get_text_config()
    rows = max(16, LOGITS // config.vocab_size)
    if max_tokens:
        return Limits(max_tokens, rows)
    size = model.dtype.itemsize
    hidden = config.hidden_size
    states = 8 * hidden + 3 * (getattr(config, "intermediate_size", None) or 4 * hidden)
    heads = getattr(config, "num_key_value_heads", None)
    width = getattr(config, "head_dim", None)
    cached = 2 * config.num_hidden_layers * (heads * width if heads and width else hidden)
    tokens = int(SHARE * available(model.device.type)) // (size * (states + (WAVE + 1) * cached))
    return Limits(min(MOST[model.device.type], max(LEAST, tokens)), rows)


def collect(checkpoint: Path) -> None:
    """Collect reference cycles left by decompressed models, unless they are as small as this one:
    it takes half a second.
    """
    if sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) >= LARGE:
        gc.collect()


def available(device: str) -> int:
    """Free bytes of the device; on a CPU what can be had without swapping, within the limits of
    the cgroup and of the process (`ulimit -d`, `-v`).
    """
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo", "MemAvailable:")]
    limit = [int(text) for text in _lines("/sys/fs/cgroup/memory.max", "") if text != "max"]
    used = [int(text) for text in _lines("/sys/fs/cgroup/memory.current", "")]
    if limit and used:
        free.append(limit[0] - used[0])
    for kind, used_now in ((resource.RLIMIT_DATA, "VmData:"), (resource.RLIMIT_AS, "VmSize:")):
        allowed = resource.getrlimit(kind)[0]
        held = _lines("/proc/self/status", used_now)
        if allowed != resource.RLIM_INFINITY and held:
            free.append(allowed - int(held[0].split()[1]) * 1024)
    return min(free, default=2**62)  # unknown on other systems: no limit is guessed


def check_fits(folder: Path, trust_remote_code: bool, dtype: torch.dtype, device: str) -> None:
    """ValueError unless the checkpoint's dense weights fit; reads no weights."""
    needed = weights(folder, trust_remote_code) * dtype.itemsize
    if needed > (free := available(device)):
        raise ValueError(
            f"{folder} needs {needed:,} bytes for its weights as {str(dtype).split('.')[-1]}, "
            f"{free:,} are available on {device}"
        )


def weights(folder: Path, trust_remote_code: bool) -> int:
    """How many a checkpoint has; reads its configuration only."""
    config = read_config(folder, trust_remote_code)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    return sum(weight.numel() for weight in model.parameters())


def share(model: "PreTrainedModel", others: Sequence["PreTrainedModel"]) -> None:
    """Let parameters of `model` that equal another's of the same name be that one's memory."""
    for other in others:
        theirs = dict(other.named_parameters())
        for name, parameter in model.named_parameters():
            if name in theirs and _equal(parameter, theirs[name]):
                parameter.data = theirs[name].data  # tied ones stay tied


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.is_mkldnn != other.is_mkldnn:
        return False
    if one.is_mkldnn:  # laid out for oneDNN
        one, other = one.to_dense(), other.to_dense()
    return torch.equal(one, other)


def _lines(path: str, start: str) -> list[str]:
    """Lines of a system file that begin with `start`; none where there is no such file."""
    try:
        text = Path(path).read_text(encoding="ascii")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.startswith(start)]
