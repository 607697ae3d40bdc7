"""Messages whose properties aio-pika's decoder cannot read: refused like any other.

Unsigned, each of them once cut the worker's connection, came again, and cut it again.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import encode

from keyturn.topology import DEAD_QUEUES, UNSIGNED_DEAD_QUEUE
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.harness.worker_under_test import WorkerUnderTest

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_YEAR_56_000 = 1_700_000_000_000_000  # microseconds, taken for milliseconds


def _short_string(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return bytes([len(raw)]) + raw


def _table(value: dict[str, Any]) -> bytes:
    del value
    broken = b"\x02\xff\xfeS" + struct.pack(">I", 1) + b"x"
    return struct.pack(">I", len(broken)) + broken


_ODD: dict[str, tuple[Callable[[Any], bytes], dict[str, Any]]] = {
    "timestamp": (lambda _: struct.pack(">Q", _YEAR_56_000), {"timestamp": 1}),
    "shortstr": (_short_string, {"app_id": "\udcff\udcfe"}),
    "table": (_table, {}),
}


@pytest.mark.parametrize("kind", _ODD)
async def test_properties_that_cannot_be_decoded_are_refused_once(
    served: WorkerUnderTest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused once, for want of a signature; the connection stays, and the next is served."""
    tolerate_odd_properties()
    encoder, properties = _ODD[kind]
    logged = len(served.process.lines)
    with monkeypatch.context() as patched:
        patched.setitem(encode.METHODS, kind, encoder)
        await served.wire.publish("upload.requested", b"{}", {"a": "b"}, **properties)
    dead = await served.wire.take(UNSIGNED_DEAD_QUEUE)
    assert dead.headers["keyturn-code"] == "bad_signature"
    assert dead.body == b"{}"
    await served.assert_serves_next()
    since = served.process.lines[logged:]
    assert [line for line in since if '"level":"error"' in line] == []
    assert [await served.wire.depth(queue) for queue in DEAD_QUEUES] == [0] * len(DEAD_QUEUES)


async def test_a_dead_letter_leaves_out_headers_that_do_not_fit(served: WorkerUnderTest) -> None:
    """The copy leaves out the largest ones, so that a worker's own fit; never those of SPEC 6.3."""
    headers = {
        "keyturn-publisher": "api",
        "keyturn-signature": "x" * 88,
        "small": "kept",
        "large": "a" * 130_700,
    }
    await served.wire.publish("upload.requested", b"{}", headers)
    dead = await served.wire.take(UNSIGNED_DEAD_QUEUE)
    assert dead.headers["keyturn-code"] == "bad_signature"
    assert "large" not in dead.headers
    assert dead.headers["small"] == "kept"
    assert dead.headers["keyturn-signature"] == "x" * 88
    await served.assert_serves_next()
