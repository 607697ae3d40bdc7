"""A dead letter: what it claims, where it goes back to, and what of it may be shown (SPEC 12)."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import parse_time
from keyturn.topology import CONTROL_QUEUE, DEAD_QUEUES, UNSIGNED_DEAD_QUEUE, UPLOAD_QUEUE
from keyturn_workers.reports.dead_letters.letters import (
    DeadLetter,
    describe,
    is_selected,
    json_headers,
    original,
    redacted_body,
    work_queue,
)
from tests.unit.keyturn_workers.reports.dead_letters.memory_broker import Letter, letter, upload
from tools.harness import requests

_DEAD = "keyturn.upload.dead"
_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
_EARLIER = "2026-11-24T09:30:00Z"
_BY_BROKER = {"x-death": [{"reason": "delivery_limit", "time": datetime(2026, 11, 24, 9)}]}  # noqa: DTZ001  # as the client library reads it


def _letter(body: bytes = b"{}", message_id: str | None = None, **headers: Any) -> DeadLetter:
    message_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return describe(Letter(body, message_headers, message_id).message, _DEAD)


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
    assert letter.age(_AT) == age


@pytest.mark.parametrize(
    ("headers", "code", "dead_at"),
    [
        ({}, None, None),
        ({"keyturn-code": "bad_seal", **_BY_BROKER}, "bad_seal", "2026-11-24T09:00:00Z"),
        (_BY_BROKER, "delivery_limit", "2026-11-24T09:00:00Z"),
        ({"x-first-death-reason": "expired"}, "expired", None),
        ({"keyturn-code": "No Code"}, None, None),
        ({"keyturn-code": "bad_seal\n"}, None, None),
        ({"keyturn-code": 7, "keyturn-dead-at": 7}, None, None),
        ({"keyturn-dead-at": _EARLIER, **_BY_BROKER}, "delivery_limit", _EARLIER),
        ({"keyturn-dead-at": "yesterday", **_BY_BROKER}, "delivery_limit", None),
        ({"x-death": "odd"}, None, None),
        ({"x-death": [{"time": "odd", "reason": 7}]}, None, None),
    ],
)  # fmt: skip
def test_code_and_time_are_a_workers_or_the_brokers(
    headers: dict[str, Any], code: str | None, dead_at: str | None
) -> None:
    described = describe(Letter(b"{}", headers).message, _DEAD)
    assert described.code == code
    assert described.dead_at == (None if dead_at is None else parse_time(dead_at))


@pytest.mark.parametrize(
    ("headers", "selection", "is_one"),
    [
        ({"keyturn-code": "bad_seal"}, {"code": "bad_seal"}, True),
        ({"keyturn-code": "bad_seal"}, {"code": "bad_signature"}, False),
        ({"keyturn-code": "bad_seal"}, {"code": "unknown"}, False),
        ({}, {"code": "unknown"}, True),
        ({"keyturn-code": "No Code"}, {"code": "unknown"}, True),
        (_BY_BROKER, {"code": "delivery_limit"}, True),
        ({}, {"letters": frozenset({hashlib.sha256(b"{}").hexdigest()})}, True),
        ({}, {"letters": frozenset({"0" * 64})}, False),
        ({"keyturn-dead-at": "2026-11-24T09:59:59Z"}, {"code": "unknown"}, True),
        ({"keyturn-dead-at": "2026-11-24T10:00:00Z"}, {"code": "unknown"}, False),
        (
            {"keyturn-dead-at": "2026-11-24T10:00:01Z"},
            {"letters": frozenset({hashlib.sha256(b"{}").hexdigest()})},
            False,
        ),
    ],
)
def test_a_request_selects_by_code_or_digest_what_died_before_it(
    headers: dict[str, Any], selection: dict[str, Any], *, is_one: bool
) -> None:
    given: dict[str, Any] = {"code": None, "letters": None, "before": _AT}
    assert is_selected(Letter(b"{}", headers).message, **given | selection) is is_one


def test_the_audit_trail_names_a_request_by_its_digest_id_type_and_project() -> None:
    document = upload()
    sent = letter(document)
    assert describe(sent.message, _DEAD).audit_fields() == {
        "queue": _DEAD,
        "request": hashlib.sha256(sent.body).hexdigest(),
        "request_type": "upload.requested",
        "request_id": document["upload_id"],
        "project": "acme",
    }


@pytest.mark.parametrize(
    "body", [b"\xff", b'{"type": "a.requested", "project": "Not/a project"}', b"[]"]
)
def test_the_audit_trail_names_any_other_letter_by_its_digest_alone(body: bytes) -> None:
    fields = describe(Letter(body, {}, "not an id").message, UNSIGNED_DEAD_QUEUE).audit_fields()
    assert fields["request"] == hashlib.sha256(body).hexdigest()
    assert {fields[name] for name in ("request_type", "request_id", "project")} == {None}


@pytest.mark.parametrize("queue", [q for q in DEAD_QUEUES if q != UNSIGNED_DEAD_QUEUE])
def test_a_letter_goes_back_to_its_own_work_queue_whatever_it_claims(queue: str) -> None:
    assert work_queue(letter(upload()).body, queue) == queue.removesuffix(".dead")


def test_an_unsigned_letter_goes_to_the_queue_of_its_type() -> None:
    to = [
        work_queue(letter(document).body, UNSIGNED_DEAD_QUEUE)
        for document in (upload(), requests.delete("acme", "k"))
    ]
    assert to == [UPLOAD_QUEUE, CONTROL_QUEUE]


@pytest.mark.parametrize("body", [b"{}", b"\xff", b'{"type": "upload.stored"}'])
def test_an_unsigned_letter_of_no_request_type_goes_nowhere(body: bytes) -> None:
    with pytest.raises(MalformedRequestError, match="no queue to replay it to"):
        work_queue(body, UNSIGNED_DEAD_QUEUE)
    assert describe(Letter(body, {}).message, UNSIGNED_DEAD_QUEUE).obstacle == "type"


@pytest.mark.parametrize(
    ("code", "headers", "obstacle"),
    [
        ("bad_seal", {}, None),
        ("request_expired", {}, "expired"),
        ("already_exists", {"keyturn-body-dropped": "0" * 64}, "body"),
    ],
)
def test_a_letter_says_what_keeps_it_from_being_replayed(
    code: str, headers: dict[str, str], obstacle: str | None
) -> None:
    assert describe(letter(upload(), code, **headers).message, _DEAD).obstacle == obstacle


def test_the_copy_of_a_letter_has_nothing_that_workers_added() -> None:
    dead = letter(upload())
    copy = original(dead.message)
    assert (copy.body, copy.message_id) == (dead.body, dead.message_id)
    assert set(copy.headers) == {"keyturn-publisher", "keyturn-signature", "own"}


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
    named = {"name": "drop", "key": "in/a", "etag": "e", "size": 1}
    of_source = letter(upload(body={"source": named}))
    assert redacted_body(of_source.body)["body"] == {"source": named}


def test_headers_become_json_whatever_they_hold() -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    headers = {"a": b"\xff", "b": now, "c": [{"d": 1}], "e": None}
    assert json.loads(json.dumps(json_headers(headers))) == {
        "a": "b'\\xff'", "b": "2026-11-24 00:00:00+00:00", "c": [{"d": 1}], "e": None,
    }  # fmt: skip


def test_a_body_that_no_request_has_is_not_read() -> None:
    fields = "".join(f', "f{number}": 1' for number in range(50_000))
    body = f'{{"type": "upload.requested", "project": "acme"{fields}}}'.encode()
    assert len(body) > 512 * 1024
    described = describe(Letter(body, {}).message, "keyturn.unsigned.dead")
    assert (described.type, described.project, described.obstacle) == (None, None, "type")
    assert redacted_body(body) == {"unreadable": "larger than any request", "bytes": len(body)}


def test_metadata_that_no_request_has_is_left_out() -> None:
    shown = redacted_body(b'{"metadata": {"a": "%s"}}' % (b"x" * 5000))
    assert shown == {"metadata": "<5009 characters of JSON>"}
