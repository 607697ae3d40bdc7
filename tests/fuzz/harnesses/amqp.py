"""A message's properties as bytes: read, copied for the dead letters, and read again (SPEC 12)."""

from __future__ import annotations

from typing import Final

from keyturn.crypto import SigningKey
from keyturn.topology import CODE_HEADER
from keyturn_workers.pipeline.amqp.failures import RetryNotes
from keyturn_workers.process.message_copies import copy_of
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from keyturn_workers.reports.dead_letters.letters import json_headers
from tests.fuzz import wire
from tests.fuzz.dead_letters import check_copy
from tests.fuzz.harness import Harness, check
from tests.fuzz.offline_worker import Channel, FrameError, received

_NOTES: Final = RetryNotes("fuzz", [SigningKey.from_seed(b"e" * 32)])


def run(data: bytes) -> str:
    """Everything that happens to a message that is refused, but for the network."""
    tolerate_odd_properties()
    try:
        sent = received(data, b"body", "upload.requested", Channel())
    except FrameError:
        return "no frame"
    check(
        _NOTES.read("keyturn.upload", "api", sent.body, sent.headers) is None,
        "a note of a retry that no worker made",
    )
    json_headers(sent.headers)
    written = copy_of(sent, {CODE_HEADER: "bad_signature"}).properties.marshal()
    check(len(written) < wire.FRAME_BYTES, "a copy that does not fit a frame")
    letter = received(written, b"body", "keyturn.upload.dead", Channel())
    check(letter.headers[CODE_HEADER] == "bad_signature", "a copy without its code")
    for problem in check_copy(sent, letter):
        check(right=False, what=problem)
    return "read" if sent.headers else "read without headers"


def _seeds() -> list[bytes]:
    signed = [
        (b"keyturn-publisher", wire.text("api")),
        (b"keyturn-signature", wire.text("x" * 88)),
    ]
    short = dict.fromkeys(("content_type", "message_id", "correlation_id", "app_id"), b"a")
    values = [b"V", b"t\x01", b"l" + bytes(8), b"d" + bytes(8), b"D\x02" + bytes(4), b"b\xff"]
    odd = [*signed, *((b"%d" % number, value) for number, value in enumerate(values))]
    array = b"A\x00\x00\x00\x03Vt\x01"
    return [
        wire.header_bytes(signed, {}),
        wire.header_bytes(signed, short | {"delivery_mode": b"\x02", "priority": b"\x00"}),
        wire.header_bytes(odd, {"timestamp": bytes(8), "expiration": b"10000"}),
        wire.header_bytes([*signed, (b"a", wire.nested(3)), (b"b", array)], {}),
        wire.header_bytes([*signed, (b"a", wire.nested(460))], {}),
    ]


HARNESS: Final = Harness(
    "amqp",
    run,
    _seeds,
    (
        "keyturn-publisher",
        "keyturn-signature",
        "keyturn-attempt",
        "keyturn-not-before",
        "keyturn-retry-mac",
        "x-death",
    ),
)
