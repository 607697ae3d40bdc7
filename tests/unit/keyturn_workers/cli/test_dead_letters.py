"""Dead letters: their ids, and that no secret in them is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.identifiers import parse_time
from keyturn_workers.cli.dead_letters import DeadLetter, describe, redacted_body

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage


def _letter(body: bytes = b"{}", message_id: str | None = None, **headers: Any) -> DeadLetter:
    message_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    message = SimpleNamespace(body=body, headers=message_headers, message_id=message_id)
    return describe(cast("AbstractIncomingMessage", message), "keyturn.upload.dead")


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


@pytest.mark.parametrize(
    "body",
    [
        b'{"type": {"nested": "kt_secret"}}',
        b'{"body": {"inline": "kt_secret"}, "unknown": "kt_secret", "list": ["kt_secret"]}',
        b'{"sealed_kek": {"ciphertext": "kt_secret", "other": "kt_secret"}}',
        b'{"sealed_key": "kt_secret", "metadata": "kt_secret"}',
        b"kt_secret",
        b'{"a": 1, "a": "kt_secret"}',
    ],
)
def test_no_field_that_may_hold_a_secret_is_shown(body: bytes) -> None:
    assert "kt_secret" not in repr(redacted_body(body))
