"""uvicorn's HTTP protocol, which also bounds how long a request's head may take.

uvicorn waits for ever for a client that opens a connection and sends nothing, or its
headers byte by byte. It also has no way for an application to reset a connection: one is
put into each request's state.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workers.gateway.client import ABORT

HEAD_TIMEOUT_S: Final = 15.0


class GatewayProtocol(HttpToolsProtocol):
    """One connection."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request's first byte came; the rest of its head has to follow."""
        super().on_message_begin()
        state: dict[str, Any] = self.scope["state"]
        state[ABORT] = self.transport.abort
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._head_came()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
