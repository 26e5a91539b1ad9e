"""The tiny model of the law suites, under the name that the tests know."""

from ptsearch.testing.tiny_model import CHAT_TEMPLATE, byte_tokenizer, write_tiny_model

__all__ = ["CHAT_TEMPLATE", "byte_tokenizer", "write_tiny_model"]
