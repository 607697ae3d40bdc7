"""uvicorn's HTTP protocol, which also bounds how long a request's head may take, and be.

uvicorn waits for ever for a client that opens a connection and sends nothing, or its
headers byte by byte, and keeps whatever a head brings, however long. It also has no way for
an application to reset a connection: one is put into each request's state.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workers.gateway.client import ABORT

HEAD_TIMEOUT_S: Final = 15.0
# Beyond the longest key, all of its bytes escaped, and 1 KiB of metadata, many times over.
HEAD_MAX_BYTES: Final = 64 * 1024


class GatewayProtocol(HttpToolsProtocol):
    """One connection."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, for as long as a head that has not ended is not too long."""
        awaited = self._head_timer
        super().data_received(data)
        # What brings the end of a body along, or the begin of one, is no measure of a head.
        if awaited is not None and self._head_timer is awaited:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_MAX_BYTES:
                self.transport.abort()

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
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _head_came(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
