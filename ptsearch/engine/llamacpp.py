"""Label log-probabilities and greedy replies from llama.cpp, in this process.

A GGUF runs as it is stored; any other checkpoint is written as a GGUF of dense weights for it.
Sequences are computed in the order of their prefix tree, a wave at a time. Cell = one token's keys
and values; what several sequences of a wave begin with are the same cells, and what they have in
common with the last sequence of the wave before (the trunk) is still there.
"""

import ctypes
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptsearch.config import EngineConfig
from ptsearch.engine.prefix import alike
from ptsearch.engine.requests import (
    Logprobs,
    Progress,
    Requests,
    Tokens,
    check_finite,
    logprobs_of,
    longest,
    until_eos,
)
from ptsearch.models import gguf_file, gguf_weights, llama_library

WAVE = 512  # new tokens, if no sequence is longer by itself
CELLS = 2048  # at first; more when a wave needs them
SEQUENCES = 65  # for the logits of one each there is room from the start; number 0 is the trunk


class Cell(NamedTuple):
    """A token to compute."""

    token: int
    position: int
    sequences: list[int]  # that have it
    wanted: list[int]  # those of them whose logits it is to give


class Session:
    """A loaded GGUF and its cells."""

    def __init__(self, path: Path, threads: int) -> None:
        """ValueError: llama.cpp does not load it."""
        self.api, self.threads = llama_library.binding(), threads
        settings = self.api.llama_model_default_params()
        settings.load_mode = self.api.LLAMA_LOAD_MODE_NONE  # no copy of the file beside the weights
        settings.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise ValueError(f"llama.cpp does not load {path}: {llama_library.reason()}")
        vocab = self.api.llama_model_get_vocab(self.model)
        self.vocabulary = int(self.api.llama_vocab_n_tokens(vocab))
        self.context, self.cells, self.trunk = None, 0, Tokens()
        self.lock = Lock()  # of its cells: a server asks from two threads

    def close(self) -> None:
        if self.context is not None:
            self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)

    def reserve(self, cells: int) -> None:
        """Room for so many cells; what is kept is lost where there was not."""
        if self.context is not None and cells <= self.cells:
            return
        if self.context is not None:
            self.api.llama_free(self.context)
        self.cells = max(CELLS, 1 << (cells - 1).bit_length())
        settings = self.api.llama_context_default_params()
        settings.n_ctx = settings.n_batch = self.cells
        settings.n_ubatch, settings.n_seq_max, settings.kv_unified = WAVE, SEQUENCES, True
        settings.n_threads = settings.n_threads_batch = self.threads
        self.context, self.trunk = self.api.llama_init_from_model(self.model, settings), ()
        if not self.context:
            raise ValueError(
                f"llama.cpp has no room for {self.cells} tokens: {llama_library.reason()}"
            )

    def forget(self) -> None:
        """Keep nothing."""
        self.trunk = ()

    def start(self, wave: Sequence[Tokens]) -> Tensor:
        """Compute sequences, numbered from 1 on; logits of their last tokens, (wave, vocabulary).

        They are in the order of `ordered`, and there is room for them.
        """
        memory = self.api.llama_get_memory(self.context)
        cells: list[Cell] = []
        before, begins, path = self.trunk, len(self.trunk), list[Cell]()
        for number, tokens in enumerate(wave, 1):
            shared = alike(before, tokens)
            first = min(begins, shared, len(tokens) - 1)  # cells before this are the trunk's
            path = path[: shared - first] if first == begins else []
            if number == 1:
                self.api.llama_memory_seq_rm(memory, 0, first, -1)
            self.api.llama_memory_seq_cp(memory, 0, number, 0, first)
            for cell in path:
                cell.sequences.append(number)
            for position in range(first + len(path), len(tokens)):
                path.append(Cell(tokens[position], position, [number], []))
                cells.append(path[-1])
            path[-1].wanted.append(number)
            before, begins = tokens, first
        return self.decode(cells)

    def finish(self, last: Tokens, count: int) -> None:
        """The last of `count` sequences becomes the trunk, the others go."""
        memory = self.api.llama_get_memory(self.context)
        self.api.llama_memory_seq_rm(memory, 0, -1, -1)
        self.api.llama_memory_seq_cp(memory, count, 0, 0, len(last))
        for number in range(1, count + 1):
            self.api.llama_memory_seq_rm(memory, number, -1, -1)
        self.trunk = last

    def decode(self, cells: Sequence[Cell]) -> Tensor:
        """Logits (rows, vocabulary), a row per wanted sequence in their order."""
        n, some = len(cells), [(ctypes.c_int32 * len(c.sequences))(*c.sequences) for c in cells]
        batch = self.api.llama_batch(
            n_tokens=n,
            token=(ctypes.c_int32 * n)(*(cell.token for cell in cells)),
            pos=(ctypes.c_int32 * n)(*(cell.position for cell in cells)),
            n_seq_id=(ctypes.c_int32 * n)(*map(len, some)),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * n)(
                *(ctypes.cast(part, ctypes.POINTER(ctypes.c_int32)) for part in some)
            ),
            logits=(ctypes.c_int8 * n)(*(bool(cell.wanted) for cell in cells)),
        )
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}: {llama_library.reason()}")
        asked = [cell.wanted for cell in cells if cell.wanted]
        size = (len(asked), self.vocabulary)
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), size)
        rows = {number: row for row, numbers in enumerate(asked) for number in numbers}
        return torch.from_numpy(logits[[rows[number] for number in sorted(rows)]])


