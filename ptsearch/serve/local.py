"""All members in this process: requests that arrive while a batch runs form the next batch.

One thread does all model work, so the event loop never waits for it. Two batches side by side, on
half the cores each, answered fewer requests (experiments/LOG.md).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import NamedTuple

from jinja2 import TemplateError

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.config_serve import ServeConfig
from ptsearch.ensemble import Answer, PrecisionEnsemble, label_ids, prompt_ids
from ptsearch.exported import Exported
from ptsearch.query import Query, code
from ptsearch.rules import UNUSABLE
from ptsearch.serve.api import ApiError
from ptsearch.serve.replies import NOT_ASKED, Members, Reply, answered

MOST = 64  # queries of a batch
STILL = 0.002  # seconds without an arrival after which a batch is closed

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A query and who waits for its replies."""

    query: Query
    replies: asyncio.Future[list[Reply]]


class Work(NamedTuple):
    """What answering batches needs."""

    queue: asyncio.Queue[Waiting]
    thread: ThreadPoolExecutor
    ensemble: PrecisionEnsemble
    lazy: bool


@asynccontextmanager
async def members(
    folder: Exported, settings: ServeConfig, engine: EngineConfig
) -> AsyncIterator[Members]:
    """The loaded ensemble. ValueError: a checkpoint is refused, or memory is short."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Waiting] = asyncio.Queue()

    async def ask(query: Query) -> list[Reply]:
        waiting = Waiting(query, loop.create_future())
        queue.put_nowait(waiting)
        return await waiting.replies

    with ThreadPoolExecutor(1, "model") as thread:
        dtype = folder.description["settings"].get("engine.dtype", engine.dtype)
        searched = replace(engine, dtype=dtype)
        load = partial(PrecisionEnsemble.from_pretrained, folder.folder, searched)
        ensemble = await loop.run_in_executor(thread, load)
        for label, each in ensemble.engines.items():
            if each.rounding is None:  # else what is kept would depend on what stands behind it
                ensemble.engines[label] = each._replace(kept=engines.Kept(settings.keep_tokens))
        work = Work(queue, thread, ensemble, settings.lazy)
        batches = asyncio.create_task(_batches(work))
        try:
            yield Members(ask, list)
        finally:
            batches.cancel()
            await asyncio.gather(batches, return_exceptions=True)


async def _batches(work: Work) -> None:
    """Answer what waits, batch after batch, for good."""
    loop = asyncio.get_running_loop()
    while True:
        batch = await _gather(work.queue)
        queries = [waiting.query for waiting in batch]
        answers = loop.run_in_executor(work.thread, answer, work.ensemble, queries, work.lazy)
        await asyncio.wait([answers])
        if error := answers.exception():  # of this batch alone
            log.error("a batch of %d failed", len(batch), exc_info=error)
        found: list[list[Reply] | ApiError] = (
            [ApiError(500, "the model failed")] * len(batch) if error else answers.result()
        )
        for waiting, replies in zip(batch, found, strict=True):
            if waiting.replies.done():
                continue  # its client has gone
            if isinstance(replies, ApiError):
                waiting.replies.set_exception(replies)
            else:
                waiting.replies.set_result(replies)


async def _gather(queue: asyncio.Queue[Waiting]) -> list[Waiting]:
    """The first that arrives, and whatever comes on its heels.

    Clients that were answered together ask again together: without the pause the first of them
    would be answered alone while the others wait.
    """
    batch = [await queue.get()]
    with suppress(TimeoutError):
        while len(batch) < MOST:
            batch.append(await asyncio.wait_for(queue.get(), STILL))
    return batch


def answer(
    ensemble: PrecisionEnsemble, queries: Sequence[Query], lazy: bool
) -> list[list[Reply] | ApiError]:
    """Each query's replies, or what is wrong with it."""
    started = perf_counter()
    lengths = [_length(ensemble, query) for query in queries]
    sound = [query for query, n in zip(queries, lengths, strict=True) if isinstance(n, int)]
    answers = iter(ensemble.ask(sound, lazy) if sound else [])
    ms = 1000 * (perf_counter() - started)
    return [
        _replies(ensemble, query, next(answers), ms, n) if isinstance(n, int) else n
        for query, n in zip(queries, lengths, strict=True)
    ]


def _length(ensemble: PrecisionEnsemble, query: Query) -> int | ApiError:
    """Tokens of the prompt, if it can be answered."""
    engine = next(iter(ensemble.engines.values()))
    try:
        ids = prompt_ids(engine.tokenizer, query.prompt)
        new = query.max_new_tokens or max(map(len, label_ids(engine.tokenizer, query))) - 1
        engines.check_length(engine, 0, ids, new)
    except TemplateError as error:
        return ApiError(400, f"the model's chat template refuses the messages: {error}")
    except ValueError as error:
        return ApiError(
            400, str(error).replace("prompt 0", "the prompt"), "context_length_exceeded"
        )
    return len(ids)


def _replies(
    ensemble: PrecisionEnsemble, query: Query, found: Answer, ms: float, length: int
) -> list[Reply]:
    return [
        answered(code(query, member, found.said[member]), ms, (length, 1))
        if member in found.said
        else Reply(UNUSABLE, NOT_ASKED)
        for member in ensemble.members
    ]
