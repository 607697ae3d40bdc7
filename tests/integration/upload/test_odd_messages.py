"""Messages with properties and headers that could send a copy of them astray (SPEC 12).

What is refused is copied to the dead letters. A copy must not vanish, must not be routed
elsewhere, must not be held against the worker's own user, and must not come back forever.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest

from tools.harness import requests
from tools.harness.worker_under_test import OutgoingRequest, WorkerUnderTest

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]


def refusable(served: WorkerUnderTest, **headers: Any) -> OutgoingRequest:
    """A signed upload that is refused for its key, with further headers."""
    sent = served.sign(requests.upload(served.deployment, "acme", "/", b"x").document)
    return OutgoingRequest(sent.routing_key, sent.body, sent.headers | headers, sent.rejection)


@pytest.mark.parametrize(
    "properties",
    [
        {"correlation_id": "c", "app_id": "a", "type": "t", "priority": 5},
        {"reply_to": "keyturn.upload"},
        {"reply_to": "amq.rabbitmq.reply-to.gone"},
        {"content_encoding": "gzip"},
        {"timestamp": datetime(2026, 11, 24, 10, tzinfo=UTC)},
    ],
    ids=",".join,
)
async def test_odd_properties_are_kept_in_the_dead_letter(
    served: WorkerUnderTest, properties: dict[str, Any]
) -> None:
    """Refused once; the dead letter keeps them, and no component acts on them."""
    dead = await served.assert_rejected(refusable(served), "malformed_request", **properties)
    assert {name: getattr(dead, name) for name in properties} == properties


async def test_a_dead_letter_never_expires(served: WorkerUnderTest) -> None:
    """A message that could expire in a queue is kept once it is a dead letter."""
    dead = await served.assert_rejected(refusable(served), "malformed_request", expiration=10)
    assert dead.expiration is None


async def test_a_dead_letter_carries_no_user_id(served: WorkerUnderTest) -> None:
    """The broker checks a user id against the connection's user: a copy carries none."""
    user = urlsplit(served.deployment.amqp_url).username
    dead = await served.assert_rejected(refusable(served), "malformed_request", user_id=user)
    assert dead.user_id is None


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
