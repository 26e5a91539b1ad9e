"""Members behind OpenAI-compatible engines (vLLM and others), one a member, asked side by side.

An engine that fails, is too slow or sends what is no completion is not counted in this vote and
gets no requests for `serve.cooldown` seconds, then until it lists its member again. The other
members vote. Engines are not trusted: what they send is bounded, never decompressed, never followed
to another place and never passed on.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import aiohttp

from ptsearch.benchmarks import parsing
from ptsearch.config import EngineConfig, ServeConfig
from ptsearch.deploy import query
from ptsearch.deploy.folder import Exported
from ptsearch.deploy.query import Query
from ptsearch.serve.replies import NOT_ASKED, Members, Reply, answered
from ptsearch.shared import secret

MIN_TOKENS = 16  # of a reply, where an engine is not bound to the labels
LIST_SECONDS = 5.0  # to list the models that are served
BACK_OFF = 0.05  # seconds before the first retry, doubled each time
MOST_BYTES = 100_000  # of a response
MOST_TOKENS = 2**31  # that an engine may say it has used
SAID = 300  # characters of an engine's own message in the log

log = logging.getLogger(__name__)


class EngineError(Exception):
    """An engine failed in a way that a retry may repair."""


@dataclass
class Engine:
    """One member's engine."""

    label: str
    url: str  # up to and with /v1
    template: Mapping[str, object]  # arguments of its chat template
    model: str = ""  # its name there
    cooldown: asyncio.Task[None] | None = None  # ends when it may be asked again

    def cooling(self) -> bool:
        return self.cooldown is not None and not self.cooldown.done()


@asynccontextmanager
async def members(
    folder: Exported, settings: ServeConfig, _engine: EngineConfig
) -> AsyncIterator[Members]:
    """The ensemble, once every engine lists its member.

    ValueError: an engine is missing in `serve.engines`, does not come up within `serve.wait`
    seconds, or serves another model.
    """
    labels = list(folder.members)
    if len(settings.engines) != len(labels):
        raise ValueError(
            f"serve.engines must have {len(labels)} URLs, one per member in the order "
            f"{', '.join(labels)}; got {len(settings.engines)}"
        )
    chat = folder.description.chat
    engines = [
        Engine(label, url.rstrip("/"), chat.arguments)
        for label, url in zip(labels, settings.engines, strict=True)
    ]
    log.info("waiting for the engines of %s", ", ".join(labels))
    in_turn = folder.description.lazy_order
    key = secret("serve.engine_key_env", settings.engine_key_env)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers={"Accept-Encoding": "identity"}
        | ({"Authorization": f"Bearer {key}"} if key else {}),
        auto_decompress=False,  # a few bytes of it may be gigabytes
        timeout=aiohttp.ClientTimeout(total=None),  # `_reply` bounds all tries together
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        await asyncio.gather(*(_meet(session, engine, labels, settings.wait) for engine in engines))

        async def ask(asked: Query) -> list[Reply]:
            asked = query.with_form(asked, chat)
            if settings.lazy:
                return await _one_by_one(session, engines, in_turn, asked, settings)
            return await asyncio.gather(
                *(_reply(session, engine, asked, settings) for engine in engines)
            )

        try:
            yield Members(ask, lambda: [engine.label for engine in engines if engine.cooling()])
        finally:
            cooldowns = [engine.cooldown for engine in engines if engine.cooldown]
            for cooldown in cooldowns:
                cooldown.cancel()
            await asyncio.gather(*cooldowns, return_exceptions=True)


async def _meet(
    session: aiohttp.ClientSession, engine: Engine, labels: Sequence[str], wait: float
) -> None:
    """Wait until the engine is up; its name of the member is the label, or its only model."""
    try:
        async with asyncio.timeout(wait):
            while not (names := await _served(session, engine)):
                await asyncio.sleep(0.5)
    except TimeoutError:
        raise ValueError(f"no engine for {engine.label} at {engine.url} in {wait} s") from None
    if engine.label not in names and (len(names) > 1 or names[0] in labels):
        raise ValueError(
            f"{engine.url} serves {', '.join(names)}, not {engine.label}: start it with "
            f"--served-model-name {engine.label}"
        )
    engine.model = engine.label if engine.label in names else names[0]


async def _served(session: aiohttp.ClientSession, engine: Engine) -> list[str]:
    """Names of the models that the engine serves; none while it is not up."""
    try:
        async with session.get(f"{engine.url}/models", allow_redirects=False) as response:
            found = json.loads(await _content(response)) if response.status == 200 else {}
            return [str(model["id"]) for model in found["data"]]
    except (aiohttp.ClientError, EngineError, KeyError, RecursionError, TypeError, ValueError):
        return []


async def _content(response: aiohttp.ClientResponse) -> bytes:
    """The body. EngineError: it is too large."""
    content = bytearray()
    async for part in response.content.iter_any():
        content += part
        if len(content) > MOST_BYTES:
            raise EngineError(f"its response is larger than {MOST_BYTES} bytes")
    return bytes(content)


