"""When a delivery that failed is retried, and what its copies keep (SPEC 6.9, 7.5, 12)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from keyturn.crypto import SigningKey
from keyturn.errors import CodedError, TransientError, UnknownProjectError, all_errors
from keyturn.topology import ALL_DELAYS_S, REQUEST_ID_FIELDS, RETRY_DELAYS_S, queues, retry_name
from keyturn_workers.pipeline.amqp.failures import (
    RENEWED_AFTER,
    Retry,
    RetryNotes,
    attempts,
    deliveries_before,
    hold_s,
    retry_delay_s,
)
from keyturn_workers.process.message_copies import (
    copy_of,
    dead_letter_of,
    identity_body,
    sent_headers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
WEEK = timedelta(days=7)
ERRORS = all_errors()
TRANSIENT = sorted(code for code, error in ERRORS.items() if error.transient)
FINAL = sorted(set(ERRORS) - set(TRANSIENT) - {"unknown_project"})


def delays(error: CodedError, tries: int, *, age: timedelta = timedelta()) -> list[int | None]:
    """The delay after each of `tries` attempts, all at the same moment."""
    return [
        retry_delay_s(error, attempt, requested_at=NOW - age, max_age=WEEK, now=NOW)
        for attempt in range(tries)
    ]


def test_which_codes_are_transient() -> None:
    assert TRANSIENT == [
        "customer_key_refused",
        "customer_key_unavailable",
        "keyring_rolled_back",
        "kms_unavailable",
        "lease_mismatch",
        "marks_unavailable",
        "source_unavailable",
        "storage_unavailable",
        "too_many_requests",
        "unknown_master_key",
    ]
    assert all(issubclass(ERRORS[code], TransientError) for code in TRANSIENT)


def test_too_many_requests_is_for_the_caller_to_retry() -> None:
    assert delays(ERRORS["too_many_requests"](), 2) == [None, None]


def test_a_customer_secret_is_asked_for_again_before_it_is_forgotten() -> None:
    error = ERRORS["customer_key_unavailable"]()
    assert delays(error, 6) == [1, 5, 30, 30, 30, 30]


@pytest.mark.parametrize(
    "code", sorted(set(TRANSIENT) - {"too_many_requests", "customer_key_unavailable"})
)
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
    """The last try may come after it: that one looks at the target before it is refused."""
    error = ERRORS["storage_unavailable"]()
    assert delays(error, 6, age=WEEK) == [1, 5, 30, 120, 600, 600]
    assert delays(error, 3, age=WEEK + timedelta(microseconds=1)) == [None, None, None]


def test_each_delay_has_its_queue() -> None:
    """Every delay has a queue of every role."""
    declared = {queue.name for queue in queues()}
    for queue in ("keyturn.upload", "keyturn.control"):
        for error in (UnknownProjectError(), *(ERRORS[code]() for code in TRANSIENT)):
            for delay_s in delays(error, 9):
                assert delay_s is None or retry_name(queue, delay_s) in declared
    assert set(ALL_DELAYS_S) == {1, 5, 9, 30, 120, 600}


def test_the_deliveries_up_to_the_limit_outlast_the_age_of_a_request() -> None:
    """And none is held for longer than the broker waits for an acknowledgment."""
    holds = [hold_s(before) for before in range(RENEWED_AFTER)]
    assert holds[:3] == [10, 20, 40]
    assert sum(holds) > 2 * WEEK.total_seconds()
    (timeout_ms,) = {
        queue.arguments["x-consumer-timeout"]
        for queue in queues()
        if "x-consumer-timeout" in queue.arguments
    }
    assert max(holds) + 600 < int(timeout_ms) / 1000


@pytest.mark.parametrize(
    ("redelivered", "header", "before"),
    [
        (False, None, 0),
        (True, 7, 7),
        (True, None, 1),  # of a broker that does not count
        (False, 99, 0),  # a publisher's: the broker overwrites it in what comes again
        (True, "99", 1),
    ],
)
def test_the_broker_alone_says_how_often_a_message_came_back(
    redelivered: bool, header: Any, before: int
) -> None:
    headers = {} if header is None else {"x-delivery-count": header}
    message: Any = SimpleNamespace(redelivered=redelivered, headers=headers)
    assert deliveries_before(message) == before


SEED, LATER_SEED = b"e" * 32, b"f" * 32
KEY, LATER_KEY = SigningKey.from_seed(SEED), SigningKey.from_seed(LATER_SEED)
NOTES = RetryNotes("test", [KEY])
RETRY = Retry("unknown_project", 2, NOW)
NOTED = NOTES.headers("keyturn.upload", "api", b"body", RETRY)


def read(headers: Mapping[str, Any], notes: RetryNotes = NOTES) -> Retry | None:
    return notes.read("keyturn.upload", "api", b"body", headers)


def test_the_mac_is_that_of_the_specification() -> None:
    """Built here from SPEC 6.3 alone, with no code of the product."""
    extracted = hmac.digest(bytes(32), SEED, "sha256")
    key = hmac.digest(extracted, b"keyturn/v1/retry-key\x01", "sha256")
    parts = [
        "keyturn/v1/retry",
        "test",
        "keyturn.upload",
        "api",
        hashlib.sha256(b"body").hexdigest(),
        "2",
        "unknown_project",
        "2026-11-24T10:00:00.000000Z",
    ]
    mac = hmac.digest(key, "\0".join(parts).encode(), "sha256")
    assert {
        "keyturn-attempt": "unknown_project:2",
        "keyturn-not-before": "2026-11-24T10:00:00.000000Z",
        "keyturn-retry-mac": base64.b64encode(mac).decode(),
    } == NOTED


def test_a_note_is_read_back() -> None:
    assert read(NOTED) == RETRY
    assert attempts(RETRY, UnknownProjectError()) == 2
    assert attempts(RETRY, ERRORS["storage_unavailable"]()) == 0
    assert attempts(None, UnknownProjectError()) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"keyturn-attempt": "unknown_project:3"},
        {"keyturn-attempt": "storage_unavailable:2"},
        {"keyturn-attempt": "unknown_project:" + "9" * 5000},
        {"keyturn-attempt": "unknown_project:-2"},
        {"keyturn-attempt": "unknown_project:²"},
        {"keyturn-attempt": "unknown_project:2\n"},
        {"keyturn-attempt": "unknown_project"},
        {"keyturn-attempt": ["unknown_project:2"]},
        {"keyturn-attempt": 2},
        {"keyturn-attempt": None},
        {"keyturn-not-before": "2026-11-24T09:00:00.000000Z"},
        {"keyturn-not-before": "2026-11-24T10:00:00Z"},
        {"keyturn-not-before": "soon"},
        {"keyturn-not-before": "\0"},
        {"keyturn-not-before": NOW},
        {"keyturn-retry-mac": NOTED["keyturn-retry-mac"][:-4]},
        {"keyturn-retry-mac": base64.b64encode(bytes(32)).decode()},
        {"keyturn-retry-mac": "ü"},
        {"keyturn-retry-mac": b"x"},
    ],
)
def test_a_changed_note_is_none(changed: dict[str, Any]) -> None:
    """Without an event key one cannot be written, nor changed."""
    assert read(NOTED | changed) is None
    for name in NOTED:
        assert read({k: v for k, v in NOTED.items() if k != name}) is None


@pytest.mark.parametrize(
    ("queue", "publisher", "body", "deployment"),
    [
        ("keyturn.control", "api", b"body", "test"),
        ("keyturn.upload", "other", b"body", "test"),
        ("keyturn.upload", "", b"body", "test"),
        ("keyturn.upload", "api", b"other", "test"),
        ("keyturn.upload", "api", b"body", "production"),
        ("keyturn.upload\0api", "", b"body", "test"),
    ],
)
def test_a_note_moved_elsewhere_is_none(
    queue: str, publisher: str, body: bytes, deployment: str
) -> None:
    """It is bound to its queue, its publisher, its bytes and its deployment."""
    notes = RetryNotes(deployment, [KEY])
    if "\0" in queue:
        with pytest.raises(ValueError, match="zero byte"):
            notes.headers(queue, publisher, body, RETRY)
    assert notes.read(queue, publisher, body, NOTED) is None


def test_notes_survive_a_change_of_the_event_key() -> None:
    """The first key writes; each key that is held verifies."""
    changed = RetryNotes("test", [LATER_KEY, KEY])
    assert read(NOTED, changed) == RETRY
    later = changed.headers("keyturn.upload", "api", b"body", RETRY)
    assert read(later, RetryNotes("test", [LATER_KEY])) == RETRY
    assert read(later) is None


def test_early() -> None:
    """Up to a second is the difference of two workers' clocks."""
    for seconds, early in ((-5, 0), (0, 0), (1, 0), (1.5, 1.5), (600, 600)):
        assert RETRY.early_s(NOW - timedelta(seconds=seconds)) == early


