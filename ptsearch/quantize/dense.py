"""Variants whose weights nobody quantizes here: the dense model, and ready-made checkpoints."""

from ptsearch.quantize.method import Method

METHODS = (Method("none", storage="dense"), Method("path", storage="dense"))