async def _cool_down(session: aiohttp.ClientSession, engine: Engine, seconds: float) -> None:
    """Ends when the engine, asked every `seconds`, lists its member."""
    names: list[str] = []
    while engine.model not in names:
        await asyncio.sleep(seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(LIST_SECONDS):
                names = await _served(session, engine)


async def _reply(
    session: aiohttp.ClientSession, engine: Engine, asked: Query, settings: ServeConfig
) -> Reply:
    """The engine's reply within `serve.timeout` seconds, all retries included."""
    started = time.monotonic()
    if engine.cooling():
        return Reply(parsing.UNUSABLE, "cooldown")
    outcome, note = "slow", f"no reply in {settings.timeout} s"
    try:
        async with asyncio.timeout(settings.timeout):
            for attempt in range(settings.retries + 1):
                if attempt:
                    await asyncio.sleep(BACK_OFF * 2 ** (attempt - 1))
                try:
                    reply = await _ask(session, engine, asked, settings)
                    return reply._replace(ms=1000 * (time.monotonic() - started))
                except EngineError as error:
                    outcome, note = "down", str(error)
                except aiohttp.ClientError as error:  # its text may hold addresses
                    outcome, note = "down", type(error).__name__
    except TimeoutError:
        pass
    if settings.cooldown and not engine.cooling():  # the first of several requests that failed
        log.warning("%s at %s is not asked for a while: %s", engine.label, engine.url, note)
        engine.cooldown = asyncio.create_task(_cool_down(session, engine, settings.cooldown))
    return Reply(parsing.UNUSABLE, outcome, 1000 * (time.monotonic() - started), note=note)


async def _one_by_one(
    session: aiohttp.ClientSession,
    engines: Sequence[Engine],
    in_turn: Sequence[str],
    asked: Query,
    settings: ServeConfig,
) -> list[Reply]:
    """Replies up to the one that decides the vote; `ms` counts from the first request."""
    order = [engine.label for engine in engines]
    found = {label: Reply(parsing.UNUSABLE, NOT_ASKED) for label in order}
    codes: dict[str, int] = {}
    waited = 0.0
    for label in in_turn:
        reply = await _reply(session, engines[order.index(label)], asked, settings)
        waited += reply.ms
        found[label], codes[label] = reply._replace(ms=waited), reply.code
        if query.decided(asked, codes, order):
            break
    return list(found.values())


async def _ask(
    session: aiohttp.ClientSession, engine: Engine, asked: Query, settings: ServeConfig
) -> Reply:
    path, body = request(engine, asked, settings.constrain)
    async with session.post(
        engine.url + path,
        data=body,
        headers={"Content-Type": "application/json"},
        allow_redirects=False,  # the prompt goes to the engine and nowhere else
    ) as response:
        status, content = response.status, await _content(response)
    if 400 <= status < 500 and status != 429:
        if settings.log_prompts:  # its message may hold the prompt
            log.info("%s rejects a request: %r", engine.label, content[:SAID])
        return Reply(parsing.UNUSABLE, "rejected", note=f"status {status}")
    if status != 200:
        raise EngineError(f"status {status}")
    return read(content, engine.label, asked)


def request(engine: Engine, asked: Query, constrain: str) -> tuple[str, bytes]:
    """(path, body) of a greedy request: for one of the labels only, or for a reply."""
    choices = [] if asked.max_new_tokens else asked.continuations
    longest = max((len(choice.encode()) for choice in choices), default=0)
    body: dict[str, object] = {
        "model": engine.model,
        "temperature": 0,
        "max_tokens": asked.max_new_tokens or max(MIN_TOKENS, longest),  # a token has a byte
    }
    if asked.stop:
        body["stop"] = asked.stop
    if choices and constrain == "structured_outputs":
        body["structured_outputs"] = {"choice": choices}
    elif choices and constrain == "response_format":
        schema = {"type": "string", "enum": choices}
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    if isinstance(asked.prompt, str):
        return "/completions", json.dumps({**body, "prompt": asked.prompt}).encode()
    if engine.template:
        body["chat_template_kwargs"] = engine.template
    return "/chat/completions", json.dumps({**body, "messages": list(asked.prompt)}).encode()


def read(content: bytes, member: str, asked: Query) -> Reply:
    """An engine's response as a reply. EngineError: it is not a completion."""
    try:
        found = json.loads(content)
        choice, usage = found["choices"][0], found.get("usage") or {}
        message = choice.get("message") or {}
        text = message.get("content") or choice.get("text") or ""
        declined = not text and bool(message.get("refusal"))
        tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
        code = parsing.declined(asked.question) if declined else answer_code(text, member, asked)
        if not 0 <= min(tokens) <= max(tokens) < MOST_TOKENS:
            raise ValueError(f"it says that it has used {tokens} tokens")
    except (
        *(AttributeError, IndexError, KeyError, TypeError, ValueError),
        *(OverflowError, RecursionError),  # Infinity; brackets in brackets
    ) as error:
        raise EngineError("its response is not a completion") from error
    return answered(code, tokens=tokens)


def answer_code(text: str, member: str, asked: Query) -> int:
    """The label equal to a reply, or to a reply that is a JSON string; else what the rules read."""
    if asked.max_new_tokens:
        return query.code(asked, member, query.MemberAnswer(reply=text))
    labels = [label.strip() for label in asked.continuations]
    bare = text.strip()
    if bare[:1] == '"':
        with suppress(ValueError):
            bare = str(json.loads(bare)).strip()
    if bare in labels:
        return labels.index(bare)
    return parsing.words(bare, asked.question)
