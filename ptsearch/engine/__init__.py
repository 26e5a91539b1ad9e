"""Label log-probabilities and greedy replies of one model.

In: prompts and labels as token ids. Out: log-probabilities per label, or generated ids.
Prompts are packed without padding and share their prefixes; `plain.py` is the reference path,
`vllm.py` asks a vLLM server, `llamacpp.py` runs GGUF. What is rounded at run time is in
`fake_quant.py`, weights that stay as stored in `stored_weights.py`, what deployment targets hold in
`targets.py`, private names of libraries in `_compat.py`. Open `answering.py` first, then
`requests.py`, `plain.py`, `packed.py`.
"""

from ptsearch.engine.answering import (
    Engine,
    check_length,
    generate,
    keeping,
    lane,
    lanes_of,
    latency,
    score,
)
from ptsearch.engine.opening import check_fits, context_of, load, opened, with_dtype
from ptsearch.engine.prefix_cache import Kept
from ptsearch.engine.requests import NonFiniteLogitsError

__all__ = [
    "Engine",
    "Kept",
    "NonFiniteLogitsError",
    "check_fits",
    "check_length",
    "context_of",
    "generate",
    "keeping",
    "lane",
    "lanes_of",
    "latency",
    "load",
    "opened",
    "score",
    "with_dtype",
]
