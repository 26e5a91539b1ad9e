"""A request that takes long: what it may ask, how long it may take, and who waits for it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from members import folder  # noqa: F401 - a fixture: three members of one tiny model
from serving import CHOICE, engines, gateway, live

from ptsearch.benchmarks.parsing import Question
from ptsearch.config import ServeConfig
from ptsearch.deploy.ensemble import PrecisionEnsemble
from ptsearch.deploy.query import Query
from ptsearch.serve import openai_api

pytestmark = pytest.mark.usefixtures("long_labels")
LABELS = [f"{n} " + "words " * 120 for n in range(128)]  # 100,000 characters with the prompt
LONG = {"prompt": "x", "guided_choice": LABELS}  # half a minute
SHORT = {"prompt": "Is it?", "guided_choice": ["a", "b"]}


@pytest.fixture
def long_labels(monkeypatch) -> None:
    """As much work on the tiny model as less text is on one of a usual size."""
    monkeypatch.setattr(openai_api, "MAX_LABELS_TEXT", 10**6)


class Calls:
    """Whether a call of `PrecisionEnsemble.ask` has begun, and ended; made once a server is up."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        ask = PrecisionEnsemble.ask
        self.started, self.ended = threading.Event(), threading.Event()

        def watched(*args, **others):
            self.started.set()
            try:
                return ask(*args, **others)
            finally:
                self.ended.set()

        patch.setattr(PrecisionEnsemble, "ask", watched)


@contextmanager
def local(folder: Path, **others) -> Iterator[str]:
    with live(ServeConfig(dir=str(folder), port=0, **others)) as url:
        yield url


def post(url: str, body: dict) -> httpx.Response:
    return httpx.post(f"{url}/completions", json=body, timeout=120)


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_labels_count_against_the_limit(path, tmp_path) -> None:
    with gateway(tmp_path, engines("yes"), max_prompt=1000) as url:
        turns = [{"role": "user", "content": "Is it?"}]
        body = {"prompt": "Is it?", "messages": turns, "guided_choice": ["yes", "n" * 999]}
        said = httpx.post(f"{url}/{path}", json=body)
    assert said.status_code == 400
    assert "prompt and labels have 1008 characters, 1000 are allowed" in said.text


def test_a_short_request_does_not_wait_for_a_long_one(folder) -> None:
    with local(folder, deadline=600) as url, ThreadPoolExecutor(1) as pool:
        long = pool.submit(post, url, {"prompt": "x", "guided_choice": LABELS[:32]})
        time.sleep(0.5)
        for _ in range(3):
            started = time.monotonic()
            assert post(url, SHORT).status_code == 200
            assert time.monotonic() - started < 5
            assert httpx.get(url.replace("/v1", "/health")).status_code == 200
        assert not long.done()
        assert long.result().status_code == 200


def test_a_request_ends_at_its_deadline_and_so_does_its_work(folder, monkeypatch) -> None:
    with local(folder, deadline=2) as url:
        calls = Calls(monkeypatch)
        said = post(url, LONG)
        assert said.status_code == 504
        assert said.json()["error"]["code"] == "deadline"
        assert "serve.deadline" in said.json()["error"]["message"]
        assert calls.ended.wait(60)
        assert post(url, SHORT).status_code == 200


def test_the_work_of_a_client_that_left_is_dropped(folder, monkeypatch) -> None:
    with local(folder, deadline=600) as url:
        calls = Calls(monkeypatch)
        host, port = httpx.URL(url).host, httpx.URL(url).port
        body = json.dumps(LONG).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, port), timeout=10) as client:
            client.sendall(head.encode() + body)
            assert calls.started.wait(60)
        assert calls.ended.wait(60)
        shown = httpx.get(url.replace("/v1", "/metrics")).text
        assert 'ptsearch_requests_total{status="499"} 1.0' in shown
        assert "ptsearch_requests_in_progress 0.0" in shown


@pytest.mark.parametrize("lazy", [False, True])
def test_a_gateway_has_a_deadline_too(lazy, tmp_path) -> None:
    members = engines("yes", "no")
    with gateway(tmp_path, members, deadline=0.3, lazy=lazy) as url:
        members[0].seconds = 1
        started = time.monotonic()
        said = httpx.post(f"{url}/completions", json={"prompt": "Is it?", **CHOICE})
        assert said.status_code == 504
        assert time.monotonic() - started < 0.9


def test_nobody_wants_an_answer(folder) -> None:
    ensemble = PrecisionEnsemble.from_pretrained(folder)
    queries = [Query(f"Is it {n}?", Question(("a", "b"))) for n in range(4)]
    whole = ensemble.ask(queries)
    told = {}
    for lazy in (False, True):
        some = ensemble.ask(queries, lazy, told.__setitem__, wanted=lambda n: n != 2)
        assert 2 not in told
        assert [answer.label for answer in some[:2]] == [answer.label for answer in whole[:2]]
        assert (some[2].label, some[2].members) == (None, {})
        assert ensemble.ask(queries, lazy, wanted=lambda n: False)[0].members == {}
