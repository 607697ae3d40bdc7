"""Ends TLS in front of a server, with any certificate, and may require one of its clients.

In threads, with blocking sockets: an event loop's server drops the connection where a handshake
fails, and with it the alert that says why. Real servers send it.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tools.servers.certificates import Certificate

_PIECE_BYTES = 256 * 1024
_TIMEOUT_S = 20.0
_TICK_S = 0.1


def server_context(certificate: Certificate, *, clients: Path | None = None) -> ssl.SSLContext:
    """What a server shows, and the authority of the certificates that it requires, if any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


@contextmanager
def tls_proxy(target_port: int, context: ssl.SSLContext, *, port: int = 0) -> Iterator[int]:
    """Yield the port that leads to another one on loopback, which speaks without TLS."""
    ending = threading.Event()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(_TICK_S)
        serving: list[threading.Thread] = []

        def accept() -> None:
            while not ending.is_set():
                with suppress(TimeoutError):
                    connection, _ = listener.accept()
                    arguments = (connection, context, target_port, ending)
                    serving.append(threading.Thread(target=_serve, args=arguments))
                    serving[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.set()
            accepting.join()
            for thread in serving:
                thread.join()


def _serve(
    connection: socket.socket, context: ssl.SSLContext, port: int, ending: threading.Event
) -> None:
    connection.settimeout(_TIMEOUT_S)
    with suppress(OSError):
        secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with secured:
            try:
                secured.do_handshake()
            except ssl.SSLError:
                # Closed at once, with bytes unread, it would reset the connection, and the alert
                # could be lost.
                secured.shutdown(socket.SHUT_WR)
                while secured.recv(_PIECE_BYTES):
                    pass
                return
            with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as far:
                _forward(secured, far, ending)


def _forward(near: ssl.SSLSocket, far: socket.socket, ending: threading.Event) -> None:
    while not ending.is_set():
        readable = [near] if near.pending() else select.select([near, far], [], [], _TICK_S)[0]
        for source in readable:
            target = far if source is near else near
            if not (piece := source.recv(_PIECE_BYTES)):
                return
            target.sendall(piece)
