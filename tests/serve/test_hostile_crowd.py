"""200 hostile requests at once with crowds of half requests, beside a client that behaves."""

import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import hostile
import httpx
import pytest
from aiohttp import web
from hostile import KINDS
from members import folder  # noqa: F401 - a fixture: three members of one tiny model
from serving import NAMES, engines, running, write_folder

pytestmark = pytest.mark.faults
HANDLES = 512
HALVES = (b"POST /v1/completions HTTP/1.1\r\nHo", hostile.http(b"{", length="Content-Length: 900"))
WELL = {"prompt": "Is it?", "guided_choice": ["a", "b"]}


@contextmanager
def command(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """The server as users start it, with few file handles: its URL, process and log."""
    log = folder.parent / "log"
    line = [sys.executable, "-m", "ptsearch", *options, f"serve.dir={folder}", "serve.port=0"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [*line, f"runs_dir={folder.parent / 'runs'}"],
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (HANDLES, HANDLES)),
        )
    try:
        while not (found := re.search(r"serving at (\S+)", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield found[1], server, log
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


class Well:
    """A client that asks again and again, each time on a new connection."""

    def __init__(self, url: str) -> None:
        self.url, self.seconds, self.over = url, list[float](), threading.Event()
        self.statuses = set[int]()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.over.is_set():
            started = time.monotonic()
            said = httpx.post(f"{self.url}/completions", json=WELL, timeout=60)
            self.seconds.append(time.monotonic() - started)
            self.statuses.add(said.status_code)
            time.sleep(0.05)


def attacked(url: str, server: subprocess.Popen, log: Path) -> None:
    place = httpx.URL(url).host, httpx.URL(url).port
    attacks = [(kind, KINDS[kind]) for kind in (list(KINDS) * 3)[:200]]
    crowd, well = list[socket.socket](), Well(url)
    well.thread.start()
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda each: hostile.run(place, each[1]), attacks)
        for number in range(1_500 + 300):
            with suppress(OSError):
                crowd.append(socket.create_connection(place, timeout=10))
                crowd[-1].sendall(HALVES[number >= 1_500])
            time.sleep(0.002)
        statuses = list(found)
    well.over.set()
    well.thread.join()
    for client in crowd:
        client.close()
    shown = httpx.get(url.replace("/v1", "/metrics"), timeout=10).text
    lines = log.read_text().splitlines()
    logging.getLogger(__name__).info(
        "%d hostile requests, %d half ones; %d of the client beside them, the slowest %.2f s; "
        "%d lines logged",
        *(len(statuses), len(crowd), len(well.seconds), max(well.seconds), len(lines)),
    )
    assert server.poll() is None
    assert 500 not in statuses
    assert 'status="500"' not in shown
    always = (hostile.CLOSED, hostile.OPEN, 429, 504)  # where many come at once
    wrong = [
        (kind, status)
        for (kind, attack), status in zip(attacks, statuses, strict=True)
        if status not in (*attack.statuses, *always)
    ]
    assert not wrong
    assert well.statuses == {200}
    assert max(well.seconds) < 5
    assert len(lines) < 50
    assert "Traceback" not in log.read_text()


@pytest.fixture(autouse=True)
def handles() -> Iterator[None]:
    """Of this process: it plays all the clients."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_local_server(folder) -> None:
    with command(folder, "+serve=local") as started:
        attacked(*started)


def test_the_gateway_with_an_engine_that_is_hostile_too(tmp_path) -> None:
    out = write_folder(tmp_path / "out", dict.fromkeys(NAMES))
    members = engines("a", "a", "b")
    with running(*members) as urls:
        options = (f"serve.engines=[{','.join(urls)}]", "serve.cooldown=0", "serve.retries=0")
        with command(out, "+serve=gateway", *options) as started:

            async def endless(request: web.Request) -> web.StreamResponse:
                response = web.StreamResponse()
                await response.prepare(request)
                with suppress(OSError):
                    while True:
                        await response.write(os.urandom(2**16))
                return response

            members[2].respond = endless
            attacked(*started)
