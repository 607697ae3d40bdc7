"""What a worker reports is what a console reads, and nothing else is taken for it (SPEC 16.2)."""

from __future__ import annotations

import json

import pytest

from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    EVENT_MODELS,
    encode_worker_report,
    parse_audit,
    parse_event,
    parse_worker_report,
)
from tests.unit.keyturn.messages.examples import EVENTS
from tools.generate.examples import audit_records, compact, worker_reports

EXAMPLES = worker_reports()["worker.reported"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_what_is_encoded_is_parsed(title: str) -> None:
    report = parse_worker_report(compact(EXAMPLES[title]))
    assert parse_worker_report(encode_worker_report(report)) == report
    encoded = json.loads(encode_worker_report(report))
    assert encoded | EXAMPLES[title] == encoded | {"queues": EXAMPLES[title]["queues"]}


def test_a_report_of_a_later_version_is_read() -> None:
    document = EXAMPLES["running"] | {"memory_bytes": 7}
    queues = [queue | {"rate": 1.5} for queue in document["queues"]]
    report = parse_worker_report(compact(document | {"queues": queues}))
    assert report == parse_worker_report(compact(EXAMPLES["running"]))


def test_no_signed_message_is_taken_for_one_of_another_kind() -> None:
    """All are signed by one key: an attacker could put any of them on any stream."""
    report = compact(EXAMPLES["running"])
    for parse in (parse_event, parse_audit):
        with pytest.raises(MalformedRequestError):
            parse(report)
    records = audit_records()["audit.recorded"].values()
    for document in (*EVENTS, *records, {**EXAMPLES["running"], "type": "worker.stopped"}):
        with pytest.raises(MalformedRequestError, match=r"type must be worker\.reported"):
            parse_worker_report(compact(document))
    assert {document["type"] for document in EVENTS} == set(EVENT_MODELS)
