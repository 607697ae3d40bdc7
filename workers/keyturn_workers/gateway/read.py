"""`GET` and `HEAD` of an object, and the entry of all requests for objects (SPEC 9.1 to 9.4).

The caller is authenticated before anything about the object is read. A `token` in the query of
a GET, HEAD or PUT makes it a request by link: the link alone decides, and an API key is ignored.

Responses to HEAD and ranges are sent after the object's last chunk has authenticated, which
proves the length. A whole GET proves it at its end, and resets the connection on a failure.
No response starts before the first piece of its body has authenticated.

Content type, disposition and the caller's metadata are as they were stored: not authenticated,
and sent only in a form that HTTP can carry. A link, or the caller, may ask for another disposition
than the stored one (`Delivery`).
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal
from urllib.parse import quote

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from keyturn.crypto.cobblestone import HEADER_BYTES
from keyturn.errors import (
    CodedError,
    MalformedRequestError,
    NotFoundError,
    RangeNotSatisfiableError,
)
from keyturn.metadata import OWN_PREFIX, encode_caller_metadata
from keyturn_workers.gateway.auth import Authenticator, Caller
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.objects import (
    START_BYTES,
    ObjectOpener,
    ObjectReader,
    Piece,
    Pieces,
    PlaintextReader,
    content_modified_at,
)
from keyturn_workers.gateway.problems import problem, problem_from_error
from keyturn_workers.gateway.request import (
    META_PREFIX,
    ByteRange,
    Query,
    Span,
    evaluate_conditions,
    format_http_date,
    has_conditions,
    if_range_matches,
    parse_object_path,
    parse_range,
)
from keyturn_workers.gateway.shares import ConcurrencyLimit
from keyturn_workers.process.http_server.client_connection import (
    ClientGoneError,
    ClientSlowError,
    abort,
    note_error,
    run_while_connected,
)

Disposition = Literal["attachment", "inline"]

# RFC 8187, 3.2.1: attr-char, besides letters and digits.
_ATTR_CHARS: Final = "!#$&+-.^_`|~"
# RFC 6266, appendix D: some clients decode a `%` in `filename`, or take a `\` for an escape.
_NOT_PLAIN: Final = re.compile(r"[^ !#-$&-\[\]-~]")


def content_disposition(disposition: Disposition, filename: str) -> str:
    """Return the header's value. Clients that do not know `filename*` get an ASCII name."""
    plain = _NOT_PLAIN.sub("_", filename)
    value = f'{disposition}; filename="{plain}"'
    if plain == filename:
        return value
    return f"{value}; filename*=UTF-8''{quote(filename, safe=_ATTR_CHARS)}"


def filename_of(object_key: str) -> str:
    r"""Return the name to save an object under: its key's last segment, without a `\`."""
    return object_key.rpartition("/")[2].replace("\\", "_")


_DEFAULT_TYPE: Final = "application/octet-stream"
# Never the stored `cache-control`: a shared cache would serve one key's response to everyone.
_CONTENT_HEADERS: Final = ("content-disposition", "content-language")
# Plaintext may be stored with an encoding.
_PLAINTEXT_HEADERS: Final = (*_CONTENT_HEADERS, "content-encoding")


@dataclass(frozen=True, slots=True)
class Delivery:
    """The parts of a response that the request decides, and not the stored object.

    `disposition` replaces the stored `Content-Disposition`, unless it is None. `headers` are added
    to every response about the object, a 304 included.
    """

    disposition: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def redirectable(self) -> bool:
        """True if a client may be sent to the storage, which sends its own headers."""
        return self.disposition is None and not self.headers


AS_STORED: Final = Delivery()


def delivery_as_download(filename: str) -> Delivery:
    """Return the delivery of a download under a name that the caller gave."""
    return Delivery(content_disposition("attachment", filename))


def delivery_by_link(object_key: str, *, inline: bool) -> Delivery:
    """Return the delivery to the holder of a link.

    A link is a secret in a URL. So no cache keeps its response, and a page that was opened by a
    link does not send the link to others.
    """
    disposition = content_disposition("inline" if inline else "attachment", filename_of(object_key))
    headers = {"cache-control": "private, no-store", "referrer-policy": "no-referrer"}
    return Delivery(disposition, headers)


def validator_headers(reader: ObjectReader, delivery: Delivery = AS_STORED) -> dict[str, str]:
    """Return the headers of every response about an object, a 304 included."""
    return {
        "etag": reader.etag,
        "last-modified": format_http_date(content_modified_at(reader.head)),
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        # A bucket writer chooses content types. A page planted in the bucket must not run
        # scripts, nor see anything of the gateway's origin.
        "content-security-policy": "sandbox",
        **delivery.headers,
    }


