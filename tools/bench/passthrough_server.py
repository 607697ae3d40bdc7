"""The baseline for the gateway: the same server and send loop, without decryption.

`python -m tools.bench.passthrough_server`, with a gateway's environment. It serves the
stored bytes of the object that the path names to any client, with the product's own storage module
and in the same pieces as the gateway. The difference between the two is therefore authorization,
the keyring, the DEK and decryption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import uvloop

from keyturn_workers.gateway.server import serve
from keyturn_workers.process.http_server.client_connection import (
    run_while_connected,
    with_send_timeout,
)
from keyturn_workers.process.logging import configure
from keyturn_workers.process.settings import GatewaySettings
from keyturn_workers.storage.s3 import open_storage

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from keyturn_workers.core.storage_port import Storage


class Passing:
    """The ASGI application."""

    def __init__(self, storage: Storage, idle_timeout_s: float) -> None:
        self._storage = storage
        self._idle_timeout_s = idle_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stored bytes."""
        key = unquote(scope["raw_path"].decode()).removeprefix("/")
        async with self._storage.stream(key) as stream:
            length = str(stream.head.size_bytes).encode()
            headers = [(b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            patiently = with_send_timeout(send, scope, self._idle_timeout_s)

            async def sending() -> None:
                async for piece in stream.chunks(None):
                    await patiently(
                        {"type": "http.response.body", "body": piece, "more_body": True}
                    )
                await patiently({"type": "http.response.body", "body": b""})

            await run_while_connected(receive, sending())


async def run(settings: GatewaySettings) -> None:
    """Serve until SIGTERM."""
    async with open_storage(settings, max_connections=settings.gateway_concurrency) as storage:
        await serve(settings, Passing(storage, settings.gateway_idle_timeout_s))


def main() -> None:
    """As `keyturn gateway` begins."""
    settings = GatewaySettings.read()
    configure(settings.log_format, settings.log_level)
    uvloop.run(run(settings))


if __name__ == "__main__":
    main()
