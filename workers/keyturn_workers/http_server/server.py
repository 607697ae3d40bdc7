"""Serves an ASGI application with uvicorn until a signal stops the process (SPEC 9, 16).

On SIGTERM and SIGINT it accepts no new connection and completes responses within a grace period.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import structlog
import uvicorn
from starlette.types import ASGIApp

from keyturn_workers.http_server.certificate import ServerCertificate
from keyturn_workers.http_server.protocol import make_protocol_class
from keyturn_workers.http_server.tls import make_tls_protocol_class

_KEEP_ALIVE_S: Final = 15
_BACKLOG: Final = 1024
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

_log = structlog.get_logger()


class _Server(uvicorn.Server):
    """uvicorn's server, which logs its address once it listens and ends normally on a signal."""

    def __init__(
        self, config: uvicorn.Config, name: str, scheme: str, on_stop: Callable[[], None] | None
    ) -> None:
        super().__init__(config)
        self._name = name
        self._scheme = scheme
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on a signal. uvicorn's own would raise the signal again after the shutdown."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _stop(self, number: signal.Signals) -> None:
        if self._on_stop is not None:
            self._on_stop()
        self.handle_exit(number, None)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the address."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        _log.info(f"{self._name} started", host=host, port=port, scheme=self._scheme)


async def serve(
    app: ASGIApp,
    listeners: Sequence[socket.socket],
    *,
    name: str,
    head_timeout_s: float,
    max_connections: int,
    grace_s: float,
    certificate: ServerCertificate | None = None,
    on_stop: Callable[[], None] | None = None,
) -> None:
    """Serve until a signal stops the process.

    Args:
        app: The application.
        listeners: Sockets of `open_listeners`; they are closed.
        name: What the log calls the process.
        head_timeout_s: How long a request's head may take.
        max_connections: How many connections may be open at once.
        grace_s: How long a signal waits for responses in progress.
        certificate: Of TLS; None for plain HTTP.
        on_stop: Called on a signal, before that wait.
    """
    # uvicorn's messages contain paths, and so object keys. The process logs what is needed.
    for logger in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    http = make_protocol_class(head_timeout_s=head_timeout_s, max_connections=max_connections)
    config = uvicorn.Config(
        app,
        http=http if certificate is None else make_tls_protocol_class(http, certificate),
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
    scheme = "http" if certificate is None else "https"
    async with _renewing(certificate):
        await _Server(config, name, scheme, on_stop).serve(list(listeners))


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