class LlamaCpp(NamedTuple):
    """A model of llama.cpp and how it is asked."""

    session: Session
    form: str
    forgets: bool = False  # nothing is kept from one call to the next

    def logprobs(self, requests: Requests, report: Progress) -> Logprobs:
        """log p(token | tokens before it) in nats, for every request."""
        values: Logprobs = {}
        with self.session.lock:
            for wave in self._waves(dict.fromkeys(requests, 0)):
                logits = self.session.start(wave)
                self.session.finish(wave[-1], len(wave))
                values |= logprobs_of(logits, {tokens: requests[tokens] for tokens in wave})
                report(len(values), len(requests))
        return values

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        eos: frozenset[int],
        report: Progress,
    ) -> list[list[int]]:
        """Greedy replies without their end-of-sequence token."""
        most = longest(prompts, max_new_tokens)
        replies: dict[Tokens, list[int]] = {}
        with self.session.lock:
            for wave in self._waves({prompt: new for prompt, new in most.items() if new}):
                written = self._write(wave, most, eos)
                self.session.finish(wave[-1], len(wave))
                replies |= zip(wave, written, strict=True)
                report(len(replies) * len(prompts) // len(most), len(prompts))
        return [
            until_eos(replies[tuple(prompt)][:new], eos) if new else []
            for prompt, new in zip(prompts, max_new_tokens, strict=True)
        ]

    def _write(
        self, wave: Sequence[Tokens], most: Mapping[Tokens, int], eos: frozenset[int]
    ) -> list[list[int]]:
        """The replies of a wave, the token that ends one included."""
        written = [[token] for token in _greedy(self.session.start(wave))]
        while rows := [
            row
            for row, prompt in enumerate(wave)
            if len(written[row]) < most[prompt] and written[row][-1] not in eos
        ]:
            cells = []
            for row in rows:
                position = len(wave[row]) + len(written[row]) - 1
                cells.append(Cell(written[row][-1], position, [row + 1], [row + 1]))
            for row, token in zip(rows, _greedy(self.session.decode(cells)), strict=True):
                written[row].append(token)
        return written

    def uncached(self) -> "LlamaCpp":
        """The same, with nothing kept from one call to the next."""
        return self._replace(forgets=True)

    def close(self) -> None:
        """Free the model."""
        self.session.close()

    def _waves(self, news: dict[Tokens, int]) -> Iterator[list[Tokens]]:
        """Sequences that grow by so many tokens, a wave at a time; there is room for its cells."""
        session = self.session
        if self.forgets:
            session.forget()
        most = CELLS if any(news.values()) else WAVE
        wave, cells, added, before = list[Tokens](), 0, 0, session.trunk
        for tokens in ordered(news, before):
            kept = min(alike(before, tokens), len(tokens) - 1)
            more = len(tokens) - kept + news[tokens]
            if wave and (added + more > most or len(wave) == SEQUENCES - 1):
                session.reserve(cells + added)
                yield wave
                wave, added = [], 0
            if not wave:
                cells = kept
            wave.append(tokens)
            added, before = added + more, tokens
        if wave:
            session.reserve(cells + added)
            yield wave


def ordered(sequences: Sequence[Tokens] | dict[Tokens, int], trunk: Tokens) -> list[Tokens]:
    """Depth first through the prefix tree, beginning where the trunk ends."""
    return sorted(sequences, key=lambda tokens: (-alike(trunk, tokens), tokens))


def load(checkpoint: Path, settings: EngineConfig, trust_remote_code: bool) -> LlamaCpp:
    """The checkpoint in a folder. ValueError: llama.cpp is not installed or does not run it."""
    llama_library.binding()
    threads = settings.threads or torch.get_num_threads()
    if (checkpoint / gguf_file.NAME).is_file():
        return LlamaCpp(Session(checkpoint / gguf_file.NAME, threads), "GGUF")
    with tempfile.TemporaryDirectory(prefix="ptsearch-") as scratch:
        path = Path(scratch) / gguf_file.NAME
        gguf_weights.write(checkpoint, path, settings.dtype, trust_remote_code)
        return LlamaCpp(Session(path, threads), f"GGUF of dense {settings.dtype}")


def _greedy(logits: Tensor) -> list[int]:
    """The most probable token of each row."""
    largest, best = logits.max(-1)
    check_finite(largest)
    tokens: list[int] = best.tolist()
    return tokens
