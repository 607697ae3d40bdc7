"""What a foreign client may write into a message's properties is read, and passed on as it was.

Each of these once kept a refused message from its dead letter: it came again each second, or
was never given to a consumer and kept its place for good. All of them pass RabbitMQ 4.0.

Below, the libraries as they are released still need `amqp.property_tolerance` (ADR 0013). Each
case runs in a separate process, which nothing has patched. A case that fails there is fixed
upstream: remove its part of `property_tolerance`, its line in ADR 0013, and the case.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.topology import CODE_HEADER
from keyturn_workers.process.message_copies import copy_of
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
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
    assert message.headers["at"] == letter.headers["at"] == message.timestamp == time


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
    text = value.decode("utf-8", "replace").replace("\ufffd", "?")
    assert {name: getattr(message, name) for name in names} == dict.fromkeys(names, text)
    assert (letter.content_type, letter.message_id) == (text, text)


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


_REPRODUCTION = """
import json, struct
from aio_pika import DeliveryMode
from aio_pika.message import decode_expiration
from pamqp import decode, encode

def written(value, name="n"):
    return decode.field_table(encode.field_table({name: value}))[1] == {name: value}

def timestamp_again(value):
    return encode.timestamp(decode.timestamp(value)[1]) == value

cases = {
    "a timestamp after the year 9999": lambda: decode.timestamp(struct.pack(">Q", 2**62)),
    "a timestamp after the year 2106": lambda: timestamp_again(struct.pack(">Q", 2**46 // 1000)),
    "a short string that is not UTF-8": lambda: decode.short_str(b"\\x01\\xff"),
    "a header of an unknown type": lambda: decode.field_table(struct.pack(">I", 3) + b"\\x01a?"),
    "an unknown delivery mode": lambda: DeliveryMode(3),
    "an expiration that is no number": lambda: decode_expiration("x"),
    "a header that is not UTF-8": lambda: written(b"\\xff"),
    "a double": lambda: written(0.1),
    "a double that is no float": lambda: written(1e300),
    "a header's name above 128 bytes": lambda: written("v", "n" * 129),
}
outcomes = {}
for name, case in cases.items():
    try:
        outcomes[name] = "changed" if case() is False else "read"
    except Exception as exc:
        outcomes[name] = type(exc).__name__
print(json.dumps(outcomes))
"""
_EXPECTED = {
    "a timestamp after the year 9999": "ValueError",
    "a timestamp after the year 2106": "changed",
    "a short string that is not UTF-8": "UnicodeDecodeError",
    "a header of an unknown type": "ValueError",
    "an unknown delivery mode": "ValueError",
    "an expiration that is no number": "ValueError",
    "a header that is not UTF-8": "TypeError",
    "a double": "changed",
    "a double that is no float": "OverflowError",
    "a header's name above 128 bytes": "changed",
}


@cache
def outcomes() -> dict[str, str]:
    """What the unpatched libraries do in each case."""
    command = [sys.executable, "-I", "-c", _REPRODUCTION]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("case", list(_EXPECTED))
def test_the_released_libraries_still_fail(case: str) -> None:
    outcome = outcomes()[case]
    assert outcome != "read", (
        f"pamqp {version('pamqp')} and aio-pika {version('aio-pika')} read {case}: "
        "that part of keyturn_workers.process.property_tolerance is no longer needed"
    )
    assert outcome == _EXPECTED[case]
