"""One small request and its whole answer, straight on aiohttp's connections (SPEC 7, 8.4).

aiohttp's session spends more on a request than its connections and its parser together:
redirects, cookies, tracing, middlewares, a task to write the body, a response object. A
signed request needs none of these. Here its head and body are written at once, to a
connection of the same pool that streams use, and the answer is what aiohttp's own parser
makes of it. A request is written once: there is nothing here that could send it again.

`ResponseHandler` is no formal API of aiohttp: its version is bounded.
No error of this module's own holds a URL or a header.
"""

from asyncio import timeout
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http import HttpProcessingError
from yarl import URL

from keyturn_workers.storage.signing import Signed, host_of

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0
# aiohttp reads ahead twice this for each answer: enough to be busy, little with many readers.
READ_AHEAD_BYTES: Final = 64 * 2**10
_BODILESS: Final = frozenset({"GET", "HEAD"})
# Waiting for a place in the pool counts where no total bounds it.
_CONNECT_OR_GIVE_UP: Final = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S)
_CONNECT_IN_TOTAL: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange:
    """Sends requests to one host.

    Args:
        connector: The pool, whose owner closes it.
        base_url: Of the host; what follows the port does not matter.
    """

    def __init__(self, connector: aiohttp.BaseConnector, base_url: str) -> None:
        self._connector = connector
        self._host = host_of(base_url)
        # The pool asks it where to, and whether by TLS; it is never sent.
        self._where = aiohttp.ClientRequest("GET", URL(base_url, encoded=True))

    async def ask(
        self, method: str, signed: Signed, body: bytes, *, total_s: float | None
    ) -> Answer:
        """Send a request with a small body in memory, and read its whole answer.

        Args:
            method: In upper case.
            signed: Its headers hold neither Host nor Content-Length.
            body: Held until it is sent.
            total_s: For everything; without it, 30 s without a byte end it.

        Raises:
            aiohttp.ClientError, OSError: no whole answer; TimeoutError is one of the latter.
            ValueError: a header would end its line.
        """
        head = self._head(method, signed, len(body))
        if total_s is None:
            return await self._asked(method, head, body, _CONNECT_OR_GIVE_UP, READ_TIMEOUT_S)
        async with timeout(total_s):
            return await self._asked(method, head, body, _CONNECT_IN_TOTAL, None)

    def _head(self, method: str, signed: Signed, length_bytes: int) -> bytes:
        lines = [f"{method} {signed.target} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in signed.headers.items()]
        if method not in _BODILESS:
            lines.append(f"Content-Length: {length_bytes}")
        head = "\r\n".join(lines)
        if not head.count("\n") == head.count("\r") == len(lines) - 1 or "\0" in head:
            raise ValueError("a line's end within a header")
        return f"{head}\r\n\r\n".encode()

    async def _asked(
        self,
        method: str,
        head: bytes,
        body: bytes,
        connecting: aiohttp.ClientTimeout,
        silence_s: float | None,
    ) -> Answer:
        connection = await self._connector.connect(self._where, traces=[], timeout=connecting)
        protocol, transport = connection.protocol, connection.transport
        if protocol is None or transport is None:  # for the types: it was connected just now
            connection.close()
            raise aiohttp.ServerDisconnectedError
        if protocol.should_close:
            # Something came on it since its last answer: it would be taken for this one's.
            connection.close()
            raise aiohttp.ServerDisconnectedError
        try:
            protocol.set_response_params(
                skip_payload=method == "HEAD",
                read_until_eof=True,
                auto_decompress=False,  # a stored Content-Encoding is the object's own
                read_timeout=silence_s,
                read_bufsize=READ_AHEAD_BYTES,
            )
            transport.writelines((head, body) if body else (head,))
            protocol.start_timeout()
            answer = await _answer(protocol)
        except BaseException:
            # Whatever still comes on it would be taken for the next request's answer; and what
            # is not sent by now must not be: it could take effect after the lease.
            transport.abort()
            connection.close()
            raise
        if transport.get_write_buffer_size():
            # Answered before it took the body, the rest of which need not arrive as one.
            transport.abort()
            connection.close()
        else:
            connection.release()
        return answer


async def _answer(protocol: ResponseHandler) -> Answer:
    try:
        message, payload = await protocol.read()
        while message.code < 200:  # noqa: PLR2004  # HTTP's own number: only an interim answer
            protocol.start_timeout()
            message, payload = await protocol.read()
    except HttpProcessingError as exc:
        # It repeats what the server sent.
        raise aiohttp.ClientPayloadError(type(exc).__name__) from None
    return Answer(message.code, message.headers, await payload.read())
