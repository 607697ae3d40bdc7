"""No secret in a letter is shown (SPEC 12)."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from keyturn_workers.dead_letters.redaction import json_headers, redacted_body
from tests.unit.keyturn_workers.dead_letters.letters import letter, upload


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


def test_what_identifies_a_request_is_shown_and_its_sealed_parts_are_measured() -> None:
    document = upload(metadata={"author": "kim"})
    shown = redacted_body(letter(document).body)
    for name in ("type", "upload_id", "project", "key", "requested_at", "metadata"):
        assert shown[name] == document[name]
    assert shown["sealed_key"]["intake_key"] == document["sealed_key"]["intake_key"]
    assert shown["body"]["inline"].endswith(" characters>")


def test_headers_become_json_whatever_they_hold() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    headers = {"a": b"\xff", "b": now, "c": [{"d": 1}], "e": None}
    assert json.loads(json.dumps(json_headers(headers))) == {
        "a": "b'\\xff'", "b": "2026-11-24 00:00:00+00:00", "c": [{"d": 1}], "e": None,
    }  # fmt: skip
