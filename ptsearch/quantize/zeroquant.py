"""ZeroQuant (Yao et al., arXiv 2206.01861): weights to the nearest, inputs per token; no text."""

from ptsearch.quantize import rtn
from ptsearch.quantize.method import Method

METHOD = Method("zeroquant", rtn.solve)
