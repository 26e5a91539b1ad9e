"""All members in this process: requests that arrive while a batch runs form the next batch.

Threads beside the event loop's do all model work, tokenizing included. Of a batch each core takes
the next member, or a part of one; a query is answered as soon as its last member's reply is there.
Queries with much work wait in a line of their own, so that the others wait for none of them, and
in a line those with less work are preferred. What no client waits for any more is dropped.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from typing import NamedTuple

from ptsearch import engine as engines
from ptsearch.benchmarks.parsing import UNUSABLE, Question
from ptsearch.config import EngineConfig, ServeConfig
from ptsearch.deploy.ensemble import Answer, PrecisionEnsemble, tokenized
from ptsearch.deploy.folder import Exported
from ptsearch.deploy.query import Query, code, with_form
from ptsearch.serve.openai_api import ApiError
from ptsearch.serve.replies import NOT_ASKED, Members, Reply, answered

MOST = 64  # queries of a batch
STILL = 0.002  # seconds without an arrival after which a batch is closed
QUICK = (1_000, 32_000)  # characters in the quick line, at least and at most, by speed
PROBE = 1_000  # characters whose time tells the speed
STEP = 200  # characters as much work as a token of a reply, which a batch's rows share
JOINS = 64  # labels whose tokenizing behind a prompt is as much work as reading it
PREFERRED = 1000  # characters of work that let one that arrived a second later go first

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A query and who waits for its replies."""

    query: Query
    replies: asyncio.Future[list[Reply]]

    def wanted(self) -> bool:
        return not self.replies.done()  # else its client has gone, or its deadline has passed


Line = asyncio.PriorityQueue[tuple[float, int, Waiting]]  # when it is due, number


class Work(NamedTuple):
    """What answering batches needs."""

    line: Line
    thread: ThreadPoolExecutor
    ensemble: PrecisionEnsemble
    lazy: bool
    quick: int  # characters that take a second: a query of the quick line, about half of a batch


@asynccontextmanager
async def members(
    folder: Exported, settings: ServeConfig, engine: EngineConfig
) -> AsyncIterator[Members]:
    """The loaded ensemble. ValueError: a checkpoint is refused, or memory is short."""
    loop = asyncio.get_running_loop()
    numbers = itertools.count()

    async def ask(query: Query) -> list[Reply]:
        query = with_form(query, folder.description.chat)
        waiting, work = Waiting(query, loop.create_future()), _work([query])
        line = lines[work > quick].line
        line.put_nowait((loop.time() + work / PREFERRED, next(numbers), waiting))
        return await waiting.replies

    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1, "model")) for _ in range(2)]
        searched = folder.description.engine(engine)
        load = partial(PrecisionEnsemble.from_pretrained, folder.folder, searched)
        ensemble = await loop.run_in_executor(threads[0], load)
        for label, each in ensemble.engines.items():
            ensemble.engines[label] = engines.keeping(each, settings.keep_tokens)
            for thread in threads:  # it learns the number of cores before a lane changes it
                await loop.run_in_executor(thread, engines.lanes_of, each)
        log.info("measuring the speed")
        quick = await loop.run_in_executor(threads[0], _quick, ensemble)
        lines = [Work(Line(), thread, ensemble, settings.lazy, quick) for thread in threads]
        batches = [asyncio.create_task(_batches(work)) for work in lines]
        try:
            yield Members(ask, list)
        finally:
            for task in batches:
                task.cancel()
            await asyncio.gather(*batches, return_exceptions=True)


def _quick(ensemble: PrecisionEnsemble) -> int:
    """Characters of work that a second is enough for; within QUICK."""
    text = "Each line of it is read once, and nothing of it was read before. " * PROBE
    seconds = 1.0
    for number in range(2):  # the first call of a model is slow
        started = perf_counter()
        with suppress(ValueError):  # so small a context
            ensemble.ask([Query(f"{number}. {text}"[:PROBE], Question(("no", "yes")))])
        seconds = perf_counter() - started
    return int(min(max(PROBE / seconds, QUICK[0]), QUICK[1]))


def _work(queries: Sequence[Query]) -> int:
    """What answering them together takes, in characters of a prompt; each label is tokenized
    behind the prompt.
    """
    read = sum(q.size * (1 + len(q.question.labels) // JOINS) for q in queries)
    return read + STEP * max(q.max_new_tokens for q in queries)


async def _batches(work: Work) -> None:
    """Answer what waits in a line, batch after batch, for good."""
    loop = asyncio.get_running_loop()

    def settle(waiting: Waiting, replies: list[Reply] | ApiError) -> None:
        if not waiting.wanted():
            return
        if isinstance(replies, ApiError):
            waiting.replies.set_exception(replies)
        else:
            waiting.replies.set_result(replies)

    def tell(waiting: Waiting, replies: list[Reply] | ApiError) -> None:
        loop.call_soon_threadsafe(settle, waiting, replies)

    while True:
        batch = await _gather(work.line, work.quick)
        answers = loop.run_in_executor(work.thread, _answer, work.ensemble, batch, work.lazy, tell)
        await asyncio.wait([answers])
        if error := answers.exception():  # of this batch alone
            log.error("a batch of %d failed", len(batch), exc_info=error)
            for waiting in batch:
                settle(waiting, ApiError(500, "the model failed"))


async def _gather(line: Line, most: int) -> list[Waiting]:
    """The first that is due, and whatever comes on its heels.

    Clients that were answered together ask again together: without the pause the first of them
    would be answered alone while the others wait.
    """
    batch = [(await line.get())[-1]]
    with suppress(TimeoutError):
        while len(batch) < MOST and _work([waiting.query for waiting in batch]) < most:
            batch.append((await asyncio.wait_for(line.get(), STILL))[-1])
    return batch


def _answer(
    ensemble: PrecisionEnsemble,
    batch: Sequence[Waiting],
    lazy: bool,
    tell: Callable[[Waiting, list[Reply] | ApiError], None],
) -> None:
    """Tell each query's replies as soon as the last member's is there."""
    started = perf_counter()
    asked: list[tuple[Waiting, int]] = []  # with the number of its prompt's tokens
    for waiting in batch:
        try:
            if waiting.wanted():
                asked.append((waiting, _length(ensemble, waiting.query)))
        except ApiError as error:
            tell(waiting, error)

    def told(number: int, found: Answer) -> None:
        ms, (waiting, tokens) = 1000 * (perf_counter() - started), asked[number]
        tell(waiting, _replies(ensemble, waiting.query, found, ms, tokens))

    queries = [waiting.query for waiting, _ in asked]
    ensemble.ask(queries, lazy, told, lambda number: asked[number][0].wanted())


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
