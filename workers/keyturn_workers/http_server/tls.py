"""TLS on a listener: a bounded handshake before the HTTP protocol begins (SPEC 9.7).

uvicorn would give the event loop one context for the life of the process, and learn of a
connection when its handshake is complete. Here the handshake is a protocol of its own, which
uvicorn makes for each connection (`Config(http=...)`):

- It takes the certificate that is current (`certificate`), so a renewal needs no restart.
- It counts as an idle connection from the first moment. Guards against clients that connect and
  say nothing: `GATEWAY_HEAD_TIMEOUT_S` ends them, and a new connection closes an idle one when
  there are too many.
- Then `LimitedProtocol` takes over, with all its limits: they are on the plain bytes. A reset goes
  through TLS as it is, without `close_notify`, so a partial response never looks complete.
"""

import asyncio
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from keyturn_workers.http_server.certificate import ServerCertificate
from keyturn_workers.http_server.protocol import LimitedProtocol, close_idle, reset_transport

if TYPE_CHECKING:
    from collections.abc import Callable

# From the end of a response that also ends its connection: within it the client receives what is
# still in buffers, however slowly. Dead clients are ended by TCP_USER_TIMEOUT before.
_CLOSE_TIMEOUT_S: Final = 600.0
# asyncio would buffer 512 KiB of plain bytes for each connection.
_WRITE_BUFFER_BYTES: Final = 64 * 1024


class _Pending(asyncio.Protocol):
    """Keeps what a client sends along with the end of its handshake."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.is_lost = True


class _Begun:
    """An awaitable: a coroutine whose first step has been taken already.

    uvloop reads from a new connection as soon as `connection_made` returns, paused or not. A task
    would begin after that, and TLS would miss the client's first bytes.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, asyncio.Transport | None]) -> None:
        self._coroutine = coroutine
        self._first = coroutine.send(None)

    def __await__(self) -> Generator[Any, Any, asyncio.Transport | None]:
        step = self._first
        try:
            while True:
                try:
                    sent = yield step
                except BaseException as exc:  # noqa: BLE001  # a cancellation is passed on, too
                    step = self._coroutine.throw(exc)
                else:
                    step = self._coroutine.send(sent)
        except StopIteration as end:
            return cast("asyncio.Transport | None", end.value)


class TlsProtocol(asyncio.Protocol):
    """One connection until its handshake is complete. `make_tls_protocol_class` sets the limits."""

    http: type[LimitedProtocol]
    certificate: ServerCertificate

    is_idle = True
    """It serves no request."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._loop = _loop or asyncio.get_running_loop()
        self._connections = cast("set[object]", server_state.connections)
        self._make_http: Callable[[], LimitedProtocol] = lambda: self.http(
            config=config, server_state=server_state, app_state=app_state, _loop=_loop
        )
        self._transport: asyncio.Transport | None = None
        self._handshake: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake; close an idle connection if there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        pending = _Pending()
        begun = _Begun(
            self._loop.start_tls(
                self._transport,
                pending,
                self.certificate.context,
                server_side=True,
                ssl_handshake_timeout=self.http.head_timeout_s,
                ssl_shutdown_timeout=_CLOSE_TIMEOUT_S,
            )
        )
        self._handshake = self._loop.create_task(self._finish(self._transport, pending, begun))
        close_idle(self._connections, self, self.http.max_connections)

    def reset(self) -> None:
        """Reset the connection."""
        # Here, too: a task that is cancelled before its first step never gets to its `finally`.
        self._connections.discard(self)
        if self._handshake is not None:
            self._handshake.cancel()
        if self._transport is not None:
            reset_transport(self._transport)

    def shutdown(self) -> None:
        """End: uvicorn calls this when the server stops."""
        self.reset()

    async def _finish(self, transport: asyncio.Transport, pending: _Pending, begun: _Begun) -> None:
        try:
            secured = await begun
        except OSError:  # of ssl, too: not TLS, no common version, or too slow
            reset_transport(transport)
            return
        finally:
            self._connections.discard(self)
        # After a reset there may be a transport without a connection.
        if secured is None or pending.is_lost or secured.get_extra_info("ssl_object") is None:
            transport.abort()
            return
        self._hand_over(secured, transport, bytes(pending.received))

    def _hand_over(
        self, secured: asyncio.Transport, transport: asyncio.Transport, received: bytes
    ) -> None:
        secured.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        http = self._make_http()
        http.below_tls = transport
        secured.set_protocol(http)
        http.connection_made(secured)
        if received and not secured.is_closing():
            http.data_received(received)


def make_tls_protocol_class(
    http: type[LimitedProtocol], certificate: ServerCertificate
) -> type[TlsProtocol]:
    """Return the protocol class with this certificate, and the limits of the HTTP protocol.

    Args:
        http: From `make_protocol_class`.
        certificate: What clients are shown.
    """
    return type("TlsProtocol", (TlsProtocol,), {"http": http, "certificate": certificate})
