"""Requests to the gateway over one pool of connections, each sent once (SPEC 9, 12).

`AuthorizedRequests` sends them with one API key. A `Write` changes something; with a link, it needs
no API key. A response with an unexpected status is raised as its error, without the secrets of the
request.

No redirect is followed and nothing is sent again automatically, except that aiohttp repeats a GET
or a HEAD if a kept-alive connection was dropped. aiohttp is imported only when a pool is opened: it
is an optional dependency.

aiohttp wraps errors of a body's source; the caller gets the original exception. The idle timeout
must never run while the source is read: a slow source is the caller's business, a server that stops
reading is not.

It must never let an exception of aiohttp out, not even as a cause or a context: some contain the
request with its `Authorization`.
"""

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from keyturn.errors import (
    GatewayUnavailableError,
    IncompleteBodyError,
    MalformedRequestError,
    ResponseLostError,
    SettingsError,
    StorageUnavailableError,
)
from keyturn.gateway.responses import (
    ByteRange,
    json_object,
    redirect_target,
    response_error,
    storage_response_error,
)
from keyturn.publisher.staging import Body, blocks
from keyturn.tls import GATEWAY, PeerSettings, describe_connection_failure

if TYPE_CHECKING:
    import aiohttp

CONNECT_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 60.0
MAX_CONNECTIONS: Final = 100
RESPONSE_MAX_BYTES: Final = 64 * 1024
_READ_BUFFER_BYTES: Final = 256 * 1024
_AUTOMATIC_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_OWN_HEADERS: Final = {
    "User-Agent": "keyturn-reader",
    "Accept-Encoding": "identity",  # lengths and ranges are the object's own
}
_OK, _PARTIAL, _REDIRECT = 200, 206, 307
_Result = TypeVar("_Result")
_PRESIGNED: Final = PeerSettings("the presigned URL", "https://", GATEWAY.ca)
_LINK: Final = PeerSettings("the link", "https://", GATEWAY.ca)


class _LostError(Exception):
    """The connection failed under a request. aiohttp does not know this error, so never resends."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """The reason of a missing response, in words without any content of the request."""

    reason: str
    unsent: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Write:
    """A request that changes something, so it is sent once.

    It has no repr: its address and its body may be secrets, and reporters of errors show the
    variables of each frame.

    Attributes:
        method: Its method.
        address: Its encoded path below the gateway's address; the URL if it is a link.
        done: The statuses of success.
        body: Its body, in any form that a publisher accepts.
        headers: Its headers, except those that the body and the wait add.
        wait_s: Seconds, 1 or more, that the gateway is asked to wait for the outcome; None for no
            wait.
        secrets: The parts of address and body that no error may repeat.
        max_bytes: The longest document in the response; a longer one counts as empty.
    """

    method: str
    address: str
    done: tuple[int, ...]
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: int | None = None
    secrets: tuple[SecretStr, ...] = ()
    max_bytes: int = RESPONSE_MAX_BYTES


class _SentBody:
    """The body of one request, and the failure of its source."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.failure: Exception | None = None

    @property
    def headers(self) -> dict[str, str]:
        """`Content-Length` for bytes in memory; a file may grow while it is read."""
        if not isinstance(self._body, bytes | bytearray | memoryview):
            return {}
        return {"Content-Length": str(memoryview(self._body).nbytes)}

    async def blocks_with_timeout(
        self, idle: asyncio.Timeout, idle_s: float, wait_s: float
    ) -> AsyncIterator[memoryview]:
        """Yield the blocks in order; `idle` runs during a send, `wait_s` longer after the last."""
        try:
            async with aclosing(blocks(self._body)) as source:
                reset(idle, None)
                async for block in source:
                    reset(idle, idle_s)
                    yield block
                    reset(idle, None)
            reset(idle, idle_s + wait_s)
        except Exception as exc:
            self.failure = exc
            raise


def reset(idle: asyncio.Timeout, seconds: float | None) -> None:
    """Let a timeout expire in `seconds`, or never."""
    when = None if seconds is None else asyncio.get_running_loop().time() + seconds
    # At a request's last steps, it may have expired, or the response may have arrived.
    with suppress(RuntimeError):
        idle.reschedule(when)