def delivered(
    headers: Mapping[str, Any], body: bytes = b"body", **properties: Any
) -> aio_pika.IncomingMessage:
    """A message as the broker gives it."""
    header = ContentHeader(properties=Basic.Properties(headers=dict(headers), **properties))
    deliver = Basic.Deliver("tag", 1, False, "keyturn", "upload.requested")  # noqa: FBT003  # pamqp's order
    channel: Any = None  # nothing here acknowledges
    return aio_pika.IncomingMessage(
        DeliveredMessage(delivery=deliver, header=header, body=body, channel=channel)
    )


SENT = {"keyturn-publisher": "api", "keyturn-signature": "x", "traceparent": "00-1", "n": 7}
ADDED = {
    "keyturn-code": "already_exists",
    "keyturn-detail": "d",
    "keyturn-attempt": "storage_unavailable:1",
    "keyturn-not-before": "2026-11-24T10:00:00.000000Z",
    "keyturn-retry-mac": "x",
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


def test_a_copy_has_what_a_replay_needs_and_nothing_else() -> None:
    """Body, headers, content type and id as sent; persistent; a worker's headers on top."""
    kept: dict[str, Any] = {"content_type": "application/json", "message_id": "id"}
    dropped: dict[str, Any] = {
        "content_encoding": "identity",
        "correlation_id": "c",
        "reply_to": "amq.rabbitmq.reply-to",
        "message_type": "t",
        "app_id": "a",
        "priority": 3,
        "timestamp": NOW,
        "expiration": "10",
        "user_id": "somebody",
    }
    message = delivered(SENT | ADDED, **kept, **dropped, delivery_mode=1)
    copied = copy_of(message, {"keyturn-code": "bad_seal"})
    assert copied.body == b"body"
    assert copied.headers == SENT | {"keyturn-code": "bad_seal"}
    assert dict(copied.properties) == dict(
        aio_pika.Message(
            b"",
            headers=copied.headers,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            content_type="application/json",
            message_id="id",
        ).properties
    )


def test_a_copy_leaves_out_a_property_that_amqp_0_9_1_cannot_express() -> None:
    """A letter that was read over AMQP 1.0 can have one, and must still be replayed."""
    longest, longer = "ä" * 127 + "x", "ä" * 128
    copied = copy_of(delivered(SENT, content_type=longer, message_id=longest), {})
    assert (copied.content_type, copied.message_id) == (None, longest)
    copied = copy_of(delivered(SENT, content_type=longest, message_id=longer), {})
    assert (copied.content_type, copied.message_id) == (longest, None)
    assert copied.properties.marshal()


def test_copy_of_a_copy() -> None:
    """Put off again and again, a message does not grow."""
    first = copy_of(delivered(SENT), {"keyturn-attempt": "storage_unavailable:1"})
    second = copy_of(delivered(first.headers | ADDED), {"keyturn-attempt": "storage_unavailable:2"})
    assert second.headers == SENT | {"keyturn-attempt": "storage_unavailable:2"}


def test_a_moment_beyond_the_longest_delay_holds_no_retry_up() -> None:
    """A worker that knew the storage's clock a day ahead noted it; the others serve it."""
    a_day_ahead = replace(RETRY, not_before=NOW + timedelta(days=1))
    assert a_day_ahead.early_s(NOW) == 0
    longest = replace(RETRY, not_before=NOW + timedelta(seconds=RETRY_DELAYS_S[-1]))
    assert longest.early_s(NOW) == RETRY_DELAYS_S[-1]


# Dead letters.

UPLOAD_ID = "2f6c9a0e-1111-4111-8111-111111111111"


def request(kind: str = "upload.requested", **more: Any) -> bytes:
    named = {REQUEST_ID_FIELDS[kind]: UPLOAD_ID, "project": "acme", "key": "k"}
    return json.dumps(
        {"type": kind, "requested_at": "2026-11-01T00:00:00Z"} | named | more
    ).encode()


@pytest.mark.parametrize("code", sorted(all_errors()))
def test_of_what_is_refused_however_often_it_is_sent_the_body_is_not_kept(code: str) -> None:
    """400 refused uploads of 256 KiB left 271 MB of broker data in 5 s."""
    body = request(body={"inline": "A" * 300_000})
    sent = delivered({"keyturn-signature": "s", "own": "kept"}, body)
    made = dead_letter_of(sent, all_errors()[code]("d"), NOW)
    assert made.headers["keyturn-code"] == code
    assert made.headers["keyturn-dead-at"] == "2026-11-24T10:00:00.000000Z"
    assert sent_headers(made.headers) == {"keyturn-signature": "s", "own": "kept"}
    if code not in {"already_exists", "deleted_key", "body_too_large", "project_erased"}:
        assert made.body == body
        assert "keyturn-body-dropped" not in made.headers
        return
    digest = hashlib.sha256(body).hexdigest()
    assert made.headers["keyturn-body-dropped"] == digest
    assert json.loads(made.body) == {
        "type": "upload.requested",
        "upload_id": UPLOAD_ID,
        "project": "acme",
        "key": "k",
        "requested_at": "2026-11-01T00:00:00Z",
        "body": {"sha256": digest, "bytes": len(body)},
    }


@pytest.mark.parametrize(
    "body", [b"", b"{", request(upload_id="x"), request("sweep.requested")[:-1]]
)
def test_what_cannot_be_identified_is_kept_whole(body: bytes) -> None:
    assert identity_body(body) is None


def test_a_sender_cannot_claim_that_a_body_was_dropped() -> None:
    """By that header its dead letter could not be replayed."""
    claimed = {"keyturn-body-dropped": "x", "keyturn-dead-at": "x", "own": 1}
    assert sent_headers(claimed) == {"own": 1}
