"""`GET`, `HEAD` and `PUT` of an object (SPEC 9.1 to 9.4).

Who asks is decided first, what the key names second, and only then is anything read. An
answer's length is told from the object's last chunk, but for a whole GET, which finds out at
its end and is aborted where it was wrong. No answer begins before the first piece of its body
has authenticated.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from keyturn.crypto import HEADER_BYTES
from keyturn.errors import CodedError, NotFoundError, RangeNotSatisfiableError
from keyturn_workers.gateway import conditions
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.client_connection import (
    ClientGoneError,
    ClientSlowError,
    abort,
    run_while_connected,
)
from keyturn_workers.gateway.fair_shares import ConcurrencyLimit
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_opener import START_BYTES, ObjectOpener
from keyturn_workers.gateway.object_reader import (
    Legacy,
    ObjectReader,
    Piece,
    Pieces,
    Plaintext,
    content_modified_at,
)
from keyturn_workers.gateway.paths import parse_object_path
from keyturn_workers.gateway.problems import problem, problem_from_error
from keyturn_workers.gateway.ranges import ByteRange, Span, parse_range
from keyturn_workers.gateway.response_headers import object_headers, validator_headers

PRESIGNED_S: Final = 60
_AT_ONCE_BYTES: Final = 64 * 1024
# Up to here an answer begins once all of it has authenticated: what does not is a 502.
_WHOLE_FIRST_BYTES: Final = 256 * 1024
_OK: Final = 200
_PARTIAL: Final = 206
_NOT_MODIFIED: Final = 304
_PRECONDITION_FAILED: Final = 412

_log = structlog.get_logger()

Put = Callable[[Request, Caller, str], Awaitable[Response]]


class ObjectRoutes:
    """The ASGI application of objects.

    Args:
        gate: Decides who may ask.
        limit: Bounds what is served at once, of one project and in all.
        source: Opens objects.
        put: Takes bodies in.
        metrics: Counts.
        presign_plaintext: Whether plaintext is read from the storage itself.
    """

    def __init__(
        self,
        auth: Authenticator,
        limit: ConcurrencyLimit,
        opener: ObjectOpener,
        put: Put,
        metrics: GatewayMetrics,
        *,
        presign_plaintext: bool,
    ) -> None:
        self._auth = auth
        self._limit = limit
        self._opener = opener
        self._put = put
        self._metrics = metrics
        self._presign_plaintext = presign_plaintext

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; refusals before an answer has begun are raised."""
        request = Request(scope, receive)
        project, key = parse_object_path(scope["raw_path"])
        caller = await self._auth.authenticate(project, request.headers.getlist("authorization"))
        if key is None:
            raise NotFoundError("no object can have this key")
        with self._limit.hold(project):
            if scope["method"] == "PUT":
                response = await self._put(request, caller, key)
                await response(scope, receive, send)
                return
            await self._read(scope, receive, send, caller, key)

    async def _read(
        self, scope: Scope, receive: Receive, send: Send, caller: Caller, key: str
    ) -> None:
        headers = Headers(scope=scope)
        head_only = scope["method"] == "HEAD"
        wanted = None if head_only else _range(headers)
        # A plain GET is one stream from the first byte on; all else looks first, and so does a
        # GET where there may be what is not sent by that stream.
        keyring = caller.snapshot.keyring
        unsealed = keyring.plaintext_allowed or keyring.v0_allowed
        looks = head_only or wanted is not None or unsealed or conditions.has_conditions(headers)
        start_bytes = _start_bytes(wanted) if looks else None
        async with self._opener.open(caller, key, start_bytes=start_bytes) as reader:
            span = await self._answer(headers, reader, wanted, head_only=head_only)
            if isinstance(span, Response):
                await span(scope, receive, send)
                return
            status, said = _OK if span is None else _PARTIAL, object_headers(reader, span)
            if head_only:
                await _begin(send, status, said)
                await send({"type": "http.response.body"})
                return
            pieces = reader.read_all() if span is None else reader.read_range(span)
            length = reader.size_bytes if span is None else span.length
            begin = partial(_begin, send, status, said)
            await self._send(scope, receive, send, _Body(pieces, length, begin))

    async def _answer(
        self, headers: Headers, reader: ObjectReader, wanted: ByteRange | None, *, head_only: bool
    ) -> Response | Span | None:
        """An answer without the object's bytes; or which bytes to send, None being all."""
        etag, modified = reader.etag, content_modified_at(reader.head)
        match conditions.evaluate(headers, etag, modified):
            case "failed":
                return problem(_PRECONDITION_FAILED, "the object is not the one that is meant")
            case "not_modified":
                return Response(None, _NOT_MODIFIED, validator_headers(reader))
            case _:
                pass
        if isinstance(reader, Plaintext) and self._presign_plaintext and not head_only:
            url = await self._opener.presigned(reader, PRESIGNED_S)
            said = {"cache-control": "no-store", "content-security-policy": "sandbox"}
            return RedirectResponse(url, headers=said)
        if wanted is not None and not conditions.if_range_matches(headers, etag, modified):
            wanted = None
        span = None if wanted is None else wanted.span(reader.size_bytes)
        if head_only or wanted is not None or isinstance(reader, Legacy):
            await reader.verify(span)
        if wanted is None or wanted.is_suffix_of_empty(reader.size_bytes):
            return None
        if span is None:
            refused = RangeNotSatisfiableError("the range lies outside the object")
            beyond = {"content-range": f"bytes */{reader.size_bytes}", "accept-ranges": "bytes"}
            return problem_from_error(refused, beyond)
        return span

    async def _send(self, scope: Scope, receive: Receive, send: Send, body: "_Body") -> None:
        """Send an answer. What fails before it has begun is raised, what fails later aborts it."""
        try:
            if body.length <= _AT_ONCE_BYTES:
                await body.send(send)  # over before anybody could go
            else:
                await run_while_connected(receive, body.send(send))
        except ClientGoneError:
            self._metrics.aborted.labels("client_gone").inc()
        except ClientSlowError:
            self._abort(scope, "client_slow")
        except CodedError as exc:
            if not body.begun:
                raise
            self._metrics.failures.labels(exc.code).inc()
            self._abort(scope, exc.code)
        except Exception:
            if body.begun:
                abort(scope)
            raise
        finally:
            self._metrics.sent_bytes.inc(body.sent_bytes)

    def _abort(self, scope: Scope, reason: str) -> None:
        abort(scope)
        self._metrics.aborted.labels(reason).inc()
        project, key = parse_object_path(scope["raw_path"])
        _log.warning("answer aborted", reason=reason, project=project, key=key)


