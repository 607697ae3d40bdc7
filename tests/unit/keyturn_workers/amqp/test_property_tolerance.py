"""What a foreign client may write into a message's properties is read, and passed on as it was.

Each of these once kept a refused message from its dead letter: it came again each second, or
was never given to a consumer and kept its place for good. All of them pass RabbitMQ 4.0.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.topology import CODE_HEADER
from keyturn_workers.amqp.failures import copy_of
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from tests.fuzz import wire
from tests.fuzz.offline_worker import Channel, received
from tests.fuzz.watch import Clock

if TYPE_CHECKING:
    from aio_pika import IncomingMessage

SIGNED = [
    (b"keyturn-publisher", wire.text("api")),
    (b"keyturn-signature", wire.text("x" * 88)),
]


def read(headers: list[wire.Entry], **properties: bytes) -> IncomingMessage:
    """A delivery with these headers, as a worker reads it."""
    tolerate_odd_properties()
    return received(wire.header_bytes(headers, properties), b"body", "upload.requested", Channel())


def passed_on(message: IncomingMessage) -> IncomingMessage:
    """Its dead letter, as its consumer reads it."""
    written = copy_of(message, {CODE_HEADER: "bad_signature"}).properties.marshal()
    assert len(written) < wire.FRAME_BYTES
    letter = received(written, b"body", "keyturn.upload.dead", Channel())
    assert letter.headers.pop(CODE_HEADER) == "bad_signature"
    return letter


@pytest.mark.parametrize(
    "value",
    [
        wire.text(b"\xff\xfe"),
        b"A" + struct.pack(">I", 7) + wire.text(b"\x80\x81"),
        b"d" + struct.pack(">d", 0.1),
        b"d" + struct.pack(">d", 1e300),
        b"D" + struct.pack(">BI", 255, 7),
        b"T" + struct.pack(">Q", 2**62),
        b"x" + struct.pack(">I", 1) + b"\xff",
        b"l" + struct.pack(">q", -(2**63)),
        b"B\xff",
        b"V",
        wire.nested(100),
    ],
    ids=repr,
)
def test_a_header_of_any_type_is_passed_on_as_it_was(value: bytes) -> None:
    message = read([*SIGNED, (b"odd", value)])
    assert passed_on(message).headers == message.headers
    assert message.headers["keyturn-publisher"] == "api"
    assert "odd" in message.headers


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (2**32, datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC)),
        (70_368_744_177, datetime(4199, 11, 24, 1, 22, 57, tzinfo=UTC)),
        (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (253_402_300_800, None),
        (2**46, None),
        (2**64 - 1, None),
    ],
)
def test_a_timestamp_is_read_and_passed_on_in_seconds(seconds: int, time: datetime | None) -> None:
    """Milliseconds and microseconds are after the year 9999: no timestamp."""
    value = struct.pack(">Q", seconds)
    message = read([*SIGNED, (b"at", b"T" + value)], timestamp=value)
    letter = passed_on(message)
    assert message.headers["at"] == letter.headers["at"] == time
    assert message.timestamp == letter.timestamp == time


def test_a_signature_that_is_no_text_is_passed_on() -> None:
    """One flipped bit: the worker once tried such a message again and again."""
    message = read([SIGNED[0], (b"keyturn-signature", wire.text(b"\xe5" + b"x" * 87))])
    assert passed_on(message).headers["keyturn-signature"] == b"\xe5" + b"x" * 87


@pytest.mark.parametrize("size", [1, 128, 129, 255])
def test_a_header_keeps_its_whole_name(size: int) -> None:
    message = read([*SIGNED, (b"n" * size, b"V")])
    assert set(passed_on(message).headers) >= {"n" * size}


def test_a_name_that_no_table_holds_is_left_out() -> None:
    message = read([*SIGNED])
    message.headers["n" * 256] = "x"
    assert passed_on(message).headers.keys() == {"keyturn-publisher", "keyturn-signature"}


@pytest.mark.parametrize("value", [b"\xff" * 255, b"\xff", "ü".encode() * 127 + b"\xff"])
def test_a_short_string_that_is_no_text_fits_where_it_came_from(value: bytes) -> None:
    names = ("content_type", "content_encoding", "correlation_id", "message_id", "app_id", "type")
    message = read(SIGNED, **dict.fromkeys(names, value))
    letter = passed_on(message)
    assert {name: getattr(letter, name) for name in names} == dict.fromkeys(
        names, value.decode("utf-8", "replace").replace("\ufffd", "?")
    )


@pytest.mark.parametrize("mode", [0, 1, 2, 3, 255])
def test_any_delivery_mode_is_read(mode: int) -> None:
    assert (
        passed_on(read(SIGNED, delivery_mode=bytes([mode]))).headers["keyturn-publisher"] == "api"
    )


@pytest.mark.parametrize("expiration", [b"", b"x", b"1e5"])
def test_any_expiration_is_read(expiration: bytes) -> None:
    assert passed_on(read(SIGNED, expiration=expiration)).expiration is None


@pytest.mark.slow
@pytest.mark.parametrize("depth", range(380, 520, 10))
def test_headers_nested_so_deep_that_they_are_just_read(depth: int) -> None:
    """Read near the ground of the stack, written from further up: not deeper than both can."""

    def from_further_up(levels: int, message: IncomingMessage) -> IncomingMessage:
        return from_further_up(levels - 1, message) if levels else passed_on(message)

    message = read([*SIGNED, (b"deep", wire.nested(depth))])
    letter = from_further_up(60, message)
    expected: set[Any] = set(message.headers) - {"deep"}
    assert set(letter.headers) - {"deep"} == expected


def test_very_many_headers_cost_little() -> None:
    """Choosing which of them fit took minutes once, in which nothing else was served."""
    message = read([*SIGNED, *((b"%05d" % number, b"V") for number in range(17_500))])
    clock = Clock()
    letter = passed_on(message)
    assert clock.passed_s() < 2
    assert letter.headers["keyturn-publisher"] == "api"
    assert 10_000 < len(letter.headers) < 17_500
