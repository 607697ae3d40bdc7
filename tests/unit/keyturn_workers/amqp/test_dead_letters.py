"""What is kept of a dead letter (SPEC 6.9)."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from keyturn.errors import all_errors
from keyturn.topology import REQUEST_ID_FIELDS
from keyturn_workers.amqp.failures import dead_letter_of, identity_body, sent_headers

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
UPLOAD_ID = "2f6c9a0e-1111-4111-8111-111111111111"


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
