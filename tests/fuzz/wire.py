"""AMQP properties and header tables as bytes: right ones, odd ones and broken ones.

Written by hand from AMQP 0-9-1 (sections 4.2.5 and 4.2.6) and RabbitMQ's table of field
types, since a client's own encoder does not write what a foreign client may.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

Entry = tuple[bytes, bytes]
"""A header's name, and its value with its type before it."""

FRAME_BYTES: Final = 128 * 1024
_SHORT_MAX: Final = 255
# Property, its flag, in the order in which they are written.
_FLAGS: Final = {
    "content_type": 15,
    "content_encoding": 14,
    "headers": 13,
    "delivery_mode": 12,
    "priority": 11,
    "correlation_id": 10,
    "reply_to": 9,
    "expiration": 8,
    "message_id": 7,
    "timestamp": 6,
    "type": 5,
    "user_id": 4,
    "app_id": 3,
    "cluster_id": 2,
}
_OCTETS: Final = ("delivery_mode", "priority")
# The broker holds a user's name against who publishes, and the time to live and the mode
# against rules of its own; a reply is checked for its consumer.
_SHORT: Final = ("content_type", "content_encoding", "correlation_id", "type", "app_id")
_NAMES: Final = (
    b"a",
    b"",
    b"\0",
    b"n" * 128,
    b"n" * 129,
    b"n" * _SHORT_MAX,
    "ü".encode() * 65,
    b"traceparent",
    b"x-death",
    b"x-delivery-count",
    b"x-first-death-reason",
    b"x-match",
    b"keyturn-code",
    b"keyturn-attempt",
)
_DEEP_SHARE: Final = 0.1
# The code of a type, its struct format, and its boundary values.
_EDGES: Final[tuple[tuple[bytes, str, tuple[Any, ...]], ...]] = (
    (b"b", ">b", (0, -128, 127)),
    (b"I", ">i", (0, -(2**31), 2**31 - 1)),
    (b"l", ">q", (0, -(2**63), 2**63 - 1, 2**40)),
    (b"d", ">d", (0.0, 0.1, 1e300, -1e-300, 2.0**53)),
    (b"D", ">BI", ((0, 0), (2, 7), (28, 2**31 - 1), (255, 7))),
    (b"T", ">Q", (0, 1_700_000_000, 1_700_000_000_000, 2**62)),
    (b"x", ">I3s", ((3, b"\0\xff\x01"),)),
)


def text(value: str | bytes) -> bytes:
    """A long string, the usual type of a header."""
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"S" + struct.pack(">I", len(raw)) + raw


def table(entries: Sequence[Entry]) -> bytes:
    """A table with its length before it."""
    body = b"".join(bytes([len(name)]) + name + value for name, value in entries)
    return struct.pack(">I", len(body)) + body


def nested(depth: int) -> bytes:
    """A table in a table in a table."""
    found = b"V"
    for _ in range(depth):
        found = b"F" + table([(b"a", found)])
    return found


def header_bytes(headers: Sequence[Entry], properties: dict[str, bytes]) -> bytes:
    """Flags and properties as they follow the body's size in a content header."""
    flags, parts = 0, b""
    for name, bit in _FLAGS.items():
        if name == "headers":
            flags |= 1 << bit
            parts += table(headers)
        elif name in properties:
            flags |= 1 << bit
            value = properties[name]
            encoded = value if name in (*_OCTETS, "timestamp") else bytes([len(value)]) + value
            parts += encoded
    return struct.pack(">H", flags) + parts


def odd_properties(rng: random.Random) -> dict[str, bytes]:
    """A few properties that the broker passes on."""
    made = {}
    for name in rng.sample(_SHORT, rng.choice((0, 0, 1, 2))):
        made[name] = rng.choice(
            (
                b"text/plain",
                b"",
                "ü".encode() * 127,
                b"\xff" * rng.choice((1, 85, 86, 200, _SHORT_MAX)),
                b"\0",
                b"a" * _SHORT_MAX,
                rng.randbytes(rng.randint(0, 40)),
            )
        )
    if rng.random() < 0.15:
        made["priority"] = bytes([rng.choice((0, 5, 255))])
    if rng.random() < 0.15:
        moments = (0, 1, 2**32, 2**40, 1_700_000_000_000, 1_700_000_000_000_000, 2**63 - 1)
        made["timestamp"] = struct.pack(">Q", rng.choice(moments))
    return made


def odd_entry(rng: random.Random) -> Entry:
    """One header of any type."""
    return rng.choice(_NAMES), odd_value(rng)


def odd_value(rng: random.Random) -> bytes:
    """A value of any of RabbitMQ's types, at its edges."""
    kind = rng.randrange(10)
    if kind < len(_EDGES):
        code, form, edges = _EDGES[kind]
        return code + struct.pack(form, *_together(rng.choice(edges)))
    match kind:
        case 7:
            deep = (40, 400, rng.randint(440, 500), 900)
            return nested(rng.choice(deep) if rng.random() < _DEEP_SHARE else rng.randint(1, 3))
        case 8:
            items = rng.choices((b"V", b"t\x01", text("x"), b"B\xff"), k=rng.randint(0, 4))
            return b"A" + struct.pack(">I", len(b"".join(items))) + b"".join(items)
    return text(rng.choice(("", "ü", "unknown_project:2", "a" * 300, b"\xff\xfe")))


def _together(edge: Any) -> tuple[Any, ...]:
    return edge if isinstance(edge, tuple) else (edge,)


def many(rng: random.Random) -> list[Entry]:
    """Very many small headers, or a few that nearly fill a frame."""
    if rng.random() < 0.5:
        return [(b"%05d" % i, b"V") for i in range(rng.choice((2_000, 15_000, 17_500)))]
    size = rng.choice((40_000, 98_000, 120_000))
    return [(b"large", text("a" * size)), *((b"%03d" % i, text("b" * 20)) for i in range(100))]
