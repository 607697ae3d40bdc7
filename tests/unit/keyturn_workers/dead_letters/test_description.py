"""What a dead letter claims: its id, its digest, its age."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from keyturn.identifiers import parse_time
from keyturn_workers.dead_letters.description import DeadLetter, audit_fields, describe
from tests.unit.keyturn_workers.dead_letters.letters import Letter, letter, upload


def _letter(body: bytes = b"{}", message_id: str | None = None, **headers: Any) -> DeadLetter:
    message_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return describe(Letter(body, message_headers, message_id).message, "keyturn.upload.dead")


@pytest.mark.parametrize("message_id", [None, "", "a\x1b[2J", "x" * 65])
def test_a_letter_without_a_usable_id_is_identified_by_its_digest(message_id: str | None) -> None:
    letter = _letter(message_id=message_id)
    assert letter.id == letter.digest
    assert letter.id.startswith("h-")


def test_the_digest_depends_on_body_signature_and_code() -> None:
    digests = {
        _letter(b"{}").digest,
        _letter(b"{ }").digest,
        _letter(b"{}", keyturn_signature="s").digest,
        _letter(b"{}", keyturn_code="c").digest,
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("requested_at", "age"),
    [
        ("2026-11-24T09:59:30Z", "30 s"),
        ("2026-11-24T09:00:00Z", "1 h"),
        ("2026-11-14T09:00:00Z", "10 d"),
        ("yesterday", None),
    ],
)
def test_the_age_follows_from_the_requests_own_time(requested_at: str, age: str | None) -> None:
    letter = _letter(f'{{"requested_at": "{requested_at}"}}'.encode())
    assert letter.age(parse_time("2026-11-24T10:00:00Z")) == age


def test_the_audit_trail_names_a_request_by_its_digest_id_type_and_project() -> None:
    document = upload()
    sent = letter(document)
    assert audit_fields(sent.message, "keyturn.upload.dead") == {
        "queue": "keyturn.upload.dead",
        "request": hashlib.sha256(sent.body).hexdigest(),
        "request_type": "upload.requested",
        "request_id": document["upload_id"],
        "project": "acme",
    }


@pytest.mark.parametrize(
    "body", [b"\xff", b'{"type": "a.requested", "project": "Not/a project"}', b"[]"]
)
def test_the_audit_trail_names_any_other_letter_by_its_digest_alone(body: bytes) -> None:
    fields = audit_fields(Letter(body, {}, "not an id").message, "keyturn.unsigned.dead")
    assert fields["request"] == hashlib.sha256(body).hexdigest()
    assert {fields[name] for name in ("request_type", "request_id", "project")} == {None}
