"""Replies that the rules cannot read, given to another model: `benchmarks.extract=judge`.

The judge, behind any OpenAI-compatible endpoint, says which label a reply means, or `refused` or
`unclear`. A verdict is kept in a file named by the hash of all that it depends on, so nothing is
asked twice.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import urllib3
from numpy.typing import NDArray

from ptsearch import store
from ptsearch.benchmarks import Benchmark, Sample
from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE, without_thoughts
from ptsearch.config import Config, JudgeConfig
from ptsearch.shared import Report, secret

WORDING_VERSION = 1  # bump when a judge is asked in other words
DECLINED, UNCLEAR = "refused", "unclear"
MAX_NEW_TOKENS = 16
WAIT = 1.0  # seconds before a second repeat of a request is twice this, then doubled each time
REPEATED = (429, *range(500, 600))  # statuses after which a request is made again


class Reader(NamedTuple):
    """Who is asked, and where its verdicts are kept."""

    identity: str  # all that a verdict depends on besides what is asked
    judge: JudgeConfig
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


def open_reader(config: Config) -> Reader | None:
    """The judge of the config; None where the rules alone read. ValueError: its key is not set."""
    if config.benchmarks.extract == "rules":
        return None
    judge = config.benchmarks.judge
    secret("benchmarks.judge.api_key_env", judge.api_key_env)
    identity = json.dumps(["endpoint", judge.url.rstrip("/"), judge.name, WORDING_VERSION])
    return Reader(identity, judge, Path(config.cache_dir) / "judged")


def unread(
    benchmark: Benchmark, table: pa.Table, codes: Sequence[int], start: int = 0
) -> list[Unread]:
    """The replies of a benchmark's predictions that are unusable, contradictory or free, empty ones
    left out; rows count from `start`.
    """
    replies = [reply and without_thoughts(reply) for reply in table["reply"].to_pylist()]
    rows = zip(benchmark.samples, replies, codes, strict=True)
    return [
        Unread(
            row,
            Ask(_question(sample), sample.question.labels, reply),
            len(sample.question.labels) if sample.question.abstain else REFUSED,
        )
        for row, (sample, reply, code) in enumerate(rows, start=start)
        if (code in (UNUSABLE, CONTRADICTORY) or benchmark.scenarios[sample.scenario].free)
        and reply
        and reply.strip()
    ]


def unsettled(reader: Reader, asks: Iterable[Ask]) -> list[Ask]:
    """Those without a verdict, each once."""
    return [ask for ask in dict.fromkeys(asks) if not _file(reader, ask).exists()]


def settle(reader: Reader, asks: Sequence[Ask], report: Report) -> None:
    """Put `asks` to the judge and keep what it says, each verdict as it comes.

    ValueError: the endpoint refuses, or does not answer.
    """
    report("asking the judge", 0, len(asks))
    for done, (ask, verdict) in enumerate(zip(asks, _answers(reader, asks), strict=True)):
        store.write_record(_file(reader, ask), {"judge": reader.identity, "verdict": verdict})
        report("asking the judge", done + 1, len(asks))


def decide(reader: Reader, codes: NDArray[np.int16], replies: Iterable[Unread]) -> Read:
    """The codes with the settled verdicts in them; what is unclear keeps the code of the rules."""
    codes, judged = codes.copy(), np.zeros(codes.shape, dtype=bool)
    for row, ask, declined in replies:
        verdict = store.read_record(_file(reader, ask))["verdict"]
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


def _answers(reader: Reader, asks: Sequence[Ask]) -> Iterator[str]:
    """What the endpoint says to each ask, several at a time; anything but a choice is unclear."""
    judge = reader.judge
    key = secret("benchmarks.judge.api_key_env", judge.api_key_env)
    client = urllib3.PoolManager(
        maxsize=judge.parallel,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=judge.timeout,
        retries=urllib3.Retry(
            judge.retries, allowed_methods=None, status_forcelist=REPEATED, backoff_factor=WAIT,
            raise_on_status=False,
        ),
    )  # fmt: skip
    with ThreadPoolExecutor(judge.parallel) as threads:
        replies = threads.map(partial(_post, client, judge), map(wording, asks))
        for ask, text in zip(asks, replies, strict=True):
            yield _choice(text, ask)


def _post(client: urllib3.PoolManager, judge: JudgeConfig, content: str) -> str:
    """The endpoint's reply. ValueError: it refuses the request, or gives none in all attempts."""
    url = f"{judge.url.rstrip('/')}/chat/completions"
    body = {
        "model": judge.name,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": MAX_NEW_TOKENS,
    }
    try:
        response = client.request("POST", url, json=body)
    except urllib3.exceptions.MaxRetryError as error:
        reason = type(error.reason).__name__
        raise ValueError(f"benchmarks.judge: no answer from {url} ({reason})") from error
    if response.status != 200:
        raise ValueError(f"benchmarks.judge: no answer from {url} (HTTP {response.status})")
    try:
        return str(response.json()["choices"][0]["message"]["content"] or "")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"benchmarks.judge: {url} answered, but not with a chat completion"
        ) from error


def _choice(reply: str, ask: Ask) -> str:
    bare = reply.strip(" \t\r\n.*_'\"`").casefold()
    return next((word for word in _choices(ask) if word.casefold() == bare), UNCLEAR)


def _file(reader: Reader, ask: Ask) -> Path:
    digest = hashlib.sha256(json.dumps([reader.identity, *ask]).encode()).hexdigest()
    return reader.verdicts / digest[:2] / f"{digest}.json"
