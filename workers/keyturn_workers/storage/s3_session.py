"""The HTTP session of a storage: every request is sent once, on a clean connection (SPEC 7, 8.4).

This uses only aiohttp's public API. What aiohttp does beyond one exchange is switched off:
cookies, automatic headers, decompression, and its second attempt when a kept-alive connection
drops. Each connection that it takes from its pool is checked here, because

- a response that arrived between two requests would be read as the response to the next one;
- closing a connection normally first sends what is still in its buffer, and so the rest of a
  write could arrive after its lease.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Final

import aiohttp

from keyturn.tls import STORAGE, describe_tls_failure

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

# Below the patience of common servers, so that they seldom drop a connection under a write.
_KEEP_ALIVE_S: Final = 4.0
# aiohttp reads ahead twice this for each response: enough to be busy, little with many readers.
_READ_AHEAD_BYTES: Final = 64 * 2**10
_AUTOMATIC_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


# The transports of the request that the current task is sending.
_transports: ContextVar[list[asyncio.WriteTransport] | None] = ContextVar(
    "_transports", default=None
)


class ConnectionLostError(Exception):
    """The connection failed; the text is only the kind of failure."""


class TlsFailedError(ConnectionLostError):
    """TLS with the storage failed; the text says why, and names the setting."""


async def surface_loss(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Turn a failure into an error that aiohttp does not know, so that it does not resend."""
    try:
        return await handler(request)
    except aiohttp.ClientError as exc:
        # Some of aiohttp's errors repeat the URL with its signature: the chain ends here.
        if (problem := describe_tls_failure(exc, STORAGE)) is not None:
            raise TlsFailedError(problem) from None
        raise ConnectionLostError(type(exc).__name__) from None


class CleanConnector(aiohttp.TCPConnector):
    """A pool whose connections carry nothing over from one request to the next."""

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: "list[Trace]",
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's signature
    ) -> "Connection":
        """Get a connection on which nothing is pending.

        Raises:
            aiohttp.ClientError: no connection, or one on which the server spoke unasked.
        """
        connection = await super().connect(req, traces, timeout)
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None or protocol.should_close:
            connection.close()
            raise aiohttp.ServerDisconnectedError
        connection.add_callback(partial(_drop_unsent, transport))
        if (transports := _transports.get()) is not None:
            transports.append(transport)
        return connection


@contextmanager
def abort_on_failure() -> Iterator[None]:
    """Abort the connections that aiohttp closes because this request failed.

    Over TLS a transport reports nothing as unsent, and a normal close first flushes what is
    encrypted already, for up to 30 s: a whole write could arrive long after its lease.
    """
    token = _transports.set([])
    try:
        yield
    except BaseException:
        for transport in _transports.get() or ():
            # One that is back in the pool may serve another request by now.
            if transport.is_closing():
                transport.abort()
        raise
    finally:
        _transports.reset(token)


def _drop_unsent(transport: asyncio.WriteTransport) -> None:
    """Before a connection is closed or goes back to the pool: abort it if bytes are unsent."""
    if transport.get_write_buffer_size():
        transport.abort()


@asynccontextmanager
async def open_session(
    max_connections: int,
    *,
    tls: ssl.SSLContext | bool = True,
    trace_configs: Sequence[aiohttp.TraceConfig] = (),
) -> AsyncIterator[aiohttp.ClientSession]:
    """The one session of a storage.

    Args:
        max_connections: The size of the pool.
        tls: What `https` servers are checked against; by default the system's authorities.
        trace_configs: Watch the requests.
    """
    connector = CleanConnector(limit=max_connections, keepalive_timeout=_KEEP_ALIVE_S, ssl=tls)
    async with aiohttp.ClientSession(
        connector=connector,
        middlewares=(surface_loss,),
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=list(trace_configs),
        skip_auto_headers=_AUTOMATIC_HEADERS,
        read_bufsize=_READ_AHEAD_BYTES,
        auto_decompress=False,  # a stored Content-Encoding belongs to the object
    ) as session:
        yield session
