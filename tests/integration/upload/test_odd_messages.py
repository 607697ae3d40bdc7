"""Messages with odd properties and headers are refused like any other, once (SPEC 12).

What is refused is copied to the dead letters. A copy must not vanish, must not be routed
elsewhere, must not be held against the worker's own user, and must not come back forever.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from pamqp import encode

from keyturn.topology import (
    DEAD_QUEUES,
    EXCHANGE,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    dead_letter_name,
)
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from tools.harness import amqp1, requests
from tools.harness.worker_under_test import OutgoingRequest, WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]


def refusable(served: WorkerUnderTest, **headers: Any) -> OutgoingRequest:
    """A signed upload that is refused for its key, with further headers."""
    sent = served.sign(requests.upload(served.deployment, "acme", "/", b"x").document)
    return OutgoingRequest(sent.routing_key, sent.body, sent.headers | headers, sent.rejection)


async def test_a_dead_letter_has_no_property_that_a_replay_does_not_need(
    served: WorkerUnderTest,
) -> None:
    """The broker would act on some: let the letter expire, or check its user."""
    dropped: dict[str, Any] = {
        "expiration": 10,
        "user_id": urlsplit(served.deployment.amqp_url).username,
        "reply_to": "keyturn.upload",
        "correlation_id": "c",
        "app_id": "a",
        "type": "t",
        "priority": 5,
        "content_encoding": "gzip",
        "timestamp": datetime(2026, 11, 24, 10, tzinfo=UTC),
    }
    dead = await served.assert_rejected(
        refusable(served), "malformed_request", **dropped, message_id="m"
    )
    assert (dead.content_type, dead.message_id) == ("application/json", "m")
    assert {name: getattr(dead, name) for name in dropped} == (
        dict.fromkeys(dropped) | {"priority": 0}
    )


# RabbitMQ refuses to publish this address over AMQP 0-9-1, and closes the channel. Over AMQP 1.0 it
# accepts it: a copy that repeated it could never be published, and its message came back forever.
_REPLY_TO = {"reply_to": amqp1.string("amq.rabbitmq.reply-to")}


async def _send_with_reply_to(
    served: WorkerUnderTest, body: bytes, headers: dict[str, Any]
) -> None:
    application = {name: amqp1.string(value) for name, value in headers.items()}
    target = f"/exchanges/{EXCHANGE}/upload.requested"
    async with amqp1.open_sender(served.deployment.amqp_url, target) as sender:
        await sender.send(body, amqp1.Parts(application, _REPLY_TO))


@pytest.mark.parametrize(
    ("signed", "code", "dead_queue"),
    [
        (False, "bad_signature", UNSIGNED_DEAD_QUEUE),
        (True, "malformed_request", dead_letter_name(UPLOAD_QUEUE)),
    ],
    ids=["unsigned", "signed"],
)
async def test_a_message_that_asks_for_a_direct_reply_is_a_dead_letter_once(
    served: WorkerUnderTest, signed: bool, code: str, dead_queue: str
) -> None:
    sent = refusable(served)
    await _send_with_reply_to(served, sent.body, sent.headers if signed else {})
    await served.assert_serves_next()  # behind it
    dead = await served.wire.take(dead_queue)
    assert (dead.headers["keyturn-code"], dead.body) == (code, sent.body)
    assert dead.reply_to is None
    queues = [UPLOAD_QUEUE, *DEAD_QUEUES]
    assert [await served.wire.depth(queue) for queue in queues] == [0] * len(queues)


async def test_a_message_that_asks_for_a_direct_reply_is_retried(served: WorkerUnderTest) -> None:
    """A request of a project that is enrolled only after the first attempt."""
    document = requests.upload(served.deployment, f"p-{requests.new_id()[:8]}", "k", b"x").document
    sent = served.sign(document)
    await _send_with_reply_to(served, sent.body, sent.headers)
    await served.process.logged("retry scheduled")
    await served.enroll(document["project"])
    assert (await served.wire.outcome(sent.request_id))["type"] == "upload.stored"


@pytest.mark.parametrize("name", ["CC", "BCC"])
async def test_a_dead_letter_is_routed_nowhere_else(served: WorkerUnderTest, name: str) -> None:
    """The sender's copies were routed once; the dead letter is routed nowhere else."""
    sent = refusable(served)
    more: dict[str, Any] = {name: ["upload.requested", "keyturn.upload"]}
    await served.wire.publish(sent.routing_key, sent.body, sent.headers | more)
    dead = await served.wire.take("keyturn.upload.dead")
    assert name not in dead.headers
    assert {n: dead.headers[n] for n in sent.headers} == sent.headers
    events = served.wire.events
    await served.assert_serves_next()
    assert [event["type"] for event in events if sent.request_id in event.values()] == [
        "upload.rejected"
    ]
    assert await served.wire.depth("keyturn.upload.dead") == 0
    assert await served.wire.depth("keyturn.upload") == 0


async def test_headers_of_every_type_are_kept(served: WorkerUnderTest) -> None:
    """All headers as they were sent, of whatever type AMQP has."""
    sent = refusable(
        served,
        text="ü",
        number=7,
        large=2**40,
        negative=-1,
        flag=True,
        nothing=None,
        table={"a": {"b": [1, "two", False]}},
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    await served.assert_rejected(sent, "malformed_request")


@pytest.mark.parametrize(
    "attempt",
    ["unknown_project:3", "unknown_project:" + "9" * 5000, "unknown_project:-1", "x", 7, ["x"]],
    ids=lambda attempt: str(attempt)[:20],
)
async def test_attempts_that_a_sender_claims_do_not_count(
    served: WorkerUnderTest, attempt: object
) -> None:
    """Without a MAC of a worker it is a first delivery, and waits for the enrollment.

    With `unknown_project:3` it was refused for good.
    """
    document = requests.upload(served.deployment, f"p-{requests.new_id()[:8]}", "k", b"x").document
    sent = served.sign(document)
    await served.wire.publish(
        sent.routing_key, sent.body, sent.headers | {"keyturn-attempt": attempt}
    )
    await served.enroll(document["project"])
    assert (await served.wire.outcome(sent.request_id))["type"] == "upload.stored"
    await served.assert_serves_next()


@pytest.mark.parametrize(
    "headers",
    [
        {"keyturn-code": "already_exists", "keyturn-detail": "d"},
        {"x-death": [{"queue": "keyturn.upload", "count": 1000}]},
        {"x-delivery-count": 1000},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_headers_that_a_sender_forges_do_not_matter(
    served: WorkerUnderTest, headers: dict[str, Any]
) -> None:
    """Headers named like the worker's or the broker's do not keep an upload from being stored."""
    sent = served.sign(requests.upload(served.deployment, "acme", requests.new_id(), b"x").document)
    await served.wire.publish(sent.routing_key, sent.body, sent.headers | headers)
    assert (await served.wire.outcome(sent.request_id))["type"] == "upload.stored"


# Properties that aio-pika's decoder cannot read. Unsigned, each of them once cut the worker's
# connection, came again, and cut it again.


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