class Transport:
    """The connections to one gateway and to the storage. Made by `open`."""

    def __init__(
        self,
        session: "aiohttp.ClientSession",
        base_url: str,
        *,
        connect_timeout_s: float,
        idle_timeout_s: float,
    ) -> None:
        self._session = session
        self._base_url = base_url
        self._connect_s = connect_timeout_s
        self._idle_s = idle_timeout_s

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str | None,
        *,
        connect_timeout_s: float,
        idle_timeout_s: float,
        max_connections: int,
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[Self]:
        """Yield a pool, which connects to nothing yet.

        Args:
            url: The gateway's address; None for `read_presigned`, and writes by a link.
            connect_timeout_s: Seconds to make one connection.
            idle_timeout_s: Seconds without progress after which a request fails.
            max_connections: Connections at once; further requests wait for one.
            tls: The authorities that verify certificates; the system's by default.

        Raises:
            SettingsError: not the URL of a gateway, or aiohttp is not installed.
        """
        base_url = "" if url is None else _base(url)
        try:
            import aiohttp  # noqa: PLC0415  # an optional extra
        except ImportError as exc:
            raise SettingsError(
                "reading over HTTP needs aiohttp, which is not installed: install keyturn[gateway]"
            ) from exc
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=max_connections, ssl=tls or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTOMATIC_HEADERS,
            headers=_OWN_HEADERS,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            trace_configs=[_idle_clock_trace()],
        ) as session:
            yield cls(
                session,
                base_url,
                connect_timeout_s=connect_timeout_s,
                idle_timeout_s=idle_timeout_s,
            )

    async def read(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        api_key: SecretStr,
        body: bytes | None = None,
    ) -> "aiohttp.ClientResponse":
        """Return the response to a request that changes nothing; its owner closes it.

        Raises:
            GatewayUnavailableError: there is no response.
        """
        response = await self._get(method, self._base_url + path, headers, api_key, body)
        if isinstance(response, _Failure):
            raise GatewayUnavailableError(f"the gateway did not respond ({response.reason})")
        return response

    async def read_presigned(
        self, method: str, url: SecretStr, headers: Mapping[str, str]
    ) -> "aiohttp.ClientResponse":
        """Return the response at a presigned address of the storage; its owner closes it.

        Raises:
            StorageUnavailableError: nothing responds there.
        """
        response = await self._get(method, url.get_secret_value(), headers, None)
        if isinstance(response, _Failure):
            raise StorageUnavailableError(f"the storage did not respond ({response.reason})")
        return response

    async def send(
        self, write: Write, api_key: SecretStr | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Send a write once; return status and document of a successful response.

        A body is sent only when the gateway asks for it (100 Continue), so that a rejected one is
        not sent.

        Raises:
            MalformedRequestError: the wait is not 1 or more seconds.
            GatewayUnavailableError: not even a connection was made; nothing was sent.
            ResponseLostError: there is no complete response.
            CodedError, UnexpectedResponseError: the response has another status.
            Exception: an error of the body's source, unchanged; nothing was stored.
        """
        if write.wait_s is not None and write.wait_s < 1:
            # Not in `Write`: the address is a variable of its constructor's frame.
            raise MalformedRequestError("wait_s must be 1 or more")
        answer = await self._answer(write, api_key)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _answer(
        self, write: Write, api_key: SecretStr | None
    ) -> tuple[int, dict[str, Any]] | Exception:
        # Raises nothing itself: the response's repr shows the URL, which may be a link.
        response = await self._send_once(write, api_key)
        if isinstance(response, Exception):
            return response
        try:
            received = await self.body_of(response, max_bytes=write.max_bytes)
            if received is None:
                return ResponseLostError("the gateway's response was cut short")
            if response.status not in write.done:
                return _error(response, received, (api_key, *write.secrets))
            return response.status, json_object(received)
        finally:
            response.close()

    async def body_of(
        self, response: "aiohttp.ClientResponse", *, max_bytes: int = RESPONSE_MAX_BYTES
    ) -> bytes | None:
        """Return a small response's body, cut at `max_bytes`; None if the connection failed."""
        body = bytearray()

        async def read() -> bytes:
            async with asyncio.timeout(self._idle_s):
                while len(body) < max_bytes and (piece := await response.content.readany()):
                    body.extend(piece)
            return bytes(body[:max_bytes])

        received = await _outcome(read())
        return None if isinstance(received, _Failure) else received

    async def _get(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        api_key: SecretStr | None,
        body: bytes | None = None,
    ) -> "aiohttp.ClientResponse | _Failure":
        import aiohttp  # noqa: PLC0415  # an optional extra
        from yarl import URL  # noqa: PLC0415  # comes with it

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_s, sock_read=self._idle_s
        )

        async def ask() -> aiohttp.ClientResponse:
            return await self._session.request(
                method,
                URL(url, encoded=True),
                headers=_authorized(headers, api_key),
                data=body,
                allow_redirects=False,
                timeout=limits,
            )

        return await _outcome(ask(), GATEWAY if api_key is not None else _PRESIGNED)

    async def _send_once(
        self, write: Write, api_key: SecretStr | None
    ) -> "aiohttp.ClientResponse | Exception":
        import aiohttp  # noqa: PLC0415  # an optional extra
        from yarl import URL  # noqa: PLC0415  # comes with it

        # aiohttp's own clock would run while the body's source is read.
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s)
        wait_s = write.wait_s or 0
        preference = {"Prefer": f"wait={wait_s}"} if wait_s else {}
        body = None if write.body is None else _SentBody(write.body)
        of_body = {} if body is None else body.headers
        after_headers_s = self._idle_s + (wait_s if body is None else 0)

        async def ask() -> aiohttp.ClientResponse:
            async with asyncio.timeout(None) as idle:
                return await self._session.request(
                    write.method,
                    URL(self._base_url + write.address, encoded=True),
                    headers=_authorized({**write.headers, **preference, **of_body}, api_key),
                    data=body and body.blocks_with_timeout(idle, self._idle_s, wait_s),
                    allow_redirects=False,
                    expect100=body is not None,
                    timeout=limits,
                    middlewares=(_raise_loss,),
                    trace_request_ctx=lambda: reset(idle, after_headers_s),
                )

        response = await _outcome(ask(), GATEWAY if api_key is not None else _LINK)
        if body is not None and body.failure is not None:
            if not isinstance(response, _Failure):
                response.close()
            return body.failure
        if not isinstance(response, _Failure):
            return response
        if response.unsent:
            return GatewayUnavailableError(f"the gateway cannot be reached ({response.reason})")
        return ResponseLostError(f"the request received no response ({response.reason})")


