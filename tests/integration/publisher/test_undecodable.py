"""Messages on the stream whose properties the client library cannot decode (SPEC 6.7).

Anyone with write access to the exchange can publish them. They cost the connection that reads
events; the reader skips them, and publishes are not affected.
"""

from __future__ import annotations

import struct
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands, decode, encode

from keyturn.publisher import Publisher
from keyturn.publisher.requests import new_id
from keyturn.topology import PUBLISHER_HEADER
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from tests.integration.publisher.side import NAME, WorkerSide, answer, answer_elsewhere, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.settings import PublisherSettings

_MICROSECONDS = 1_700_000_000_000_000  # taken for milliseconds: the year 56000


def _bytes_of(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return bytes([len(raw)]) + raw


def _broken_table(value: dict[str, Any]) -> bytes:
    """A table that routes as its first header says, and ends in a value of no known type."""
    del value
    header = _bytes_of(PUBLISHER_HEADER) + b"S" + struct.pack(">I", len(NAME)) + NAME.encode()
    odd = header + _bytes_of("\udcff\udcfe") + b"S" + struct.pack(">I", 1) + b"x"
    return struct.pack(">I", len(odd)) + odd


_ODD: dict[str, tuple[str, Callable[[Any], bytes], dict[str, Any]]] = {
    "a timestamp after the year 9999": (
        "timestamp",
        lambda _: struct.pack(">Q", _MICROSECONDS),
        {"timestamp": 1},
    ),
    "a string that is not UTF-8": ("shortstr", _bytes_of, {"app_id": "\udcff\udcfe"}),
    "a header's name that is not UTF-8": ("table", _broken_table, {}),
}
# This one the client library decodes, and then fails to turn into a message.
_UNKNOWN_MODE = "an unknown delivery mode"


@pytest.fixture(autouse=True)
def _explained(caplog: pytest.LogCaptureFixture) -> None:
    """Let the report of a failure say what the reader did."""
    caplog.set_level("DEBUG", "keyturn.publisher")


async def _publish_odd(worker: WorkerSide, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange: Any = worker.exchange
    channel = await exchange.channel.get_underlay_channel()
    headers: dict[str, Any] = {PUBLISHER_HEADER: NAME, "odd": True}
    properties = commands.Basic.Properties(headers=headers)
    with monkeypatch.context() as patched:
        if kind == _UNKNOWN_MODE:
            properties.delivery_mode = 7
        else:
            name, encoder, odd = _ODD[kind]
            original = encode.METHODS[name]
            ours = [headers, *odd.values()]
            # The reader of the publisher may attach again meanwhile, in this process: a broken
            # table in its request would lose the offset that it asks for.
            patched.setitem(
                encode.METHODS,
                name,
                lambda value: encoder(value) if value in ours else original(value),
            )
            for attribute, value in odd.items():
                setattr(properties, attribute, value)
        await channel.basic_publish(
            b"{}",
            exchange=worker.exchange.name,
            routing_key="upload.stored",
            properties=properties,
        )


@pytest.fixture(params=["strict", "tolerant"], autouse=True)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library's decoders as they are in a service, or in a gateway and a command.

    Tests that ran before in this process may have left either.
    """
    monkeypatch.setitem(decode.METHODS, "timestamp", decode.timestamp)
    monkeypatch.setitem(decode.METHODS, "shortstr", decode.short_str)
    monkeypatch.setitem(decode.METHODS, "table", decode.field_table)
    monkeypatch.setitem(decode.TABLE_MAPPING, b"T", decode.timestamp)
    if request.param == "tolerant":
        tolerate_odd_properties()


@pytest.mark.parametrize("kind", [*_ODD, _UNKNOWN_MODE])
async def test_a_wait_passes_over_it(
    settings: PublisherSettings, worker: WorkerSide, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Before the answer, after another one, and at the very beginning of the stream."""
    await _publish_odd(worker, kind, monkeypatch)
    async with Publisher.open(settings) as publisher:
        for _ in range(3):
            upload_id = await publisher.upload("acme", "a", b"x")
            await _publish_odd(worker, kind, monkeypatch)
            await _publish_odd(worker, kind, monkeypatch)
            event = answer(publisher, stored(upload_id))
            await worker.publish(event)
            assert await publisher.wait(upload_id, timeout_s=30) == event


async def test_two_readers_skip_no_event(
    settings: PublisherSettings, worker: WorkerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each breaks the connection of the other, and takes no loss for one of its own."""
    since = datetime.now(UTC)
    kind = next(iter(_ODD))
    async with Publisher.open(settings) as publisher:
        for _ in range(5):
            upload_ids = [new_id(), await publisher.upload("acme", "a", b"x")]
            other = answer_elsewhere(stored(upload_ids[0]))
            own = answer(publisher, stored(upload_ids[1]))
            await worker.publish(other)
            await _publish_odd(worker, kind, monkeypatch)
            await worker.publish(own)
            events = publisher.progress(
                upload_ids[0], since=since, project="acme", request_type="upload.requested"
            )
            async with aclosing(events):
                assert await anext(events) == other
            assert await publisher.wait(upload_ids[1], timeout_s=30) == own
