"""A proxy in front of an S3 server that injects faults into chosen requests, and counts them.

It reads each request and each response completely before it passes them on, so it is for tests
with small bodies. It never sends a request twice. The faults:

| fault | the client gets | the server |
| --- | --- | --- |
| `500`, `503` | this status, 503 with `Retry-After` | gets nothing |
| `slow` | the response after a delay | gets the request after a delay |
| `reset` | a broken connection | gets nothing |
| `request cut` | a broken connection | gets half a request |
| `answer cut` | half a response | performs the request |
| `answer lost` | a broken connection instead of the response | performs the request |
| `late` | a broken connection | performs the request after a delay |
| `404`, `404 page` | S3's `NoSuchKey` or a proxy's HTML page for an existing key | responds |
| `date ahead`, `date behind` | a `Date` hours ahead or 30 s behind | performs the request |

While a proxy `is_away`, every request breaks its connection.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tools.chaos.plan import FALSE_RESPONSES
from tools.harness.loopback import loopback_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.chaos.plan import Action

_SAYS = {"500": "InternalError", "503": "SlowDown"}
_NO_SUCH_KEY = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
_PAGE = b"<html><head><title>404 Not Found</title></head><body>Not Found</body></html>"

_LIMIT_BYTES = 1024 * 1024
_BODILESS = frozenset({204, 304})


def key_of(target: str) -> str:
    """The S3 key that a request names; empty for the bucket itself."""
    return unquote(target.partition("?")[0]).removeprefix("/").partition("/")[2]


def kind_of(method: str, target: str, headers: dict[str, str]) -> str:
    """The kind of a request: verb and resource (`put object`, `read keyring` …)."""
    query, key = target.partition("?")[2], key_of(target)
    names = {part.partition("=")[0] for part in query.split("&")}
    if not key:
        return "list" if method == "GET" else "other"
    if key.startswith(".keyturn/doctor/"):
        return "doctor"
    if names & {"uploadId", "uploads"}:
        return "multipart"
    if "tagging" in names:
        return "tags"
    verb = {"PUT": "put", "GET": "read", "HEAD": "read", "DELETE": "delete"}.get(method, "other")
    return f"{'copy' if 'x-amz-copy-source' in headers else verb} {_about(key)}"


def _about(key: str) -> str:
    for prefix, name in (("keyrings", "keyring"), ("staging", "staged"), ("", "record")):
        if key.startswith(f".keyturn/{prefix}"):
            return name
    return "object"


def false_response(fault: Action, request: Message, answer: Message) -> Message | None:
    """The false response in place of the real one; None if the fault does not apply.

    Only existing keys are denied, and never for a HEAD, whose 404 carries no error code.
    """
    if fault.to in {"date ahead", "date behind"}:
        return redated(answer, fault.seconds)
    if request.first[0] != "GET" or answer.first[1] not in {"200", "206"}:
        return None
    return absence(answer, page=fault.to == "404 page")


@dataclass
class _Storm:
    action: Action
    seen: int = 0
    left: int = 0


@dataclass
class FaultProxy:
    """Forwards to one server; `seen` counts requests by kind, `done` faults by name and kind.

    `denied` has the S3 keys that were falsely reported missing, and when last (monotonic). `puts`
    counts successful puts by key, and `unanswered` those of them whose client was gone before the
    response. `received_bytes` is what clients got. Requests for objects are forwarded `delay_s`
    later.
    """

    host: str
    port: int
    url: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    denied: dict[str, float] = field(default_factory=dict)
    puts: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    received_bytes: int = 0
    delay_s: float = 0.0
    is_away: bool = False
    _storms: list[_Storm] = field(default_factory=list)
    _spared: set[str] = field(default_factory=set)

    def storm(self, action: Action) -> None:
        """Inject a fault into further requests of a kind, as the action says."""
        self._storms.append(_Storm(action, left=action.times))

    def calm(self, confirmed: int | None = None) -> int:
        """End the storms that are over at this progress, or all; returns how many."""
        before = len(self._storms)
        self._storms = [
            storm
            for storm in self._storms
            if confirmed is not None and confirmed <= storm.action.until
        ]
        return before - len(self._storms)

    def _next(self, kind: str) -> Action | None:
        """The fault for the next request of a kind; never for two in a row.

        Otherwise an immediate retry would fail again and again, and the message would be delayed
        for longer than a run takes: 1, 5, 30, 120, 600 seconds.
        """
        self.seen[kind] += 1
        if kind in self._spared:
            self._spared.discard(kind)
            return None
        for storm in self._storms:
            if storm.action.kind != kind:
                continue
            storm.seen += 1
            if storm.seen % storm.action.every:
                continue
            storm.left -= 1
            if not storm.left:
                self._storms.remove(storm)
            self._spared.add(kind)
            return storm.action
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Connection(self, reader, writer).serve()


class _Connection:
    """A client's connection and its connection to the server."""

    def __init__(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._behind: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def serve(self) -> None:
        """Handle requests one by one until either side closes."""
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._one():
                    pass
        finally:
            self._writer.transport.abort()
            self._leave_server()

    async def _one(self) -> bool:
        request = await self._request()
        method, target, _ = request.first
        kind = kind_of(method, target, request.headers)
        if self._proxy.is_away:
            self._proxy.done["away", kind] += 1
            return False
        fault = self._proxy._next(kind)
        if fault is None:
            if kind.endswith(" object"):
                await asyncio.sleep(self._proxy.delay_s)
            answer = await self._forward(request)
            if kind == "put object" and answer.first[1] == "200":
                return await self._give_put(key_of(target), answer)
            return await self._give(answer)
        if fault.to in FALSE_RESPONSES:
            return await self._send_false_response(fault, kind, request)
        self._proxy.done[fault.to, kind] += 1
        return await self._inject(fault, request)

    async def _send_false_response(self, fault: Action, kind: str, request: Message) -> bool:
        """Forward the request, and replace the response by a false one where that applies."""
        answer = await self._forward(request)
        changed = false_response(fault, request, answer)
        if changed is None:
            return await self._give(answer)
        self._proxy.done[fault.to, kind] += 1
        if changed.first[1] == "404":
            self._proxy.denied[key_of(request.first[1])] = time.monotonic()
        return await self._give(changed)

    async def _inject(self, fault: Action, request: Message) -> bool:
        match fault.to:
            case "500" | "503":
                return await self._give(refusal(fault.to, request.first[0]))
            case "slow":
                await asyncio.sleep(fault.seconds)
                return await self._give(await self._forward(request))
            case "request cut":
                _, writer = await self._server()
                writer.write(request.raw[: max(1, len(request.raw) // 2)])
                await writer.drain()
            case "answer cut":
                answer = await self._forward(request)
                half = answer.body[: len(answer.body) // 2]
                self._writer.write(answer.head + half if half else answer.head[:20])
                await self._writer.drain()
                # An abort discards unsent bytes, and half the response must arrive.
                self._writer.close()
            case "answer lost":
                await self._forward(request)
            case "late":
                self._writer.transport.abort()
                await asyncio.sleep(fault.seconds)
                await self._forward(request)
        return False

    async def _request(self) -> Message:
        message = await head(self._reader)
        if message.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            message = without(message, "expect")
        return await with_body(self._reader, message)

    async def _forward(self, request: Message) -> Message:
        reader, writer = await self._server()
        # The server may reject and close before it has read the whole body.
        with suppress(OSError):
            writer.write(request.raw)
            await writer.drain()
        answer = await head(reader)
        if request.first[0] == "HEAD" or int(answer.first[1]) in _BODILESS:
            return answer
        return await with_body(reader, answer, execute="content-length" not in answer.headers)

    async def _give_put(self, s3_key: str, answer: Message) -> bool:
        """Pass on a successful put, and count it."""
        if self._writer.is_closing() or self._reader.at_eof():
            self._proxy.unanswered += 1
            return False
        self._proxy.puts[s3_key] += 1
        return await self._give(answer)

    async def _give(self, answer: Message) -> bool:
        if self._writer.is_closing():
            return False  # the client did not wait for it
        self._proxy.received_bytes += len(answer.raw)
        self._writer.write(answer.raw)
        await self._writer.drain()
        return answer.headers.get("connection", "").lower() != "close"

    async def _server(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._behind is None:
            host, port = self._proxy.host, self._proxy.port
            self._behind = await asyncio.open_connection(host, port, limit=_LIMIT_BYTES)
        return self._behind

    def _leave_server(self) -> None:
        if self._behind is not None:
            self._behind[1].transport.abort()


@asynccontextmanager
async def run_fault_proxy(url: str) -> AsyncIterator[FaultProxy]:
    """Run a proxy in front of the server at this URL, initially without faults."""
    at = urlsplit(url)
    assert at.hostname is not None
    running = FaultProxy(at.hostname, at.port or 80)
    async with loopback_server(running._serve, limit_bytes=_LIMIT_BYTES) as running.url:
        yield running


@dataclass(frozen=True)
class Message:
    """A request or a response: its raw head, and its body."""

    first: tuple[str, str, str]
    headers: dict[str, str]
    head: bytes
    body: bytes = b""

    @property
    def raw(self) -> bytes:
        return self.head + self.body


async def head(reader: asyncio.StreamReader) -> Message:
    """The next message's head.

    Raises:
        asyncio.IncompleteReadError: the connection ended.
    """
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    one, two, three = (*first.split(" ", 2), "")[:3]
    split = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in split}
    return Message((one, two, three), headers, raw)


def without(message: Message, header: str) -> Message:
    """The message without this header."""
    lines = message.head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(f"{header}:".encode())]
    return Message(message.first, message.headers, b"\r\n".join(kept))


async def with_body(
    reader: asyncio.StreamReader, message: Message, *, execute: bool = False
) -> Message:
    """The message with its body, in its original framing."""
    headers = message.headers
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _chunks(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read() if execute else b""
    return Message(message.first, headers, message.head, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    raw = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        size_bytes = int(line.split(b";")[0], 16)
        raw += line + await reader.readexactly(size_bytes + 2)
        if size_bytes == 0:
            return bytes(raw)


def refusal(status: str, method: str) -> Message:
    """An error response of an overloaded S3 server."""
    code = _SAYS[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    sent = b"" if method == "HEAD" else body
    lines = (
        f"HTTP/1.1 {status} {code}",
        "Content-Type: application/xml",
        *(("Retry-After: 1",) if status == "503" else ()),
        f"Content-Length: {len(sent)}",
        "",
        "",
    )
    return Message(("HTTP/1.1", status, code), {}, "\r\n".join(lines).encode(), sent)


def absence(answer: Message, *, page: bool) -> Message:
    """A 404 in place of a response: S3's, or a proxy's HTML page."""
    body, kind = (_PAGE, "text/html") if page else (_NO_SUCH_KEY, "application/xml")
    lines = (
        "HTTP/1.1 404 Not Found",
        f"Content-Type: {kind}",
        *([f"Date: {answer.headers['date']}"] if "date" in answer.headers else []),
        f"Content-Length: {len(body)}",
        "",
        "",
    )
    return Message(("HTTP/1.1", "404", "Not Found"), {}, "\r\n".join(lines).encode(), body)


def redated(answer: Message, seconds: float) -> Message | None:
    """The response with its `Date` shifted by `seconds`; None if it has no `Date`."""
    if "date" not in answer.headers:
        return None
    moved = parsedate_to_datetime(answer.headers["date"]) + timedelta(seconds=seconds)
    date = format_datetime(moved, usegmt=True)
    lines = [
        f"Date: {date}".encode() if line.lower().startswith(b"date:") else line
        for line in answer.head.split(b"\r\n")
    ]
    headers = {**answer.headers, "date": date}
    return Message(answer.first, headers, b"\r\n".join(lines), answer.body)
