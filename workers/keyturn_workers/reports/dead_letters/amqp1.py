"""Reads a queue over AMQP 1.0, in which RabbitMQ delivers each message as it is stored (SPEC 6.9).

RabbitMQ cannot convert every message that was published over AMQP 1.0 to 0-9-1. This is the minimal
client that a reader needs, after OASIS AMQP 1.0: one link, whose messages are held until they are
settled. Only headers that are text are read: a request has no others, and other types are a risk.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from aio_pika import IncomingMessage
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic
from pamqp.common import FieldValue
from pamqp.header import ContentHeader

from keyturn.publisher.connection import Broker, BrokerAddress, close_quietly

_SASL_HEADER: Final = b"AMQP\x03\x01\x00\x00"
_HEADER: Final = b"AMQP\x00\x01\x00\x00"
_MECHANISMS, _INIT, _OUTCOME = 0x40, 0x41, 0x44
_OPEN, _BEGIN, _ATTACH, _FLOW, _TRANSFER, _DISPOSITION, _DETACH, _END, _CLOSE = range(0x10, 0x19)
_ACCEPTED, _RELEASED, _SOURCE, _TARGET = 0x24, 0x26, 0x28, 0x29
_ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA, _SEQUENCE, _VALUE = range(0x72, 0x78)
_NULL, _TRUE, _UNSETTLED = b"\x40", b"\x41", b"\x50\x00"
_SECTIONS: Final = range(0x70, 0x79)
_BINARIES: Final = (0xA0, 0xB0)
_TEXTS: Final = (0xA1, 0xA3, 0xB1, 0xB3)
_WIDTHS: Final = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}
_REASON: Final = "x-first-death-reason"
_EMPTY_FRAME: Final = b"\0\0\0\x08\x02\0\0\0"
_WINDOW: Final = 2**31 - 1
_TIMEOUT_S: Final = 30.0
_KEEPALIVE_S: Final = 10.0
# Headers of AMQP 0-9-1 are no larger.
_HEADERS_MAX_BYTES: Final = 128 * 1024
# Far more than a sender needs, and few enough to read at once.
_SECTIONS_MAX: Final = 1000
_NESTED_MAX: Final = 100


class LinkError(Exception):
    """The broker does not speak AMQP 1.0 on this port, refuses the link, or has ended it."""


LINK_ERRORS: Final = (LinkError, OSError, EOFError, TimeoutError)


class Link:
    """Receives the messages of one queue, and holds them; from `open_link`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._deliveries: list[bytes] = []

    async def receive(self, channel: AbstractChannel) -> IncomingMessage:
        """Return the next message as one of AMQP 0-9-1; its delivery tag counts from 1.

        aio-pika requires a `channel` for each message.

        Raises:
            LinkError, OSError, EOFError: the link has ended.
            TimeoutError: no message came.
        """
        fields, payload = await self._read(_TRANSFER)
        self._deliveries.append(fields[1])
        parts = [payload]
        while fields[5] == _TRUE:  # more of it follows
            fields, payload = await self._read(_TRANSFER)
            parts.append(payload)
        body, properties = _parse(b"".join(parts))
        delivery = Basic.Deliver("", len(self._deliveries), routing_key="")
        header = ContentHeader(0, len(body), properties)
        return IncomingMessage(DeliveredMessage(delivery, header, body, channel))

    def remove(self, tags: Sequence[int]) -> None:
        """Remove messages from the queue."""
        # One command for each run of tags: the broker could forget some of very many commands.
        for tag in tags:
            if tag - 1 not in tags:
                self._settle(tag, next(t for t in count(tag) if t + 1 not in tags), _ACCEPTED)

    async def release(self) -> None:
        """Return all other messages to the end of the queue, in their order, and end the link.

        Errors as `receive`.
        """
        if self._deliveries:
            self._settle(1, len(self._deliveries), _RELEASED)
        self._write(_END)
        await self._read(_END)

    def _settle(self, first: int, last: int, outcome: int) -> None:
        ids = (self._deliveries[tag - 1] for tag in (first, last))
        self._write(_DISPOSITION, _TRUE, *ids, _TRUE, _described(outcome, _list()))

    async def keep_alive(self) -> None:
        """Send empty frames forever: the broker disconnects a client that sends nothing."""
        while True:
            await asyncio.sleep(_KEEPALIVE_S)
            self._writer.write(_EMPTY_FRAME)

    async def open(self, address: str, vhost: str, user: str, password: str, credit: int) -> None:
        """Sign in, and ask for `credit` messages of an address; errors as `receive`."""
        await self.negotiate(_SASL_HEADER)
        await self._read(_MECHANISMS)
        plain = f"\0{user}\0{password}".encode()
        self._write(_INIT, _sized(0xB3, b"PLAIN"), _sized(0xB0, plain), kind=1)
        if (await self._read(_OUTCOME))[0][0] != b"\x50\x00":
            raise LinkError("the broker refuses the user name or password")
        await self.negotiate(_HEADER)
        self._write(_OPEN, _text("keyturn"), _text(f"vhost:{vhost}"))
        await self._read(_OPEN)
        self._write(_BEGIN, _NULL, _uint(0), _uint(_WINDOW), _uint(_WINDOW))
        next_id = (await self._read(_BEGIN))[0][1]
        source, target = _described(_SOURCE, _list(_text(address))), _described(_TARGET, _list())
        self._write(_ATTACH, _text("letters"), _uint(0), _TRUE, _UNSETTLED, _NULL, source, target)
        delivery_count = (await self._read(_ATTACH))[0][9]
        windows = (next_id, _uint(_WINDOW), _uint(0), _uint(_WINDOW))
        self._write(_FLOW, *windows, _uint(0), delivery_count, _uint(credit))

    async def negotiate(self, header: bytes) -> None:
        """Agree on a protocol; errors as `receive`."""
        self._writer.write(header)
        async with asyncio.timeout(_TIMEOUT_S):
            if await self._reader.readexactly(len(header)) != header:
                raise LinkError("the port does not speak AMQP 1.0")

    def _write(self, code: int, *fields: bytes, kind: int = 0) -> None:
        body = _described(code, _list(*fields))
        self._writer.write((len(body) + 8).to_bytes(4) + bytes((2, kind, 0, 0)) + body)

    async def _read(self, code: int) -> tuple[list[bytes], bytes]:
        """Return encoded fields and payload of the next frame of this kind; errors as `receive`."""
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                size = int.from_bytes(await self._reader.readexactly(4))
                frame = await self._reader.readexactly(size - 4)
                start = 4 * frame[0] - 4
                if start == len(frame):
                    continue  # an empty frame
                found, at = frame[start + 2], start + 3
                if found == code:
                    fields = _items(frame, at)
                    return fields + [_NULL] * (10 - len(fields)), frame[_end(frame, at) :]
                if found in (_DETACH, _END, _CLOSE):
                    raise LinkError("the broker ended the link")


