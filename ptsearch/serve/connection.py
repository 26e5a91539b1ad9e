"""A client's connection: uvicorn's, and what neither it nor h11 does against hostile clients."""

import asyncio
import logging
import resource
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

HEAD_SECONDS = 5.0  # from a connection, or a request's first byte, to the end of its headers
GRACE = 1.0  # seconds in which a new connection's request may wait to be read
SAID_AGAIN = 60.0  # seconds between two warnings that file handles are short

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """Work for a client that has left is cancelled, and headers that dawdle close the connection.

    A connection beyond `most` closes the one that has gone longest without a complete request; a
    new one is spared at first, up to twice as many.
    """

    most = 512
    task: asyncio.Task[object] | None = None  # answers the request
    begun = False  # of the next request something has come
    since = 0.0  # when it was begun, or else when waiting for it began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app, self.since = self._answer, self.loop.time()
        self._await_head()
        if (more := len(self.connections) - self.most) > 0:
            before = self.loop.time() - (GRACE if more <= self.most else 0)
            others = [each for each in self.connections if isinstance(each, Connection)]
            idle = [each for each in others if not (each._busy() or each.transport.is_closing())]
            first = min(idle, key=lambda each: each.since)  # this one, if all are busy
            if first.since <= before:
                first.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.task is not None:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        if not self.begun:
            self.begun, self.since = True, self.loop.time()
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.begun, self.since = False, self.loop.time()
        if self.transport.is_closing():  # as soon as the client has read the response
            self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # `close` waits until the client has read what was sent

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # this is its response
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def _await_head(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_at(
                self.since + HEAD_SECONDS, self.timeout_keep_alive_handler
            )

    def _busy(self) -> bool:
        """Whether a complete request is being answered."""
        cycle = self.cycle
        return cycle is not None and not (cycle.more_body or cycle.response_complete)

    async def _answer(
        self, scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable"
    ) -> None:
        names = {name for name, _ in self.headers}
        if b"transfer-encoding" in names and (
            b"content-length" in names or self.scope["http_version"] != "1.1"
        ):  # a proxy may read another end of the request than h11 does (RFC 9112, 6.1)
            self.send_400_response("Content-Length and Transfer-Encoding exclude each other.")
            return
        self.task = asyncio.current_task()
        try:
            await self.config.loaded_app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.cycle.disconnected:
                raise


def limited(requests: int) -> type[Connection]:
    """Connections of a server that answers so many requests at once: twice as many, and no more
    than a quarter of the file handles that the process may have.
    """
    handles = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = min(max(64, 2 * requests), handles // 4)
    return type("Limited", (Connection,), {"most": most})


def warn_seldom(loop: asyncio.AbstractEventLoop) -> None:
    """Say once a minute that connections cannot be accepted, not at each of thousands of tries."""
    said = -SAID_AGAIN

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said
        if "accept() out of system resource" not in context["message"]:
            loop.default_exception_handler(context)
        elif loop.time() - said >= SAID_AGAIN:
            said = loop.time()
            log.warning("connections wait: no file handle is free (see ulimit -n)")

    loop.set_exception_handler(handle)
