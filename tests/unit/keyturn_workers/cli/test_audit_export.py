"""An exported record is exactly what was signed, and a file is checked as a whole (SPEC 15.3)."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from keyturn.audit import Problem
from keyturn.crypto import EventVerifier, VerifyKey, from_base64
from keyturn.publisher.event_stream import StreamRecord
from keyturn_workers.cli.audit import Inspection, is_of_project, read_lines, to_line
from keyturn_workers.cli.errors import CommandError
from tests.unit.keyturn.test_audit import DEPLOYMENT, KEY, chain

SIGNATURES = EventVerifier(DEPLOYMENT, [VerifyKey.from_bytes(KEY.public_bytes)])

_HEADERS = b'"headers": {"keyturn-signature": "", "keyturn-event-key": ""}'


def stream(count: int, first: int = 0, **fields: Any) -> list[StreamRecord]:
    records = chain(count, **fields)
    return [StreamRecord(first + number, *record) for number, record in enumerate(records)]


def _inspect(records: list[StreamRecord], project: str | None = None) -> Inspection:
    inspection = Inspection(SIGNATURES, project)
    for record in records:
        inspection.add(record)
    return inspection


def test_a_line_holds_the_signed_bytes() -> None:
    (record,) = stream(1)
    line = json.loads(to_line(record))
    assert from_base64(line["body"]) == record.body
    assert line["headers"]["keyturn-signature"] == record.signature
    assert line["headers"]["keyturn-event-key"] == KEY.id


def test_what_is_written_is_read() -> None:
    records = [*stream(3), StreamRecord(3, b"\xff no JSON", "", "")]
    file = io.BytesIO(b"".join(map(to_line, records)) + b"\n")
    assert list(read_lines(file)) == records


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"offset": 0, "body": "?", "headers": {}}',
        b'{"offset": -1, "body": "", %s}' % _HEADERS,
        b'{"offset": 0, "body": "?", %s}' % _HEADERS,
        b'{"offset": 0, "body": 7, %s}' % _HEADERS,
    ],
)
def test_a_line_that_is_no_record_is_named(line: bytes) -> None:
    first = to_line(stream(1)[0])
    with pytest.raises(CommandError, match=r"^line 2 is not an exported audit record$"):
        list(read_lines(io.BytesIO(first + line)))


def test_a_sound_trail() -> None:
    records = stream(3)
    inspection = _inspect([*records, records[1]])
    inspection.check()
    document = inspection.document()
    assert (document["records"], document["repeated"], document["findings"]) == (4, 1, [])
    (process,) = document["processes"]
    assert (process["first"], process["last"], process["records"]) == (1, 3, 3)
    assert (process["role"], process["host"]) == ("worker control", "control-1")


def test_a_trail_with_a_gap() -> None:
    records = stream(4)
    inspection = _inspect([records[0], *records[2:]])
    with pytest.raises(CommandError, match=r"^1 problem in the audit trail; first: MISSING"):
        inspection.check()
    (finding,) = inspection.document()["findings"]
    assert (finding["finding"], finding["counter"]) == ("missing", 3)


def test_a_trail_from_the_first_message_of_the_stream_must_be_whole() -> None:
    later = stream(4, first=10)[1:]
    assert _inspect(later).findings == []
    first = [StreamRecord(0, record.body, record.signature) for record in later]
    assert [finding.problem for finding in _inspect(first).findings] == [Problem.MISSING]


def test_a_file_of_one_project_has_records_of_it_alone() -> None:
    records = stream(5)
    assert _inspect([records[1], records[3]], "acme").findings == []
    assert len(_inspect([records[1], records[3]], "other").findings) == 2
    assert _inspect(stream(2, project="*"), "acme").findings == []


def test_what_is_of_a_project() -> None:
    inspection = Inspection(SIGNATURES)
    record, _ = inspection.add(stream(1)[0])
    everything, _ = inspection.add(stream(1, project="*")[0])
    assert is_of_project(record, "acme")
    assert not is_of_project(record, "other")
    assert is_of_project(everything, "other")
    assert not is_of_project(None, "acme")


def test_an_empty_file_has_no_finding() -> None:
    inspection = _inspect([])
    inspection.check()
    assert inspection.processes() == []
