"""A record of the audit trail says who did what, and holds its place in a chain (SPEC 15.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    AuditRecorded,
    body_digest,
    encode_audit,
    parse_audit,
    parse_audit_link,
)
from keyturn.messages.fields import REASON_MAX_CHARACTERS
from tools.generate.examples import audit_records, compact

EXAMPLES = audit_records()["audit.recorded"]


def test_previous_is_null_in_the_first_record_alone() -> None:
    first = parse_audit(compact(EXAMPLES["served"]))
    assert json.loads(encode_audit(first))["previous"] is None
    second = json.loads(encode_audit(parse_audit(compact(EXAMPLES["derived"]))))
    assert second["previous"] == body_digest(compact(EXAMPLES["served"]))
    for wrong in ({"counter": 2}, {"previous": "0" * 64}):
        with pytest.raises(MalformedRequestError, match="previous is null"):
            parse_audit_link(compact(EXAMPLES["served"] | wrong))


def test_the_place_of_a_record_with_an_action_of_the_future_is_read() -> None:
    body = compact(EXAMPLES["served"] | {"action": "object.teleported", "outcome": "DONE!"})
    with pytest.raises(MalformedRequestError):
        parse_audit(body)
    link = parse_audit_link(body)
    assert (link.process, link.counter) == (EXAMPLES["served"]["process"], 1)


@pytest.mark.parametrize("body", [b"{}", b"[]", b"\xff", b'{"type": "upload.stored"}'])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_audit_link(body)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reason": "x" * (REASON_MAX_CHARACTERS + 1)},
        {"reason": "two\nlines"},
        {"reason": ""},
        {"actor": "\x1b[2J"},
        {"actor": "x" * 201},
        {"action": "object.looked_at"},
        {"outcome": "it went well"},
        {"project": "Not A Project"},
        {"object_key": "../up"},
    ],
)
def test_a_writer_cannot_make_a_record_that_readers_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AuditRecorded.model_validate(EXAMPLES["served"] | wrong)


def test_a_refusal_repeats_no_value() -> None:
    with pytest.raises(MalformedRequestError) as refused:
        parse_audit(compact(EXAMPLES["served"] | {"action": "a secret in the wrong field"}))
    assert "secret" not in str(refused.value)