@asynccontextmanager
async def open_link(broker: Broker, queue: str, credit: int) -> AsyncIterator[Link]:
    """Yield a link that receives `credit` messages of a queue; unsettled ones go back at its end.

    Raises:
        LinkError, OSError, EOFError, TimeoutError: the broker is unavailable, or refuses the link.
    """
    async with _connect(broker) as (link, url):
        keeping = asyncio.create_task(link.keep_alive(), name="AMQP 1.0 keepalive")
        try:
            user, password = unquote(url.username or "guest"), unquote(url.password or "guest")
            vhost = unquote(url.path[1:]) or "/"
            await link.open(f"/queues/{queue}", vhost, user, password, credit)
            yield link
        finally:
            keeping.cancel()


async def serves_amqp1(broker: Broker) -> bool:
    """Check if the broker's port serves AMQP 1.0.

    Raises:
        OSError, TimeoutError: the broker is unavailable.
    """
    async with _connect(broker) as (link, _):
        try:
            await link.negotiate(_SASL_HEADER)
        except (LinkError, EOFError, ConnectionError):
            return False
        return True


@asynccontextmanager
async def _connect(broker: Broker) -> AsyncIterator[tuple[Link, SplitResult]]:
    """Yield a link that is not open yet, and the broker's URL."""
    address = BrokerAddress(broker) if isinstance(broker, str) else broker
    url, tls = urlsplit(address.url), None
    if url.scheme == "amqps":
        tls = address.tls or ssl.create_default_context()
    port = url.port or (5672 if tls is None else 5671)
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=tls)
    try:
        yield Link(reader, writer), url
    finally:
        writer.close()
        await close_quietly(writer.wait_closed())