def object_headers(
    reader: ObjectReader, span: Span | None, delivery: Delivery = AS_STORED
) -> dict[str, str]:
    """Return the headers of a response with the whole object, or with a range of it."""
    headers = validator_headers(reader, delivery)
    stored = reader.head.headers
    content_type = stored.content_type or ""
    headers["content-type"] = content_type if _is_printable(content_type) else _DEFAULT_TYPE
    names = _PLAINTEXT_HEADERS if isinstance(reader, PlaintextReader) else _CONTENT_HEADERS
    for name in names:
        value = _header_value(stored.restated[name]) if name in stored.restated else None
        if value is not None:
            headers[name] = value
    if delivery.disposition is not None:
        headers["content-disposition"] = delivery.disposition
    headers |= _metadata_headers(reader.head.metadata)
    headers["content-length"] = str(reader.size_bytes if span is None else span.length)
    if span is not None:
        headers["content-range"] = f"bytes {span.first}-{span.end - 1}/{reader.size_bytes}"
    return headers


def _metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    headers = {}
    for name, value in metadata.items():
        if name.startswith(OWN_PREFIX) or not name.replace("-", "").isalnum() or not name.isascii():
            continue
        header_value = _header_value(value)
        if header_value is not None:
            headers[META_PREFIX + name] = header_value
    return headers


def _header_value(value: str) -> str | None:
    """Return a value in a form that HTTP can carry, or None if there is no such form."""
    if not value or _is_printable(value):
        return value
    try:
        return encode_caller_metadata({"v": value})["v"]  # RFC 2047, as on the way to the storage
    except MalformedRequestError:
        return None


