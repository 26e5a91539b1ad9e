"""Methods that round keys and values; how they round is in `engine/kv_cache.py`.

KIVI (Liu et al., arXiv 2402.02750) and KVQuant (Hooper et al., arXiv 2401.18079) leave the weights
dense; WKVQuant (Yue et al., arXiv 2402.12065) also quantizes them, here by GPTQ.
"""

from ptsearch.quantize import gptq
from ptsearch.quantize.method import Method

METHODS = (
    Method("kivi", storage="dense", kv=True),
    Method("kvquant", storage="dense", kv=True, needs=("kv",)),
    Method("wkvquant", gptq.solve, kv=True, needs=("hessian", "kv"), agree_on=gptq.AGREE_ON),
)