def _parse(payload: bytes) -> tuple[bytes, Basic.Properties]:
    """Return the body of a message, and its texts: id, content type and headers.

    RabbitMQ does not check what a publisher sends as the body or after it. The body of a malformed
    message is the whole payload, without properties.
    """
    try:
        sections = list(_sections(payload))
        return _read_body(sections), _read_properties(sections)
    except (IndexError, ValueError):
        return payload, Basic.Properties(headers={})


def _sections(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each section of a message with its encoded value.

    Raises:
        IndexError, ValueError: the message is malformed.
    """
    at = 0
    for _ in range(_SECTIONS_MAX):
        if at == len(payload):
            return
        section, start = payload[at + 2], at + 3
        if payload[at : at + 2] != b"\0\x53" or section not in _SECTIONS:
            raise ValueError("not a section of a message")
        at = len(payload) if section in (_SEQUENCE, _VALUE) else _end(payload, start)
        yield section, payload[start:at]
    if at != len(payload):
        raise ValueError("cut short, or of too many sections")


def _read_body(sections: Sequence[tuple[int, bytes]]) -> bytes:
    body = []
    for section, value in sections:
        if section in (_SEQUENCE, _VALUE):
            return value
        if section == _DATA:
            if value[0] not in _BINARIES:
                raise ValueError("not binary")
            body.append(_contents(value))
    return b"".join(body)


def _read_properties(sections: Sequence[tuple[int, bytes]]) -> Basic.Properties:
    headers, properties = dict[str, FieldValue](), [_NULL] * 7
    for section, value in sections:
        items = []
        if section in (_ANNOTATIONS, _PROPERTIES, _APPLICATION):
            items = _items(value, 0) if len(value) <= _HEADERS_MAX_BYTES else []
        if section == _PROPERTIES:
            properties = items + properties[len(items) :]
            continue
        for name, encoded in zip(map(_as_text, items[::2]), items[1::2], strict=True):
            text = _as_text(encoded)
            if text is not None and name and (section == _APPLICATION or name == _REASON):
                headers[name] = text
    message_id, content_type = _as_text(properties[0]), _as_text(properties[6])
    return Basic.Properties(content_type=content_type, message_id=message_id, headers=headers)


def _end(data: bytes, at: int) -> int:
    """Return the end of an encoded value."""
    values = 1
    while values:
        code, at = data[at], at + 1
        if code == 0:  # a descriptor, before its value
            values += 1
            if values > _NESTED_MAX:
                raise ValueError("nested too deep")
            continue
        values -= 1
        if (width := _WIDTHS.get(code >> 4)) is not None:
            at += width
        else:
            size_bytes = 4 if code >> 4 & 1 else 1
            at += size_bytes + int.from_bytes(data[at : at + size_bytes])
    return at


def _items(data: bytes, at: int) -> list[bytes]:
    """Return the encoded items of a list, or the names and values of a map."""
    end, items = _end(data, at), []
    at += 1 + (8 if data[at] >> 4 & 1 else 2)  # size and count
    while at < end:
        start, at = at, _end(data, at)
        items.append(data[start:at])
    return items


def _contents(encoded: bytes) -> bytes:
    """Return the bytes of an encoded binary, string or symbol."""
    return encoded[5 if encoded[0] >> 4 & 1 else 2 :]


def _as_text(encoded: bytes) -> str | None:
    """Return a string or a symbol; None if it is something else."""
    return _contents(encoded).decode(errors="replace") if encoded[0] in _TEXTS else None


def _sized(code: int, value: bytes) -> bytes:
    return bytes([code]) + len(value).to_bytes(4) + value


def _text(value: str) -> bytes:
    return _sized(0xB1, value.encode())


def _uint(number: int) -> bytes:
    return b"\x70" + number.to_bytes(4)


def _list(*values: bytes) -> bytes:
    return _sized(0xD0, len(values).to_bytes(4) + b"".join(values))


def _described(code: int, value: bytes) -> bytes:
    return b"\0\x53" + bytes([code]) + value
