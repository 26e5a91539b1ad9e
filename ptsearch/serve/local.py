"""All members in this process: requests that arrive while a batch runs form the next batch.

Threads beside the event loop's do all model work. Of a batch each core takes the next member, or a
part of one; a query is answered as soon as its last member's reply is there.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import NamedTuple

from ptsearch import engine as engines
from ptsearch.benchmarks.parsing import UNUSABLE
from ptsearch.config import EngineConfig, ServeConfig
from ptsearch.deploy.ensemble import Answer, PrecisionEnsemble, tokenized
from ptsearch.deploy.folder import Exported
from ptsearch.deploy.query import Query, code
from ptsearch.serve.openai_api import ApiError
from ptsearch.serve.replies import NOT_ASKED, Members, Reply, answered

MOST = 64  # queries of a batch
STILL = 0.002  # seconds without an arrival after which a batch is closed

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A query and who waits for its replies."""

    query: Query
    tokens: int  # of the prompt
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
        waiting = Waiting(query, _length(ensemble, query), loop.create_future())
        queue.put_nowait(waiting)
        return await waiting.replies

    with ThreadPoolExecutor(1, "model") as thread:
        searched = replace(engine, dtype=folder.description.dtype(engine.dtype))
        load = partial(PrecisionEnsemble.from_pretrained, folder.folder, searched)
        ensemble = await loop.run_in_executor(thread, load)
        for label, each in ensemble.engines.items():
            ensemble.engines[label] = engines.keeping(each, settings.keep_tokens)
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

    def settle(waiting: Waiting, replies: list[Reply]) -> None:
        if not waiting.replies.done():  # else its client has gone
            waiting.replies.set_result(replies)

    def tell(waiting: Waiting, replies: list[Reply]) -> None:
        loop.call_soon_threadsafe(settle, waiting, replies)

    while True:
        batch = await _gather(work.queue)
        answers = loop.run_in_executor(work.thread, _answer, work.ensemble, batch, work.lazy, tell)
        await asyncio.wait([answers])
        if error := answers.exception():  # of this batch alone
            log.error("a batch of %d failed", len(batch), exc_info=error)
            for waiting in batch:
                if not waiting.replies.done():
                    waiting.replies.set_exception(ApiError(500, "the model failed"))


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


def _answer(
    ensemble: PrecisionEnsemble,
    batch: Sequence[Waiting],
    lazy: bool,
    tell: Callable[[Waiting, list[Reply]], None],
) -> None:
    """Tell each query's replies as soon as the last member's is there."""
    started = perf_counter()

    def told(number: int, found: Answer) -> None:
        ms, waiting = 1000 * (perf_counter() - started), batch[number]
        tell(waiting, _replies(ensemble, waiting.query, found, ms, waiting.tokens))

    ensemble.ask([waiting.query for waiting in batch], lazy, told=told)


def _length(ensemble: PrecisionEnsemble, query: Query) -> int:
    """Tokens of the prompt. ApiError: it cannot be answered."""
    first = ensemble.members[0]
    try:
        ids, labels, new = tokenized(ensemble.prompters[first], query)
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    try:
        new = new or max(map(len, labels)) - 1
        engines.check_length(ensemble.engines[first], 0, ids, new)
    except ValueError as error:
        message = str(error).replace("prompt 0", "the prompt")
        raise ApiError(400, message, "context_length_exceeded") from error
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
