"""Servers on ephemeral loopback ports, each with its event loop in a thread: ours, and engines."""

import asyncio
import json
import socket
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import yaml
from aiohttp import web

from ptsearch import store
from ptsearch.config import EngineConfig, ServeConfig
from ptsearch.deploy import query
from ptsearch.deploy.folder import FORMAT, LoggedVote
from ptsearch.serve import serve

LABELS = ["no", "yes", "maybe"]
NAMES = ("high", "middle", "low")
CHOICE = {"structured_outputs": {"choice": LABELS}}


@contextmanager
def live(settings: ServeConfig) -> Iterator[str]:
    """URL of our server, up to and with /v1; what keeps it from going live is raised here."""
    told: Queue[Any] = Queue()

    def run() -> None:
        try:
            asyncio.run(serve(settings, EngineConfig(), lambda *said: told.put(said)))
        except ValueError as error:
            told.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    said = told.get(timeout=60)
    if isinstance(said, Exception):
        thread.join()
        raise said
    try:
        yield said[0]
    finally:
        said[1].should_exit = True
        thread.join()


def write_folder(
    out: Path,
    members: Mapping[str, Path | None],
    logged: Sequence[LoggedVote] = (),
    chat: Mapping[str, Any] | None = None,
) -> Path:
    """An exported ensemble with these checkpoints (None: a gateway needs none)."""
    with store.new_folder(out) as part:
        for label, checkpoint in members.items():
            folder = part / "members" / label
            folder.mkdir(parents=True)
            for file in checkpoint.iterdir() if checkpoint else ():
                (folder / file.name).write_bytes(file.read_bytes())
        described = {
            "format": FORMAT,
            "settings": {"engine.dtype": "float32"},
            "vote": {"rule": "majority", "order": list(members)},
            "chat": dict(chat or {}),
            "members": [{"label": label, "folder": f"members/{label}"} for label in members],
        }
        (part / "ensemble.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
        rows = [row._asdict() | {"query": query.to_fields(row.query)} for row in logged]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (part / "verify.jsonl").write_text(text, encoding="utf-8")
    return out


def by_checksum(salt: str) -> Callable[[str, Sequence[str]], str]:
    """A member that chooses by a checksum of the prompt."""
    return lambda prompt, labels: labels[zlib.crc32((salt + prompt).encode()) % len(labels)]


@dataclass
class FakeEngine:
    """An OpenAI-compatible engine that says what `say` does to prompt and labels."""

    label: str
    say: Callable[[str, Sequence[str]], str]
    up: bool = True  # says that it serves its model
    seconds: float = 0.0
    failures: list[int] = field(default_factory=list)  # statuses of the next answers
    body: bytes | None = None  # in place of a completion
    respond: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None  # the same
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    kill: Callable[[], None] = lambda: None

    async def models(self, request: web.Request) -> web.Response:
        found = [{"id": self.label}] if self.up else []
        return web.json_response({"object": "list", "data": found})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        if self.respond:
            return await self.respond(request)
        asked = await request.json()
        self.asked.append(asked)
        await asyncio.sleep(self.seconds)
        if self.failures:
            error = {"error": {"message": "the engine is unwell"}}
            return web.json_response(error, status=self.failures.pop(0))
        if self.body is not None:
            return web.Response(body=self.body)
        prompt = asked.get("prompt") or asked["messages"][-1]["content"]
        form = asked.get("response_format", {}).get("json_schema", {}).get("schema", {})
        labels = asked.get("structured_outputs", {}).get("choice") or form.get("enum") or []
        text = self.say(prompt, labels)
        if form:
            text = json.dumps(text)
        message = {"message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 7, "completion_tokens": 1}
        return web.json_response({"choices": [{"text": text} | message], "usage": usage})


@contextmanager
def running(*engines: FakeEngine) -> Iterator[list[str]]:
    """URLs of the engines, each of which can be killed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    for engine in engines:
        _call(loop, _start(engine, loop))
    try:
        yield [engine.url for engine in engines]
    finally:
        for engine in engines:
            engine.kill()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(engine: FakeEngine, loop: asyncio.AbstractEventLoop) -> None:
    app = web.Application()
    app.router.add_get("/v1/models", engine.models)
    app.router.add_post("/v1/completions", engine.complete)
    app.router.add_post("/v1/chat/completions", engine.complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    engine.url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    engine.kill = lambda: _call(loop, _stop(runner, listening))


async def _stop(runner: web.AppRunner, listening: socket.socket) -> None:
    """Refuse connections and break those that there are.

    What is being accepted while asyncio closes its server would never be closed
    (python/cpython#109564): accepting ends first.
    """
    if listening.fileno() != -1:
        asyncio.get_running_loop().remove_reader(listening)
        await asyncio.sleep(0.01)  # handlers of what was accepted in this round
    for handler in runner.server.connections if runner.server else ():
        if handler.transport:
            handler.transport.abort()
        handler.force_close()
    await runner.cleanup()
    await asyncio.sleep(0.01)  # sockets are closed by the loop's next rounds


def _call(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop).result(10)


def always(said: str):
    return lambda prompt, labels: said


def engines(*said: str) -> list[FakeEngine]:
    """One engine a member that always says the same."""
    return [FakeEngine(name, always(text)) for name, text in zip(NAMES, said, strict=False)]


@contextmanager
def gateway(tmp_path: Path, members: list[FakeEngine], **settings) -> Iterator[str]:
    folder = write_folder(tmp_path / "out", {engine.label: None for engine in members})
    with (
        running(*members) as urls,
        live(ServeConfig("gateway", str(folder), port=0, engines=urls, **settings)) as url,
    ):
        yield url


def ask(url: str, text: str = "Is it?", **others) -> httpx.Response:
    body = {"model": "out", "messages": [{"role": "user", "content": text}], **CHOICE, **others}
    return httpx.post(f"{url}/chat/completions", json=body, timeout=30)


def outcomes(response: httpx.Response) -> dict[str, str]:
    return {m["member"]: m["outcome"] for m in response.json()["ptsearch"]["members"]}
