"""Calibration text: what GPTQ and AWQ are fitted on, and the held-out rest for perplexity."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptsearch.benchmarks import hub
from ptsearch.config import CalibrationConfig
from ptsearch.models.prompting import Prompter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

Turn = dict[str, str]  # role, content
Record = str | list[Turn]
SHARE = 0.8  # of the text, from its beginning; the rest is held out


@dataclass(frozen=True)
class Calibration:
    """A text and how it is cut: `samples` chunks of `length` tokens, drawn by a seed."""

    text: str = field(repr=False)
    samples: int = 32
    length: int = 512
    rendering: str = "raw"  # as it is | chat: each line a JSON list of messages

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides the calibration tokens but the tokenizer and the seed."""
        text = hashlib.sha256(self.text.encode()).hexdigest()
        what = json.dumps([text, self.samples, self.length, self.rendering])
        return hashlib.sha256(what.encode()).hexdigest()

    @property
    def fitted(self) -> str:
        return self.text[: self._cut]

    @property
    def held_out(self) -> str:
        return self.text[self._cut :]

    @property
    def _cut(self) -> int:
        """Where the held-out part begins; no conversation is in both."""
        cut = int(len(self.text) * SHARE)
        return cut if self.rendering == "raw" else self.text.rfind("\n", 0, cut) + 1


def read(settings: CalibrationConfig) -> Calibration:
    """The calibration that the settings name. ValueError: no such file, or a bad line in it."""
    if settings.source == "python-docs":
        records: Sequence[Record] = python_docs()
    else:
        path = Path(settings.path)
        if settings.source == "hub":
            if not (settings.repo and settings.revision and settings.path):
                raise ValueError(
                    "calibration=hub needs calibration.repo=OWNER/NAME, calibration.revision="
                    "COMMIT and calibration.path=FILE, a text, JSONL or Parquet file there"
                )
            instead = "calibration=file calibration.path=FILE"
            path = hub.get(hub.HUB, settings.repo, settings.path, settings.revision, instead)
        records = _read_file(path)
    if settings.rendering == "chat":
        text = "\n".join(json.dumps(_messages(record)) for record in records)
    else:
        text = "\n\n".join(_plain(record) for record in records)
    return Calibration(text, settings.samples, settings.length, settings.rendering)


def chunks(tokenizer: "Tokenizer", text: str, length: int, rendering: str = "raw") -> Tensor:
    """Consecutive chunks (n, length) of token ids; the short rest is dropped.

    ValueError: conversations, and the tokenizer has no chat template.
    """
    prompter = Prompter(tokenizer)
    if rendering == "raw":
        ids = prompter.prompt(text)
    elif not tokenizer.chat_template:
        raise ValueError(
            "calibration.rendering=chat and the model's tokenizer has no chat template: "
            "choose calibration.rendering=raw"
        )
    else:
        told = [json.loads(line) for line in text.splitlines()]
        rendered = [
            prompter.conversation([(t["role"], t["content"]) for t in turns], reply=False)
            for turns in told
        ]
        ids = [token for each in rendered for token in prompter.tokens(each)]
    whole = len(ids) // length
    return torch.tensor(ids[: whole * length], dtype=torch.long).view(whole, length)


def draw(available: int, samples: int, seed: int) -> list[int]:
    """Which chunks a seed takes: `samples` of `available`, without replacement."""
    if samples > available:
        raise ValueError(
            f"the calibration text holds {available} samples, calibration.samples={samples}: "
            "give more text, or fewer or shorter samples"
        )
    return random.Random(seed).sample(range(available), samples)


def python_docs() -> list[str]:
    """The topics of Python's own help, alphabetically: text that every installation has."""
    import pydoc_data.topics

    return [text for _, text in sorted(pydoc_data.topics.topics.items())]


def _plain(record: Record) -> str:
    return record if isinstance(record, str) else "\n\n".join(turn["content"] for turn in record)


def _messages(record: Record) -> list[Turn]:
    """A text alone is what a user says."""
    return [{"role": "user", "content": record}] if isinstance(record, str) else record


def _read_file(path: Path) -> list[Record]:
    """Texts and conversations. ValueError: none, or something else is in the file."""
    if not path.is_file():
        raise ValueError(f"calibration.path={str(path)!r} is not a file")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        return [_record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text at byte {error.start}") from None
    records: list[Record] = [text]
    if path.suffix == ".jsonl":
        records = [
            _record(_parsed(line), f"{path}, line {number}")
            for number, line in enumerate(text.splitlines(), start=1)
            if line.strip()
        ]
    if not any(_plain(record).strip() for record in records):
        raise ValueError(f"{path}: no text in it")
    return records


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _record(row: object, where: str) -> Record:
    """The row's `text`, or its `messages`."""
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    turns = (row.get("messages") if isinstance(row, dict) else None) or [{}]
    if not all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns):
        raise ValueError(
            f'{where}: expected an object with a string under "text", or a list of objects with '
            '"role" and "content" under "messages"'
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