class AuthorizedRequests:
    """Sends requests with an API key.

    Args:
        transport: The connections.
        api_key: The project's current API key.
    """

    def __init__(self, transport: Transport, api_key: SecretStr) -> None:
        self._transport = transport
        self._api_key = api_key

    async def read(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        done: int = _OK,
        max_bytes: int = RESPONSE_MAX_BYTES,
    ) -> dict[str, Any]:
        """Return the document of a response to a request that changes nothing.

        Args:
            method: Its method.
            path: Its path and query, encoded.
            body: A JSON document to send, or None.
            done: The status of success.
            max_bytes: The longest document; a longer one counts as empty.

        Raises:
            GatewayUnavailableError: there is no complete response.
            CodedError, UnexpectedResponseError: the response has another status.
        """
        headers = {} if body is None else {"Content-Type": "application/json"}
        response = await self._transport.read(method, path, headers, self._api_key, body)
        try:
            is_done = response.status == done
            received = await self._transport.body_of(
                response, max_bytes=max_bytes if is_done else RESPONSE_MAX_BYTES
            )
            if received is None:
                raise GatewayUnavailableError("the gateway's response was cut short")
            if not is_done:
                raise _error(response, received, (self._api_key,))
            return json_object(received)
        finally:
            response.close()

    async def send(self, write: Write) -> tuple[int, dict[str, Any]]:
        """Send a write once with the API key; result and errors as for `Transport.send`."""
        return await self._transport.send(write, self._api_key)

    @asynccontextmanager
    async def object(
        self, method: str, path: str, span: ByteRange
    ) -> "AsyncIterator[tuple[aiohttp.ClientResponse, bool]]":
        """Yield the response about an object, and whether it came from the storage (SPEC 9.3)."""
        headers = {} if span.is_whole else {"Range": span.header}
        response = await self._transport.read(method, path, headers, self._api_key)
        try:
            if by_storage := response.status == _REDIRECT:
                target = SecretStr(redirect_target(response.headers))
                redirected = await self._transport.read_presigned(method, target, headers)
                response.close()
                response = redirected
            if response.status not in (_OK, _PARTIAL):
                if by_storage:
                    raise storage_response_error(response.status)
                raise await self._object_error(response)
            yield response, by_storage
        finally:
            # If the body was read to its end, the connection is already in the pool.
            response.close()

    async def _object_error(self, response: "aiohttp.ClientResponse") -> Exception:
        if response.method == "HEAD":
            return _error(response, None, (self._api_key,))
        body = await self._transport.body_of(response)
        if body is None:
            return GatewayUnavailableError("the gateway's response was cut short")
        return _error(response, body, (self._api_key,))


