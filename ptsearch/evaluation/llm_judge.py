"""Replies that the rules cannot read, given to another model: `benchmarks.extract=judge`.

The judge names the label that a reply means, or `refused` or `unclear`. It is a local checkpoint,
whose log-probabilities of these words are compared, or any OpenAI-compatible endpoint. A verdict
lies in a file of its own, named by the hash of all that it depends on, so nothing is asked twice.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks import Benchmark, Sample, Turn
from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE
from ptsearch.config import BASE, Config, EngineConfig, JudgeConfig, secret
from ptsearch.models import base_model, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.shared import Report

WORDING_VERSION = 1  # bump when a judge is asked in other words
DECLINED, UNCLEAR = "refused", "unclear"
MAX_NEW_TOKENS = 16
WAIT = 1.0  # seconds before the first repeat of a request, doubled each time
BUSY = 429


class Reader(NamedTuple):
    """Who is asked, and where its verdicts are kept."""

    identity: str  # all that a verdict depends on besides what is asked
    judge: JudgeConfig
    checkpoint: Path | None  # None = an endpoint
    engine: EngineConfig
    verdicts: Path


class Ask(NamedTuple):
    question: str
    labels: tuple[str, ...]
    reply: str


class Unread(NamedTuple):
    """A reply without a code, and the code that stands for declining there."""

    row: int
    ask: Ask
    declined: int


class Read(NamedTuple):
    codes: NDArray[np.int16]  # (samples,)
    judged: NDArray[np.bool_]  # (samples,) whose code is a judge's


def open_reader(config: Config, base: BaseModel) -> Reader | None:
    """The judge of the config; None where the rules alone read.

    ValueError, FileNotFoundError: no such checkpoint, or the key's variable is not set.
    """
    if config.benchmarks.extract == "rules":
        return None
    judge, cache, checkpoint = config.benchmarks.judge, Path(config.cache_dir), None
    if judge.url:
        secret("benchmarks.judge.api_key_env", judge.api_key_env)
        who = ["endpoint", judge.url.rstrip("/"), judge.name]
    elif judge.model == BASE:
        checkpoint = base.path
        who = ["checkpoint", base.name, base.revision, config.engine.dtype]
    else:
        checkpoint = Path(judge.model).resolve()
        if not (checkpoint / "config.json").is_file():
            raise FileNotFoundError(f"benchmarks.judge.model: no checkpoint in {judge.model!r}")
        who = ["checkpoint", base_model.content_hash(checkpoint, cache), config.engine.dtype]
    identity = json.dumps([*who, WORDING_VERSION])
    return Reader(identity, judge, checkpoint, config.engine, cache / "verdicts")


def unread(
    benchmark: Benchmark, table: pa.Table, codes: Sequence[int], start: int = 0
) -> list[Unread]:
    """The replies of a benchmark's predictions that are unusable or contradictory, empty ones left
    out; rows count from `start`.
    """
    rows = zip(benchmark.samples, table["reply"].to_pylist(), codes, strict=True)
    return [
        Unread(
            row,
            Ask(_question(sample), sample.question.labels, reply),
            len(sample.question.labels) if sample.question.abstain else REFUSED,
        )
        for row, (sample, reply, code) in enumerate(rows, start=start)
        if code in (UNUSABLE, CONTRADICTORY) and reply and reply.strip()
    ]


def unsettled(reader: Reader, asks: Iterable[Ask]) -> list[Ask]:
    """Those without a verdict, each once."""
    return [ask for ask in dict.fromkeys(asks) if not _file(reader, ask).exists()]


def settle(reader: Reader, asks: Sequence[Ask], report: Report) -> None:
    """Put `asks` to the judge and keep what it says, each verdict as it comes.

    ValueError: the endpoint refuses, or does not answer.
    """
    report("asking the judge", 0, len(asks))
    answer = _from_endpoint if reader.checkpoint is None else _from_checkpoint
    for done, (ask, verdict) in enumerate(zip(asks, answer(reader, asks), strict=True)):
        text = json.dumps({"judge": reader.identity, "verdict": verdict})
        store.write_text(_file(reader, ask), text)
        report("asking the judge", done + 1, len(asks))


def decide(reader: Reader, codes: NDArray[np.int16], replies: Iterable[Unread]) -> Read:
    """The codes with the settled verdicts in them; what is unclear keeps the code of the rules."""
    codes, judged = codes.copy(), np.zeros(codes.shape, dtype=bool)
    for row, ask, declined in replies:
        verdict = store.read_json(_file(reader, ask))["verdict"]
        if verdict != UNCLEAR:
            codes[row] = declined if verdict == DECLINED else ask.labels.index(verdict)
            judged[row] = True
    return Read(codes, judged)


def wording(ask: Ask) -> str:
    """What the judge is asked."""
    return (
        f"Question (examples may stand before it):\n{ask.question}\n\n"
        f"Reply:\n{ask.reply}\n\n"
        "Which answer does the reply give? Say exactly one of: "
        f"{', '.join(_choices(ask))}. Say '{DECLINED}' if the reply declines to answer, "
        f"'{UNCLEAR}' if it gives no answer or several."
    )


def _choices(ask: Ask) -> tuple[str, ...]:
    return (*ask.labels, DECLINED, UNCLEAR)


def _question(sample: Sample) -> str:
    """What is asked last, without the demonstrations where it is known where they stand."""
    if not isinstance(sample.prompt, str):
        return sample.prompt[-1].content
    return sample.prompt[sample.demos[-1][1] :] if sample.demos else sample.prompt


def _from_checkpoint(reader: Reader, asks: Sequence[Ask]) -> list[str]:
    """The most probable of the choices for each ask."""
    assert reader.checkpoint is not None
    with engines.opened(reader.checkpoint, reader.engine) as engine:
        return _scored(engine, asks)


def _scored(engine: engines.Engine, asks: Sequence[Ask]) -> list[str]:
    """The most probable of the choices for each ask."""
    chat = bool(engine.tokenizer.chat_template)
    prompts = [
        loading.render(
            engine.tokenizer,
            (Turn("user", wording(ask)),) if chat else f"{wording(ask)}\nAnswer:",
        )
        for ask in asks
    ]
    lead = "" if chat else " "
    words = [
        [
            engine.tokenizer(lead + word, add_special_tokens=False)["input_ids"]
            for word in _choices(ask)
        ]
        for ask in asks
    ]
    try:
        found = engines.score(engine, prompts, words, lambda _done, _total: None)
    except engines.NonFiniteLogitsError as error:
        raise ValueError("benchmarks.judge.model: the model's output is not finite") from error
    return [_choices(ask)[int(np.argmax(row))] for ask, row in zip(asks, found, strict=True)]


def _from_endpoint(reader: Reader, asks: Sequence[Ask]) -> Iterator[str]:
    """What the endpoint says to each ask, several at a time; anything but a choice is unclear."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request
    key = secret("benchmarks.judge.api_key_env", reader.judge.api_key_env)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with (
        httpx.Client(headers=headers, timeout=reader.judge.timeout) as client,
        ThreadPoolExecutor(reader.judge.parallel) as threads,
    ):
        said = threads.map(partial(_post, client, reader.judge), map(wording, asks))
        for ask, text in zip(asks, said, strict=True):
            yield _choice(text, ask)


