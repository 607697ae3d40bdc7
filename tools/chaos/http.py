"""Reads whole HTTP/1.1 messages byte for byte, for a proxy that passes them on unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_SAYS = {"500": "InternalError", "503": "SlowDown"}


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


_NO_SUCH_KEY = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
_PAGE = b"<html><head><title>404 Not Found</title></head><body>Not Found</body></html>"


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
