"""The gateway in front of engines that fail, dawdle and die."""

import gzip
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from aiohttp import web
from serving import FakeEngine, ask, engines, gateway, outcomes, running


def test_an_engine_killed_under_load(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    members[2].seconds = 0.05
    with gateway(tmp_path, members) as url, ThreadPoolExecutor(8) as pool:
        said = [pool.submit(ask, url, f"Is {n}?") for n in range(40)]
        time.sleep(0.1)
        members[2].kill()
        answers = [each.result() for each in said]
        assert {response.status_code for response in answers} == {200}
        assert {a.json()["choices"][0]["message"]["content"] for a in answers} == {"yes"}
        last = ask(url)
        assert outcomes(last)["low"] in ("down", "cooldown")
        assert last.json()["ptsearch"]["away"] == 1
        assert httpx.get(url.replace("/v1", "/health")).json()["away"] == ["low"]


def test_a_slow_engine_is_waited_for_once(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members, timeout=0.3) as url:
        members[2].seconds = 1
        assert outcomes(ask(url))["low"] == "slow"
        started = time.monotonic()
        assert outcomes(ask(url))["low"] == "cooldown"
        assert time.monotonic() - started < 0.3


def test_a_member_comes_back(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members, retries=0, cooldown=0.05) as url:
        members[2].failures = [500]
        assert outcomes(ask(url))["low"] == "down"
        time.sleep(0.1)
        assert outcomes(ask(url))["low"] == "answered"


def test_a_member_rests_until_it_serves_again(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members, retries=0, cooldown=0.05) as url:
        health = url.replace("/v1", "/health")
        members[2].failures, members[2].up = [500], False
        assert outcomes(ask(url))["low"] == "down"
        time.sleep(0.2)
        assert httpx.get(health).json()["away"] == ["low"]
        assert outcomes(ask(url))["low"] == "cooldown"
        members[2].up = True
        time.sleep(0.2)
        assert httpx.get(health).json()["away"] == []
        assert outcomes(ask(url))["low"] == "answered"


def test_without_a_rest_a_member_is_asked_each_time(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members, retries=0, cooldown=0) as url:
        members[2].failures = [500]
        assert outcomes(ask(url))["low"] == "down"
        assert outcomes(ask(url))["low"] == "answered"


def test_a_failure_is_tried_again(tmp_path) -> None:
    members = engines("yes", "no", "no")
    with gateway(tmp_path, members) as url:
        members[1].failures = [503]
        assert set(outcomes(ask(url)).values()) == {"answered"}
        assert len(members[1].asked) == 2


def completion(usage: str = "{}", text: str = '"no"') -> bytes:
    return f'{{"choices": [{{"message": {{"content": {text}}}}}], "usage": {usage}}}'.encode()


NO_COMPLETIONS = [
    *(b"", b"[]", b'{"choices": []}', b'{"choices": [[]]}', b"\xff", b"[" * 90_000, b"1" * 9_000),
    *(b'{"choices": {"a": 1}}', b'{"choices": [{"message": "no"}]}', completion("[1]")),
    *(completion(f'{{"prompt_tokens": {n}}}') for n in ("Infinity", "NaN", "-1", "1e300", "[]")),
    *(completion(text=text) for text in ("7", "[1]", '{"a": 1}', "true")),
    completion(text=f'"{"no " * 50_000}"'),  # larger than any reply
]


@pytest.mark.parametrize("body", NO_COMPLETIONS, ids=lambda body: repr(body[:60]))
def test_what_is_no_completion_is_no_reply(body, tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members, retries=0) as url:
        members[2].body = body
        said = ask(url)
        assert outcomes(said)["low"] == "down"
        assert said.json()["choices"][0]["message"]["content"] == "yes"


def test_an_endless_response(tmp_path) -> None:
    members, sent = engines("yes", "yes", "no"), []

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while len(sent) < 1000:
            sent.append(await response.write(bytes(2**20)))
        return response

    with gateway(tmp_path, members, retries=0, timeout=30) as url:
        members[2].respond = endless
        assert outcomes(ask(url))["low"] == "down"
        assert len(sent) < 100


def test_a_response_that_grows_when_it_is_decompressed(tmp_path) -> None:
    members, bomb, accepted = engines("yes", "yes", "no"), gzip.compress(bytes(10**8)), []

    async def compressed(request: web.Request) -> web.StreamResponse:
        accepted.append(request.headers["Accept-Encoding"])
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    with gateway(tmp_path, members, retries=0) as url:
        members[2].respond = compressed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert outcomes(ask(url))["low"] == "down"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KB
    assert accepted == ["identity"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status, tmp_path) -> None:
    members, other = engines("yes", "yes", "no"), FakeEngine("low", lambda *_: "no")

    async def redirect(request: web.Request) -> web.StreamResponse:
        place = {"Location": f"{other.url}{request.path.removeprefix('/v1')}"}
        return web.Response(status=status, headers=place)

    with running(other), gateway(tmp_path, members, retries=0) as url:
        members[2].respond = redirect
        assert outcomes(ask(url))["low"] == "down"
    assert not other.asked


def test_below_the_quorum(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members, retries=0) as url:
        members[1].failures, members[2].failures = [500], [500]
        said = ask(url)
        assert said.status_code == 503
        assert said.headers["Retry-After"] == "1"
        assert "middle down, low down" in said.json()["error"]["message"]
        assert httpx.get(url.replace("/v1", "/health")).status_code == 503


def test_a_request_that_the_engines_reject(tmp_path) -> None:
    members = engines("yes", "yes", "no")
    with gateway(tmp_path, members) as url:
        for member in members[:2]:
            member.failures = [400]
        said = ask(url)
        assert said.status_code == 400
        assert "reject the request (status 400)" in said.json()["error"]["message"]
        assert "unwell" not in said.text  # what an engine says is not passed on
        assert ask(url).status_code == 200  # nobody rests for it