def _post(client: httpx.Client, judge: JudgeConfig, content: str) -> str:
    """The endpoint's reply. ValueError: it refuses the request, or gives none in all attempts."""
    url = f"{judge.url.rstrip('/')}/chat/completions"
    body = {
        "model": judge.name,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": MAX_NEW_TOKENS,
    }
    fault = ""
    for attempt in range(judge.retries + 1):
        if attempt:
            time.sleep(WAIT * 2 ** (attempt - 1))
        try:
            response = client.post(url, json=body)
        except httpx.TransportError as error:
            fault = type(error).__name__
            continue
        fault = f"HTTP {response.status_code}"
        if response.is_success:
            return _content(response, url)
        if response.status_code != BUSY and not response.is_server_error:
            break
    raise ValueError(f"benchmarks.judge: no answer from {url} ({fault}, {attempt + 1} attempt(s))")


def _content(response: httpx.Response, url: str) -> str:
    try:
        content: object = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"benchmarks.judge: {url} answered, but not with a chat completion"
        ) from error
    return str(content or "")


def _choice(said: str, ask: Ask) -> str:
    bare = said.strip(" \t\r\n.*_'\"`").casefold()
    return next((word for word in _choices(ask) if word.casefold() == bare), UNCLEAR)


def _file(reader: Reader, ask: Ask) -> Path:
    digest = hashlib.sha256(json.dumps([reader.identity, *ask]).encode()).hexdigest()
    return reader.verdicts / digest[:2] / f"{digest}.json"