def _range(headers: Headers) -> ByteRange | None:
    values = headers.getlist("range")
    return parse_range(values[0]) if len(values) == 1 else None


def _start_bytes(wanted: ByteRange | None) -> int:
    """How much to read at first: no chunk that the answer does not need (SPEC 9.2)."""
    begins = wanted is None or wanted.first == 0
    return START_BYTES if begins else HEADER_BYTES


class _Body:
    """The bytes of an answer, and how far they are sent."""

    def __init__(self, pieces: Pieces, length: int, begin: Callable[[], Awaitable[None]]) -> None:
        self._pieces = pieces
        self._begin = begin
        self.length = length
        self.begun = False
        self.sent_bytes = 0

    async def send(self, send: Send) -> None:
        """Begin the answer with its first piece, and send it to its end.

        A small one begins once all of it has authenticated.
        """
        async with aclosing(self._pieces) as pieces:
            # Before the answer begins: a body cut down to an empty one would otherwise be told
            # as an empty object, which is whole as soon as its head is there.
            piece: Piece | None = await anext(pieces, None)
            if self.length <= _WHOLE_FIRST_BYTES:
                piece = b"".join([piece or b"", *[rest async for rest in pieces]])
            await self._begin()
            self.begun = True
            while piece is not None:
                if piece:
                    self.sent_bytes += len(piece)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await anext(pieces, None)
        await send({"type": "http.response.body", "body": b""})


async def _begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
