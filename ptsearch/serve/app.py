"""The HTTP side of both servers: routes, limits, the key, and every error in OpenAI's shape."""

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ptsearch.config import ServeConfig
from ptsearch.deploy.description import VoteInfo
from ptsearch.deploy.query import Query, with_refusal
from ptsearch.serve import openai_api
from ptsearch.serve.metrics import Meter
from ptsearch.serve.openai_api import ApiError
from ptsearch.serve.replies import AWAY, Members, Reply, count

RETRY_AFTER = {"Retry-After": "1"}  # seconds
GONE = 499  # the client left: no response, a status for /metrics alone
BODY_SECONDS = 10.0  # until a request's body is there

log = logging.getLogger(__name__)


@dataclass
class Service:
    """An ensemble that has gone live."""

    name: str
    labels: list[str]  # of the members, in the vote's total order
    members: Members
    settings: ServeConfig
    key: str  # "" = none is asked for
    meter: Meter
    vote: VoteInfo
    under_way: int = 0

    @property
    def quorum(self) -> int:
        return self.settings.quorum or len(self.labels) // 2 + 1


def build(service: Service) -> Starlette:
    """The ASGI application."""

    def endpoint(chat: bool) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await _guarded(service, request, chat)

        return answer

    def card() -> dict[str, object]:
        common = {"object": "model", "created": 0, "owned_by": "ptsearch"}
        return {"id": service.name, **common, "members": service.labels}

    async def models(request: Request) -> Response:
        _check_key(service, request)
        return JSONResponse({"object": "list", "data": [card()]})

    async def model(request: Request) -> Response:
        _check_key(service, request)
        openai_api.check_model(request.path_params["name"], service.name)
        return JSONResponse(card())

    async def health(request: Request) -> Response:
        away = service.members.away()
        live = len(service.labels) - len(away) >= service.quorum
        body = {"status": "ok" if live else "below quorum", "away": away}
        return JSONResponse(body, 200 if live else 503)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(service.meter.registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/completions", endpoint(chat=False), methods=["POST"]),
            Route("/v1/chat/completions", endpoint(chat=True), methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={ApiError: _error, HTTPException: _no_route, Exception: _fault},
    )


async def _guarded(service: Service, request: Request, chat: bool) -> Response:
    """An answer, counted."""
    started, meter = perf_counter(), service.meter
    status = 500
    try:
        response = await _answer(service, request, chat, started)
        status = response.status_code
        return response
    except ApiError as error:
        status = error.status
        raise
    except asyncio.CancelledError:
        status = GONE
        raise
    finally:
        meter.requests.labels(str(status)).inc()


async def _answer(service: Service, request: Request, chat: bool, started: float) -> Response:
    settings, labels = service.settings, service.labels
    _check_key(service, request)
    body = await _body(request, settings.max_body)
    asked, form = openai_api.parse(body, chat, service.name, settings.max_prompt)
    asked = with_refusal(asked, service.vote)
    options = asked.question.labels
    if settings.log_prompts:
        log.info("asked %r, one of %r", asked.prompt, options)
    replies = await _replies(service, asked)
    vote = count(replies, asked)
    seconds = perf_counter() - started
    service.meter.vote(replies, vote, seconds)
    if len(labels) - vote.away < service.quorum:
        raise _too_few(labels, replies, service.quorum)
    slowest = max(reply.ms for reply in replies)
    told = {
        "agreed": vote.agreed,
        "away": vote.away,
        "members": openai_api.members(labels, options, replies),
        "own_ms": round(max(0.0, 1000 * seconds - slowest), 3),
    }
    whole = openai_api.response(options, form, service.name, vote, told)
    if form.stream:
        return Response(openai_api.events(whole, form), media_type="text/event-stream")
    return Response(json.dumps(whole), media_type="application/json")


async def _replies(service: Service, asked: Query) -> list[Reply]:
    """The members' replies, within the deadline and the limit of concurrent requests."""
    settings, waiting = service.settings, service.meter.waiting
    if service.under_way >= settings.max_concurrent:
        raise ApiError(429, f"{settings.max_concurrent} requests are under way", "busy")
    service.under_way += 1
    waiting.set(service.under_way)
    try:
        async with asyncio.timeout(settings.deadline):
            return await service.members.ask(asked)
    except TimeoutError:
        said = f"no vote within serve.deadline={settings.deadline:g} s"
        raise ApiError(504, said, "deadline") from None
    finally:
        service.under_way -= 1
        waiting.set(service.under_way)


def _too_few(labels: list[str], replies: list[Reply], quorum: int) -> ApiError:
    """400 if enough members found fault with the request itself, else 503."""
    notes = [reply.note for reply in replies if reply.outcome == "rejected"]
    if len(notes) >= quorum:
        return ApiError(400, f"the members' engines reject the request ({notes[0]})")
    away = [
        f"{label} {reply.outcome}"
        for label, reply in zip(labels, replies, strict=True)
        if reply.outcome in AWAY
    ]
    return ApiError(503, f"too few members replied: {', '.join(away)}", "below_quorum")


def _check_key(service: Service, request: Request) -> None:
    if not service.key:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {service.key}".encode()):
        raise ApiError(401, "the API key is wrong or missing", "invalid_api_key")


async def _body(request: Request, most: int) -> bytes:
    """The body, read no further than `most` bytes."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise ApiError(413, f"the body is larger than {most} bytes", "body_too_large")
                parts.append(part)
    except ClientDisconnect:
        raise ApiError(400, "the client has gone") from None
    except TimeoutError:
        raise ApiError(408, f"the body did not come in {BODY_SECONDS} s") from None
    return b"".join(parts)


async def _error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = RETRY_AFTER if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{error.detail}: {request.method} {request.url.path}"
    return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse(ApiError(500, "an error inside the server").body(), 500)
