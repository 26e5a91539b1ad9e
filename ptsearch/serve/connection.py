"""A client's connection: uvicorn's, and what it does not do by itself."""

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope


class Connection(H11Protocol):
    """Work for a client that has left is cancelled."""

    task: asyncio.Task[object] | None = None  # answers the request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app = self._answer

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.task is not None:
            self.task.cancel()

    async def _answer(
        self, scope: "Scope", receive: "ASGIReceiveCallable", send: "ASGISendCallable"
    ) -> None:
        self.task = asyncio.current_task()
        try:
            await self.config.loaded_app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.cycle.disconnected:
                raise
