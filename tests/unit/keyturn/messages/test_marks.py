"""A mark is read as it was written, and nothing else is taken for one (SPEC 5.5)."""

from __future__ import annotations

import json

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    KeyringMarked,
    encode_mark,
    parse_audit,
    parse_event,
    parse_mark,
    parse_worker_report,
)
from tests.unit.keyturn.messages.examples import EVENTS
from tools.generate.examples import audit_records, compact, marks, worker_reports

EXAMPLES = marks()["keyring.marked"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_what_is_encoded_is_parsed(title: str) -> None:
    mark = parse_mark(compact(EXAMPLES[title]))
    assert parse_mark(encode_mark(mark)) == mark
    assert json.loads(encode_mark(mark)) == EXAMPLES[title]


def test_a_mark_of_a_later_version_is_read() -> None:
    document = EXAMPLES["changed"] | {"reason": "rotation"}
    assert parse_mark(compact(document)) == parse_mark(compact(EXAMPLES["changed"]))


def test_a_mark_is_small() -> None:
    """The stream has no bound: docs/operations/capacity.md counts about 400 bytes a mark."""
    document = EXAMPLES["changed"] | {"project": "p" * 40, "serial": 10**6}
    assert len(encode_mark(KeyringMarked.model_validate(document))) < 350


def test_no_signed_message_is_taken_for_one_of_another_kind() -> None:
    """All are signed by one key: an attacker could put any of them on any stream."""
    mark = compact(EXAMPLES["changed"])
    for parse in (parse_event, parse_audit, parse_worker_report):
        with pytest.raises(MalformedRequestError):
            parse(mark)
    others = [
        *EVENTS,
        *audit_records()["audit.recorded"].values(),
        *worker_reports()["worker.reported"].values(),
        {**EXAMPLES["changed"], "type": "marks.opened"},
        {name: value for name, value in EXAMPLES["changed"].items() if name != "type"},
    ]
    for document in others:
        with pytest.raises(MalformedRequestError, match=r"type must be keyring\.marked"):
            parse_mark(compact(document))
