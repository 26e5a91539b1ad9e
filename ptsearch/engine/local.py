"""A model of transformers in this process, on the packed path or in plain batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ptsearch.engine import decoding, logprobs, plain
from ptsearch.engine.memory import Limits
from ptsearch.engine.prefix_cache import Kept
from ptsearch.engine.requests import Logprobs, Progress, Requests
from ptsearch.quantize.kv import Rounding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LocalModel(NamedTuple):
    """A loaded model and how to run it."""

    model: "PreTrainedModel"
    limits: Limits
    packed: bool  # False: plain batches
    kept: Kept | None = None  # prefixes that stay between calls of `logprobs`
    rounding: Rounding | None = None  # of keys and values
    first: int = 0  # tokens of a reply after which `later` takes over
    later: "PreTrainedModel | None" = None  # same architecture, continues with the same cache

    @property
    def form(self) -> str:
        """The form of the weights that answer."""
        return "dense"

    def writer(self, done: int) -> "PreTrainedModel":
        """The model that writes the next token of a reply that has `done`."""
        return self.later if self.later is not None and done >= self.first else self.model

    def logprobs(self, requests: Requests, report: Progress) -> Logprobs:
        """log p(token | tokens before it) in nats, for every request."""
        if self.packed:
            return logprobs.logprobs(self.model, requests, self.limits, report, self.kept)
        return plain.logprobs(self.model, requests, self.limits, report)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        eos: frozenset[int],
        report: Progress,
    ) -> list[list[int]]:
        """Greedy replies without their end-of-sequence token."""
        path = decoding.generate if self.packed else plain.generate
        return path(self, prompts, max_new_tokens, eos, report)

    def uncached(self) -> "LocalModel":
        """The same, with nothing kept from one call to the next."""
        return self._replace(kept=None)

    def close(self) -> None:
        """Nothing runs outside this process."""
