"""When a delivery that failed is tried again, and what its copy carries (SPEC 7.5, 12)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from contracts.errors import KeyturnError, TransientError, UnknownProjectError, all_errors
from contracts.topology import ALL_DELAYS_S, queues, retry_name
from workers.broker.delivery import attempts, copy_of, retry_delay_s, sent_headers, was_put_off

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
WEEK = timedelta(days=7)
ERRORS = all_errors()
TRANSIENT = sorted(code for code, error in ERRORS.items() if error.transient)
FINAL = sorted(set(ERRORS) - set(TRANSIENT) - {"unknown_project"})


def delays(error: KeyturnError, tries: int, *, age: timedelta = timedelta()) -> list[int | None]:
    """The delay after each of so many tries, all at the same moment."""
    return [
        retry_delay_s(error, attempt, requested_at=NOW - age, max_age=WEEK, now=NOW)
        for attempt in range(tries)
    ]


def test_which_codes_are_transient() -> None:
    assert TRANSIENT == [
        "keyring_rolled_back",
        "lease_mismatch",
        "storage_unavailable",
        "unknown_master_key",
    ]
    assert all(issubclass(ERRORS[code], TransientError) for code in TRANSIENT)


@pytest.mark.parametrize("code", TRANSIENT)
def test_transient(code: str) -> None:
    """After 1, 5, 30, 120 and 600 seconds, then every 600."""
    assert delays(ERRORS[code](), 8) == [1, 5, 30, 120, 600, 600, 600, 600]


def test_unknown_project() -> None:
    """After 1, 5 and 9 seconds, then final; however old the request is."""
    assert delays(UnknownProjectError(), 5) == [1, 5, 9, None, None]
    assert delays(UnknownProjectError(), 4, age=WEEK) == [1, 5, 9, None]


@pytest.mark.parametrize("code", FINAL)
def test_final(code: str) -> None:
    assert delays(ERRORS[code](), 2) == [None, None]


def test_up_to_the_longest_age() -> None:
    """A try that would come too late is not waited for."""
    error = ERRORS["storage_unavailable"]()
    assert delays(error, 6, age=WEEK - timedelta(seconds=600)) == [1, 5, 30, 120, 600, 600]
    assert delays(error, 6, age=WEEK - timedelta(seconds=599)) == [1, 5, 30, 120, None, None]
    assert delays(error, 3, age=WEEK) == [None, None, None]


def test_each_delay_has_its_queue() -> None:
    """Whatever delay is decided on, a queue of every role's stands for it."""
    declared = {queue.name for queue in queues()}
    for queue in ("keyturn.upload", "keyturn.control"):
        for error in (UnknownProjectError(), *(ERRORS[code]() for code in TRANSIENT)):
            for delay_s in delays(error, 9):
                assert delay_s is None or retry_name(queue, delay_s) in declared
    assert set(ALL_DELAYS_S) == {1, 5, 9, 30, 120, 600}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("unknown_project:2", 2),
        ("unknown_project:0", 0),
        ("storage_unavailable:4", 0),
        ("unknown_project", 0),
        ("unknown_project:", 0),
        ("unknown_project:-2", 0),
        ("unknown_project:+2", 0),
        ("unknown_project: 2", 0),
        ("unknown_project:2\n", 0),
        ("unknown_project:²", 0),
        ("unknown_project:٢", 0),
        ("unknown_project:" + "9" * 5000, 0),
        ("", 0),
        (None, 0),
        (2, 0),
        (["unknown_project:2"], 0),
        (b"unknown_project:2", 0),
    ],
)
def test_attempts(header: object, expected: int) -> None:
    """Tries are counted for one code in a row; the header is no more than a hint of anybody."""
    assert attempts({"keyturn-attempt": header}, UnknownProjectError()) == expected


def test_attempts_of_a_first_delivery() -> None:
    assert attempts({}, UnknownProjectError()) == 0


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({"keyturn-publisher": "api", "keyturn-signature": "x"}, False),
        ({"keyturn-attempt": "storage_unavailable:1"}, True),
        ({"x-delivery-count": 1}, True),
        ({"x-death": [{}]}, True),
    ],
)
def test_was_put_off(headers: dict[str, Any], *, expected: bool) -> None:
    assert was_put_off(headers) is expected


def delivered(headers: Mapping[str, Any], **properties: Any) -> aio_pika.IncomingMessage:
    """A message as the broker gives it."""
    header = ContentHeader(properties=Basic.Properties(headers=dict(headers), **properties))
    deliver = Basic.Deliver("tag", 1, False, "keyturn", "upload.requested")  # noqa: FBT003  # pamqp's order
    channel: Any = None  # nothing here acknowledges
    return aio_pika.IncomingMessage(
        DeliveredMessage(delivery=deliver, header=header, body=b"body", channel=channel)
    )


SENT = {"keyturn-publisher": "api", "keyturn-signature": "x", "traceparent": "00-1", "n": 7}
ADDED = {
    "keyturn-code": "already_exists",
    "keyturn-detail": "d",
    "keyturn-attempt": "storage_unavailable:1",
    "x-death": [{"queue": "keyturn.upload.retry.1s"}],
    "x-first-death-queue": "keyturn.upload.retry.1s",
    "x-last-death-reason": "expired",
    "x-delivery-count": 3,
    "x-acquired-count": 3,
    "CC": ["keyturn.upload"],
    "BCC": ["keyturn.upload"],
}


def test_sent_headers() -> None:
    """What a worker or the broker noted goes; what the publisher said stays."""
    assert sent_headers(SENT | ADDED) == SENT


def test_copy() -> None:
    """Body, headers and properties as sent; persistent; a worker's headers on top."""
    kept = {
        "content_type": "application/json",
        "content_encoding": "identity",
        "message_id": "id",
        "correlation_id": "c",
        "reply_to": "q",
        "message_type": "t",
        "app_id": "a",
        "priority": 3,
    }
    message = delivered(SENT | ADDED, **kept, timestamp=NOW, delivery_mode=1)
    copied = copy_of(message, {"keyturn-code": "bad_seal"})
    assert copied.body == b"body"
    assert copied.headers == SENT | {"keyturn-code": "bad_seal"}
    renamed = {"type": kept.pop("message_type")} | kept
    assert {name: getattr(copied, name) for name in renamed} == renamed
    assert copied.timestamp == NOW
    assert copied.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


def test_copy_does_not_vanish_and_is_nobody_elses() -> None:
    """No expiration, and no user's name that the broker would hold against the worker."""
    copied = copy_of(delivered(SENT, expiration="10", user_id="somebody"), {})
    assert copied.expiration is None
    assert copied.user_id is None


def test_copy_of_a_copy() -> None:
    """Put off again and again, a message does not grow."""
    first = copy_of(delivered(SENT), {"keyturn-attempt": "storage_unavailable:1"})
    second = copy_of(delivered(first.headers | ADDED), {"keyturn-attempt": "storage_unavailable:2"})
    assert second.headers == SENT | {"keyturn-attempt": "storage_unavailable:2"}
