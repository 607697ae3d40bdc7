"""Serve an ASGI application with uvicorn until a signal stops the process (SPEC 9, 16).

On SIGTERM and SIGINT it accepts no new connection and completes responses within a grace period.

Linux copies the options of a listening socket to the connections that it accepts, so these limits
need no code in the HTTP protocol:

    TCP_USER_TIMEOUT     closes a connection whose client acknowledges nothing for too long,
                         also when the response is complete for the application
    TCP_NOTSENT_LOWAT    keeps the kernel's send buffer small. With megabytes in it, a client
                         that reads slowly would look like one that reads nothing
"""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from keyturn.errors import BrokerTlsError, BrokerUnavailableError
from keyturn.publisher.client import Publisher
from keyturn_workers.core.errors import AddressError
from keyturn_workers.process.http_server.protocol import LimitedProtocol, make_protocol_class
from keyturn_workers.process.http_server.tls import ServerCertificate, accept_tls
from keyturn_workers.process.service_manager import READY, STOPPING, notify_service_manager

_KEEP_ALIVE_S: Final = 15
_BACKLOG: Final = 1024
_BROKER_CHECK_S: Final = 5.0
_UNSENT_BYTES: Final = 128 * 1024
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_log = structlog.get_logger()


async def open_listeners(
    host: str, port: int, *, settings: str, idle_timeout_s: float
) -> list[socket.socket]:
    """Bind a socket to each address of the host. The caller closes them.

    Args:
        host: A name or an address; empty for all interfaces.
        port: A port, or 0 for any free one.
        settings: The prefix of both settings' names, such as `KEYTURN_GATEWAY`.
        idle_timeout_s: How long a client may acknowledge none of the sent data.

    Raises:
        AddressError: the address is in use or does not exist.
    """
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with ExitStack() as stack:
            sockets = [
                stack.enter_context(_bind(family, address, idle_timeout_s))
                for family, _, _, _, address in dict.fromkeys(addresses)
            ]
            stack.pop_all()  # all are bound: they stay open
            return sockets
    except OSError as exc:
        raise AddressError.of(exc, host, port, settings) from exc


def _bind(family: int, address: tuple[Any, ...], idle_timeout_s: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # IPv4 has its own socket.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            timeout_ms = int(idle_timeout_s * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


class _Server(uvicorn.Server):
    """uvicorn's server, which logs its address once it listens and ends normally on a signal."""

    def __init__(
        self,
        config: uvicorn.Config,
        name: str,
        certificate: ServerCertificate | None,
    ) -> None:
        super().__init__(config)
        self._name = name
        self._certificate = certificate
        self._accepting: list[asyncio.Task[None]] = []

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal. uvicorn's own would raise the signal again after the shutdown."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address."""
        listeners = sockets or []
        if self._certificate is None:
            await super().startup(listeners)
        else:
            await super().startup([])
            for listener in listeners:
                listener.settimeout(0)  # it does not block
                listener.listen(_BACKLOG)
                accepting = asyncio.create_task(
                    accept_tls(listener, self._certificate, self._make_http)
                )
                accepting.add_done_callback(self._accepting_ended)
                self._accepting.append(accepting)
        host, port = listeners[0].getsockname()[:2]
        scheme = "http" if self._certificate is None else "https"
        _log.info(f"{self._name} started", host=host, port=port, scheme=scheme)
        notify_service_manager(READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connection, and wait for the open ones."""
        notify_service_manager(STOPPING)
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    def _accepting_ended(self, accepting: asyncio.Task[None]) -> None:
        """Stop: a process that accepts nothing must not look alive."""
        self.should_exit = True
        if not accepting.cancelled() and (error := accepting.exception()) is not None:
            _log.error("no longer accepting connections", problem=type(error).__name__)

    def _make_http(self) -> LimitedProtocol:
        make: Any = self.config.http_protocol_class
        http: LimitedProtocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return http


async def serve(
    app: ASGIApp,
    listeners: Sequence[socket.socket],
    *,
    name: str,
    head_timeout_s: float,
    max_connections: int,
    grace_s: float,
    certificate: ServerCertificate | None = None,
) -> None:
    """Serve until a signal stops the process, and close the listeners of `open_listeners`.

    `name` is the process's name in the log. After a signal, responses in progress have `grace_s`
    to complete. Without a certificate, it serves plain HTTP.
    """
    # uvicorn's messages contain paths, and so object keys. The process has its own log lines.
    for logger in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=make_protocol_class(head_timeout_s=head_timeout_s, max_connections=max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(grace_s),
    )
    async with _renewing(certificate):
        await _Server(config, name, certificate).serve(list(listeners))


@asynccontextmanager
async def _renewing(certificate: ServerCertificate | None) -> AsyncIterator[None]:
    if certificate is None:
        yield
        return
    watching = asyncio.create_task(certificate.watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def check_broker_tls(publisher: Publisher, timeout_s: float = _BROKER_CHECK_S) -> None:
    """Connect once, before the process serves. A wrong certificate stays wrong.

    An unreachable broker may come back: the process starts without it.

    Raises:
        BrokerTlsError: TLS failed.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await publisher.connect()
    except BrokerTlsError:
        raise
    except (BrokerUnavailableError, TimeoutError):
        return
