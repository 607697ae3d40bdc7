"""TLS on a listener: its certificate, and a bounded handshake before HTTP begins (SPEC 9.7).

uvicorn would give the event loop one context for the life of the process, and learn of a
connection only after its handshake. Here connections are accepted outside its servers
(`accept_tls`), and asyncio makes the handshake:

- A handshake uses the current certificate, so a renewal needs no restart. Open connections keep
  their certificate.
- The connection counts as idle from the first moment. Guards against clients that connect and
  send nothing: `GATEWAY_HEAD_TIMEOUT_S` ends them, and a new connection closes an idle one when
  there are too many.
- Then `LimitedProtocol` takes over, with all its limits: they apply to the plain bytes. A reset
  bypasses TLS, without `close_notify`, so a partial response never looks complete.

A program that renews a certificate replaces two files, one after the other, or writes them in
place. So files are read once nothing has changed for an interval. A pair is used only if it loads,
the key is the certificate's, and nothing changed meanwhile. Until then the previous pair stays.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from keyturn.errors import SettingsError
from keyturn.tls import FileState, PairSettings, expiry, file_state, load_pair
from keyturn_workers.process.http_server.protocol import LimitedProtocol

CHECK_INTERVAL_S: Final = 1.0
# From the end of a connection's last response: the client's time to receive the buffered rest,
# however slowly. TCP_USER_TIMEOUT ends dead clients sooner.
_CLOSE_TIMEOUT_S: Final = 600.0
# asyncio would buffer 512 KiB of plain bytes for each connection.
_WRITE_BUFFER_BYTES: Final = 64 * 1024
# Temporary: the process or the machine has too much open.
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE_S: Final = 1.0
# For TLS 1.2; those of 1.3 are all good. Each has forward secrecy and is authenticated.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

_State: TypeAlias = tuple[FileState | None, FileState | None]

_log = structlog.get_logger()


class ServerCertificate:
    """The current certificate. Safe for use from one event loop.

    Args:
        certificate: The PEM file of the certificate, followed by its chain.
        key: The PEM file of its key, not encrypted.
        names: Their settings, for errors.

    Attributes:
        context: The context of new connections.
        expires: The certificate's expiry, if it can be read.

    Raises:
        SettingsError: a file cannot be used, or the two do not belong together.
    """

    def __init__(self, certificate: Path, key: Path, names: PairSettings) -> None:
        self._certificate = certificate
        self._key = key
        self._names = names
        self._judged = self._seen = self._state()
        self.context, self.expires = self._load()
        if self.expires is not None and self.expires < datetime.now(UTC):
            _log.warning(
                "certificate expired", setting=names.certificate, expired=str(self.expires)
            )

    async def watch(self, interval_s: float = CHECK_INTERVAL_S) -> None:
        """Check the files forever, and load them when they have changed."""
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.check)

    def check(self) -> None:
        """Load the files if they have changed, but not since the last check."""
        before, self._seen = self._seen, self._state()
        if self._seen != before or self._seen == self._judged:
            return
        try:
            context, expires = self._load()
        except SettingsError as exc:
            self._refuse(str(exc))
            return
        if self._state() != self._seen:
            return  # checked again when they have settled
        if expires is not None and expires < datetime.now(UTC):
            self._refuse(f"{self._names.certificate} has expired")
            return
        self._judged = self._seen
        self.context, self.expires = context, expires
        _log.info("certificate renewed", setting=self._names.certificate, expires=str(expires))

    def _refuse(self, problem: str) -> None:
        if self._state() != self._seen:
            return  # read during a write
        self._judged = self._seen  # once for each state of the files
        _log.error("certificate not renewed; the old one stays in use", problem=problem)

    def _load(self) -> tuple[ssl.SSLContext, datetime | None]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self._certificate, self._key, self._names)
        return context, expiry(self._certificate)

    def _state(self) -> _State:
        return file_state(self._certificate), file_state(self._key)


def open_certificate(
    certificate: Path | None, key: Path | None, names: PairSettings
) -> ServerCertificate | None:
    """The certificate of two settings; None if unset. Raises as `ServerCertificate`."""
    if certificate is None or key is None:
        return None
    return ServerCertificate(certificate, key, names)


async def accept_tls(
    listener: socket.socket,
    certificate: ServerCertificate,
    make_http: Callable[[], LimitedProtocol],
) -> None:
    """Accept connections forever; each is served once its handshake is complete.

    The listener must not block. `make_http` makes the protocol of a new connection.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            sock, _ = await loop.sock_accept(listener)
        except OSError as exc:
            if exc.errno in _EXHAUSTED:
                _log.warning("no connection accepted for a second", problem=exc.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
            continue  # otherwise the client is gone
        http = make_http()
        http.begin_handshake(sock, _serve_tls(sock, certificate.context, http))


async def _serve_tls(sock: socket.socket, context: ssl.SSLContext, http: LimitedProtocol) -> None:
    try:
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: http,
            sock,
            ssl=context,
            ssl_handshake_timeout=http.head_timeout_s,
            ssl_shutdown_timeout=_CLOSE_TIMEOUT_S,
        )
    except OSError:  # of ssl, too: not TLS, no common version, or too slow
        http.reset()
    else:
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
