"""Clients that dawdle, come in crowds or speak no clean HTTP, beside one that behaves."""

import asyncio
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from serving import ask, engines, gateway

from ptsearch.serve import app, connection

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
HALF = HEAD + b"Content-Length: 900\r\n\r\n{"


@contextmanager
def clients(url: str, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    place = httpx.URL(url).host, httpx.URL(url).port
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(place, timeout=10)))
            opened[-1].sendall(sent)
        yield opened


def closed(client: socket.socket) -> bool:
    """Whether the server has ended the connection, within the client's timeout."""
    try:
        while client.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD])
def test_headers_that_do_not_come(sent, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with gateway(tmp_path, engines("yes")) as url, clients(url, 30, sent) as slow:
        assert ask(url).status_code == 200
        assert all(map(closed, slow))


def test_headers_that_come_byte_by_byte(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    with gateway(tmp_path, engines("yes")) as url, clients(url, 1, HEAD) as (slow,):
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - started < 5:
                slow.sendall(b"X")
                time.sleep(0.05)


def test_the_next_request_of_a_connection_has_its_own_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.4)
    whole = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    with gateway(tmp_path, engines("yes")) as url, clients(url, 1, b"") as (client,):
        for _ in range(5):
            client.sendall(whole[:9])
            time.sleep(0.15)
            client.sendall(whole[9:])
            said = client.recv(4096)
            while not said.endswith(b"}"):
                said += client.recv(4096)
            assert said.startswith(b"HTTP/1.1 200")
        client.sendall(whole[:9])
        assert closed(client)


def test_half_bodies_take_no_place_in_the_queue(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 1)
    with gateway(tmp_path, engines("yes"), max_concurrent=4) as url, clients(url, 40, HALF) as slow:
        assert ask(url).status_code == 200
        assert all(client.recv(100).startswith(b"HTTP/1.1 408") for client in slow)


@pytest.mark.parametrize("sent", [b"", HEAD, HALF])
def test_a_crowd_makes_room_for_who_comes_next(sent, tmp_path, monkeypatch) -> None:
    """The oldest without a complete request is closed; a new one is spared, up to twice as many."""
    monkeypatch.setattr(connection.Connection, "most", 8)
    monkeypatch.setattr(connection, "GRACE", 60)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 60)
    monkeypatch.setattr(app, "BODY_SECONDS", 60)
    monkeypatch.setattr(connection, "limited", lambda _: connection.Connection)
    monkeypatch.setattr("ptsearch.serve.limited", lambda _: connection.Connection)
    with gateway(tmp_path, engines("yes")) as url, clients(url, 20, sent) as crowd:
        assert ask(url).status_code == 200
        for client in crowd:
            client.settimeout(0.1)
        left = [client for client in crowd if not closed(client)]
        assert len(left) == 15
        monkeypatch.setattr(connection, "GRACE", 0)
        assert ask(url).status_code == 200
        assert any(map(closed, left))


def test_the_limit_follows_the_file_handles(monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert [connection.limited(n).most for n in (1, 64, 256)] == [64, 128, 256]


def test_short_file_handles_are_said_once(caplog) -> None:
    loop = asyncio.new_event_loop()
    try:
        connection.warn_seldom(loop)
        for _ in range(50):
            loop.call_exception_handler({"message": "socket.accept() out of system resource"})
        loop.call_exception_handler({"message": "something else"})
    finally:
        loop.close()
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if "no file handle" in text] == said[:1]
    assert said[1:] == ["something else"]


GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"  # answered with 200, were it clean
BODY = b'5\r\n{"a":\r\n0\r\n\r\n'


@pytest.mark.parametrize(
    "sent",
    [
        GET + b"Content-Length: 15\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        GET + b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n\r\n" + BODY,
        GET.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + BODY,
        GET + b"Transfer-Encoding: chunked\r\n\r\nnothing\r\n",
        GET + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + BODY,
        GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        GET + b"Content-Length: -1\r\n\r\n",
        GET + b"X: " + b"x" * 400_000,
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(90),
    ],
)
def test_http_that_can_be_read_in_two_ways_ends_the_connection(sent, tmp_path, caplog) -> None:
    with gateway(tmp_path, engines("yes")) as url, clients(url, 1, sent) as (client,):
        assert client.recv(12) == b"HTTP/1.1 400"
        assert closed(client)
        assert ask(url).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
