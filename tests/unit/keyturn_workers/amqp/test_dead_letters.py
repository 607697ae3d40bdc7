"""Which dead letters are dropped, and what of each is kept (SPEC 6.9)."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from keyturn.errors import all_errors
from keyturn.topology import REQUEST_ID_FIELDS
from keyturn_workers.amqp.retry import dead_letter_of, identity_body, sent_headers
from keyturn_workers.dead_letters.keeper import Bounds, MeasuredLetter, measure, select_surplus

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
BOUNDS = Bounds(timedelta(days=30), 1000)
UPLOAD_ID = "2f6c9a0e-1111-4111-8111-111111111111"


def letters(*ages_and_sizes: tuple[float | None, int]) -> list[MeasuredLetter]:
    """By days of age, and bytes."""
    return [
        MeasuredLetter(size, None if days is None else NOW - timedelta(days=days))
        for days, size in ages_and_sizes
    ]


@pytest.mark.parametrize(
    ("found", "dropped"),
    [
        ([], {}),
        ([(1, 10), (0, 10)], {}),
        ([(30, 10)], {}),
        ([(31, 10), (1, 10)], {0: "age"}),
        ([(None, 10), (31, 10), (None, 10)], {1: "age"}),
        ([(3, 500), (2, 500)], {}),
        ([(3, 500), (2, 500), (1, 1)], {0: "bytes"}),
        ([(3, 90), (2, 900), (1, 90)], {0: "bytes", 1: "bytes"}),
        ([(31, 800), (2, 500), (1, 500)], {0: "age"}),
        ([(None, 600), (2, 600)], {0: "bytes"}),
        ([(0, 5000)], {0: "bytes"}),
        # What an attacker dates into the past takes no older one along, and none into the
        # future stays for ever.
        ([(1, 100), (9999, 10), (0, 100)], {1: "age"}),
        ([(-9999, 600), (1, 600)], {0: "bytes"}),
    ],
)
def test_surplus(found: list[tuple[float | None, int]], dropped: dict[int, str]) -> None:
    """By age each for itself; by bytes the oldest first, down to nine tenths of the bound."""
    assert select_surplus(letters(*found), BOUNDS, NOW) == dropped


def message(body: bytes, **headers: Any) -> AbstractIncomingMessage:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = ContentHeader(properties=Basic.Properties(headers=named, message_id="id"))
    deliver = Basic.Deliver("tag", 1, False, "keyturn", "upload.requested")  # noqa: FBT003  # pamqp's order
    channel: Any = None
    return IncomingMessage(
        DeliveredMessage(delivery=deliver, header=found, body=body, channel=channel)
    )


def request(kind: str = "upload.requested", **more: Any) -> bytes:
    named = {REQUEST_ID_FIELDS[kind]: UPLOAD_ID, "project": "acme", "key": "k"}
    return json.dumps(
        {"type": kind, "requested_at": "2026-11-01T00:00:00Z"} | named | more
    ).encode()


@pytest.mark.parametrize(
    ("found", "dead_at"),
    [
        (message(b"", keyturn_dead_at="2026-11-24T10:00:00.000000Z"), NOW),
        (message(b"", keyturn_dead_at="long ago"), None),
        (message(b"", x_death=[{"time": datetime(2026, 11, 24, 10)}]), NOW),  # noqa: DTZ001  # as pamqp gives it
        (message(b"", x_death=["odd"]), None),
        (message(request()), None),
    ],
)
def test_age_is_what_a_worker_or_the_broker_noted(
    found: AbstractIncomingMessage, dead_at: datetime | None
) -> None:
    assert measure(found).dead_at == dead_at


def test_headers_count_as_bytes() -> None:
    plain = measure(message(b"x" * 10)).size_bytes
    assert measure(message(b"x" * 10, own="y" * 5000)).size_bytes >= plain + 5000


@pytest.mark.parametrize("code", sorted(all_errors()))
def test_of_what_is_refused_however_often_it_is_sent_the_body_is_not_kept(code: str) -> None:
    """400 refused uploads of 256 KiB left 271 MB of broker data in 5 s."""
    body = request(body={"inline": "A" * 300_000})
    made = dead_letter_of(
        message(body, keyturn_signature="s", own="kept"), all_errors()[code]("d"), NOW
    )
    assert made.headers["keyturn-code"] == code
    assert made.headers["keyturn-dead-at"] == "2026-11-24T10:00:00.000000Z"
    assert sent_headers(made.headers) == {"keyturn-signature": "s", "own": "kept"}
    if code not in {"already_exists", "deleted_key", "body_too_large"}:
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
    sent = SimpleNamespace(headers={"keyturn-body-dropped": "x", "keyturn-dead-at": "x", "own": 1})
    assert sent_headers(cast("Any", sent).headers) == {"own": 1}