def _error(
    response: "aiohttp.ClientResponse", body: bytes | None, held: Sequence[SecretStr | None]
) -> Exception:
    secrets = tuple(one.get_secret_value() for one in held if one is not None)
    return response_error(response.status, response.headers, body, secrets=secrets)


def _authorized(headers: Mapping[str, str], api_key: SecretStr | None) -> Mapping[str, str]:
    # Here and no earlier: reporters of errors show the variables of every frame that an error
    # passes, and none passes the callers of this.
    if api_key is None:
        return headers
    return {**headers, "Authorization": f"Bearer {api_key.get_secret_value()}"}


def _base(url: str) -> str:
    """Return a gateway's URL, encoded, without a slash at its end.

    Raises:
        SettingsError: it is not a gateway's, or has parts that would be lost or logged.
    """
    if not is_gateway_url(url):
        raise SettingsError(
            "the gateway's URL must be http://host or https://host, without user, query or fragment"
        )
    return url.rstrip("/")


def is_gateway_url(url: str) -> bool:
    """Return whether this can be a gateway's address: http or https, without secret parts."""
    try:
        parts = urlsplit(url)
        has_host = parts.hostname is not None and parts.port != 0
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and not set(url) & set(" ?#@\\")
    return plain and has_host and parts.scheme in ("http", "https")


def is_unencrypted(url: str) -> bool:
    """Return whether an API key sent to this gateway's address can be read in transit."""
    parts = urlsplit(url)
    host = (parts.hostname or "").removesuffix(".")
    if parts.scheme == "https" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


async def next_piece(response: "aiohttp.ClientResponse") -> bytes:
    """Return the next bytes of a body, as they came; none at its end.

    Raises:
        IncompleteBodyError: the connection ended too early, or stalled.
    """
    piece = await _outcome(response.content.readany())
    if isinstance(piece, _Failure):
        raise IncompleteBodyError(f"the body ended before its length ({piece.reason})")
    return piece


def _idle_clock_trace() -> "aiohttp.TraceConfig":
    """Count a send's idle time from its headers on, without the wait for a connection."""
    import aiohttp  # noqa: PLC0415  # an optional extra

    async def begun(_: object, context: SimpleNamespace, __: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx()

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(begun)
    return config


async def _raise_loss(
    request: "aiohttp.ClientRequest", handler: "aiohttp.ClientHandlerType"
) -> "aiohttp.ClientResponse":
    """Turn a loss into an error that aiohttp does not know, so that it does not resend.

    It would send a PUT or a DELETE twice, and the gateway would reject the second PUT.
    """
    import aiohttp  # noqa: PLC0415  # an optional extra

    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise  # nothing was sent, and aiohttp does not repeat these
    except aiohttp.ClientError as exc:
        raise _LostError(_reason(exc)) from None


async def _outcome(call: Awaitable[_Result], server: PeerSettings = GATEWAY) -> _Result | _Failure:
    """Return the result of a call of aiohttp, or the reason of its failure; its error ends here."""
    import aiohttp  # noqa: PLC0415  # an optional extra

    try:
        return await call
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
        return _Failure(_reason(exc, server), unsent=True)
    except _LostError as exc:
        return _Failure(str(exc))
    except (aiohttp.ClientError, OSError, ValueError) as exc:  # ValueError: of a host's name
        return _Failure(_reason(exc, server))


def _reason(exc: Exception, server: PeerSettings = GATEWAY) -> str:
    """Return why there is no response; never the text of an error."""
    import aiohttp  # noqa: PLC0415  # an optional extra

    if (problem := describe_connection_failure(exc, server)) is not None:
        return problem
    if isinstance(exc, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return "the connection was lost"
    if isinstance(exc, aiohttp.ClientResponseError):
        return "its response is not valid HTTP"
    return f"its address is not valid: check {server.url}"