def _is_printable(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()


PRESIGNED_S: Final = 60
# Responses up to this size are sent without watching for a disconnect.
_UNWATCHED_BYTES: Final = 64 * 1024
# Responses up to this size start after the whole body has authenticated: a failure is a 502.
_BUFFERED_BYTES: Final = 256 * 1024
_KEY_RULE: Final = (
    "an object key is 1 to 900 bytes of UTF-8, without control characters and without empty, "
    ". or .. segments"
)
_LINK_METHODS: Final = ("GET", "HEAD", "PUT")
_OK: Final = 200
_PARTIAL: Final = 206
_NOT_MODIFIED: Final = 304
_PRECONDITION_FAILED: Final = 412

_log = structlog.get_logger()

ObjectHandler = Callable[[Request, Caller, str], Awaitable[Response]]
"""Handles a method of an authenticated caller, for a valid object key."""


class ObjectRoutes:
    """The ASGI application of objects.

    `handlers` handle the methods that do not read. With `presign_plaintext`, clients read plaintext
    from the storage itself.
    """

    def __init__(
        self,
        auth: Authenticator,
        limit: ConcurrencyLimit,
        opener: ObjectOpener,
        handlers: Mapping[str, ObjectHandler],
        metrics: GatewayMetrics,
        *,
        presign_plaintext: bool,
    ) -> None:
        self._auth = auth
        self._limit = limit
        self._opener = opener
        self._handlers = dict(handlers)
        self._metrics = metrics
        self._presign_plaintext = presign_plaintext

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Errors before the response has started are raised."""
        request = Request(scope, receive)
        project, object_key = parse_object_path(scope["raw_path"])
        query = Query(scope["query_string"])
        if query.is_link and scope["method"] in _LINK_METHODS:
            link = query.upload_link() if scope["method"] == "PUT" else query.link()
            caller = await self._auth.authenticate_link(project, object_key, link)
        else:
            authorization = request.headers.getlist("authorization")
            caller = await self._auth.authenticate(project, authorization)
        if object_key is None:
            if scope["method"] == "PUT":  # 404 would say that it might exist later
                raise MalformedRequestError(_KEY_RULE)
            raise NotFoundError("this is not a valid object key")
        handle = self._handlers.get(scope["method"])
        if handle is None:
            await self._read(scope, receive, send, caller, object_key)
            return
        if scope["method"] == "PUT":  # a tombstone needs no customer secret
            await self._opener.require_customer_key(caller)
        with self._limit.hold(project):
            caller = await self._auth.with_marks(caller)
            response = await handle(request, caller, object_key)
            await response(scope, receive, send)

    async def _read(
        self, scope: Scope, receive: Receive, send: Send, caller: Caller, object_key: str
    ) -> None:
        delivery = _delivery(object_key, Query(scope["query_string"]))
        headers = Headers(scope=scope)
        head_only = scope["method"] == "HEAD"
        byte_range = None if head_only else _requested_range(headers)
        start_bytes = _start_bytes(headers, caller, byte_range, head_only=head_only)
        hold = partial(self._limit.hold, caller.project)
        async with self._opener.open(
            caller, object_key, start_bytes=start_bytes, hold=hold
        ) as reader:
            options = _ReadOptions(byte_range, delivery, head_only=head_only)
            selected = await self._select(headers, reader, options)
            if isinstance(selected, Response):
                await selected(scope, receive, send)
                return
            status = _OK if selected is None else _PARTIAL
            start = partial(_start, send, status, object_headers(reader, selected, delivery))
            if head_only:
                await start()
                await send({"type": "http.response.body"})
                return
            pieces = reader.read_all() if selected is None else reader.read_range(selected)
            length = reader.size_bytes if selected is None else selected.length
            await self._send(scope, receive, send, _Body(pieces, length, start))

    async def _select(
        self, headers: Headers, reader: ObjectReader, options: "_ReadOptions"
    ) -> Response | Span | None:
        """Return a response without a body, the range to send, or None for the whole object."""
        byte_range = options.byte_range
        etag, modified = reader.etag, content_modified_at(reader.head)
        match evaluate_conditions(headers, etag, modified):
            case "failed":
                return problem(_PRECONDITION_FAILED, "the object does not meet the conditions")
            case "not_modified":
                return Response(None, _NOT_MODIFIED, validator_headers(reader, options.delivery))
            case _:
                pass
        if isinstance(reader, PlaintextReader) and self._presign_plaintext and options.redirectable:
            url = await self._opener.presign(reader, PRESIGNED_S)
            redirect = {"cache-control": "no-store", "content-security-policy": "sandbox"}
            return RedirectResponse(url, headers=redirect)
        if byte_range is not None and not if_range_matches(headers, etag, modified):
            byte_range = None
        span = None if byte_range is None else byte_range.span(reader.size_bytes)
        if options.head_only or byte_range is not None:
            await reader.verify(span)
        if byte_range is None or byte_range.is_suffix_of_empty(reader.size_bytes):
            return None
        if span is None:
            error = RangeNotSatisfiableError("the range lies outside the object")
            unsatisfied = {
                "content-range": f"bytes */{reader.size_bytes}",
                "accept-ranges": "bytes",
            }
            return problem_from_error(error, unsatisfied)
        return span

    async def _send(self, scope: Scope, receive: Receive, send: Send, body: "_Body") -> None:
        """Send a response. Errors are raised before it has started, and reset it afterwards."""
        try:
            if body.length <= _UNWATCHED_BYTES:
                await body.send(send)
            else:
                await run_while_connected(receive, body.send(send))
        except ClientGoneError:
            self._metrics.aborted.labels("client_gone").inc()
        except ClientSlowError:
            self._abort(scope, "client_slow")
        except CodedError as exc:
            if not body.started:
                raise
            self._metrics.failures.labels(exc.code).inc()
            self._abort(scope, exc.code)
        except Exception:
            if body.started:
                abort(scope)
            raise
        finally:
            self._metrics.sent_bytes.inc(body.sent_bytes)

    def _abort(self, scope: Scope, reason: str) -> None:
        abort(scope)
        self._metrics.aborted.labels(reason).inc()
        note_error(scope, reason)
        project, object_key = parse_object_path(scope["raw_path"])
        _log.warning("response aborted", reason=reason, project=project, key=object_key)


@dataclass(frozen=True, slots=True)
class _ReadOptions:
    """The options of a read, before the object is known."""

    byte_range: ByteRange | None
    delivery: Delivery
    head_only: bool

    @property
    def redirectable(self) -> bool:
        """True if the client may be sent to the storage."""
        return self.delivery.redirectable and not self.head_only


def _delivery(object_key: str, query: Query) -> Delivery:
    if query.is_link:
        link = query.link()
        return delivery_by_link(object_key, inline=link is not None and link.inline)
    name = query.download_name()
    return AS_STORED if name is None else delivery_as_download(name)


def _requested_range(headers: Headers) -> ByteRange | None:
    values = headers.getlist("range")
    return parse_range(values[0]) if len(values) == 1 else None


def _start_bytes(
    headers: Headers, caller: Caller, byte_range: ByteRange | None, *, head_only: bool
) -> int | None:
    """Return how many bytes of the object to read first; None streams all of it (SPEC 9.2).

    A plain GET streams from the first byte. If the response depends on the object, or the
    object may be plaintext, only its beginning is read first: no chunk that the response does not
    need.
    """
    maybe_unencrypted = caller.snapshot.keyring.plaintext_allowed
    conditional = has_conditions(headers)
    if not (head_only or byte_range is not None or maybe_unencrypted or conditional):
        return None
    from_start = byte_range is None or byte_range.first == 0
    return START_BYTES if from_start else HEADER_BYTES


class _Body:
    """The body of a response, and how much of it has been sent."""

    def __init__(self, pieces: Pieces, length: int, start: Callable[[], Awaitable[None]]) -> None:
        self._pieces = pieces
        self._start = start
        self.length = length
        self.started = False
        self.sent_bytes = 0

    async def send(self, send: Send) -> None:
        """Start the response with its first piece and send it to its end.

        A small response starts only when all of it has authenticated.
        """
        async with aclosing(self._pieces) as pieces:
            # Before the response starts: a body truncated to nothing would otherwise look like
            # an empty object, which is complete as soon as its head is sent.
            piece: Piece | None = await anext(pieces, None)
            if self.length <= _BUFFERED_BYTES:
                piece = b"".join([piece or b"", *[rest async for rest in pieces]])
            await self._start()
            self.started = True
            while piece is not None:
                if piece:
                    self.sent_bytes += len(piece)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                piece = await anext(pieces, None)
        await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
