"""The audit trail is shown with what is wrong with its chains (SPEC 15.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn_workers.status import audit
from keyturn_workers.status.audit import AuditBook
from tests.unit.keyturn_workers.status.messages import (
    SIGNATURES,
    audit_record,
    chain,
    stream_record,
    uid,
)

if TYPE_CHECKING:
    import pytest

    from keyturn.publisher.event_stream import StreamRecord


def _book(*records: StreamRecord) -> AuditBook:
    book = AuditBook(SIGNATURES)
    for record in records:
        book.apply(record)
    return book


def test_the_newest_record_comes_first_and_a_gap_is_a_finding_of_the_record_after_it() -> None:
    records = chain(4)
    rows = _book(records[0], records[1], records[3]).rows()
    assert [(row.counter, row.offset) for row in rows] == [(4, 3), (2, 1), (1, 0)]
    assert "MISSING" in rows[0].findings[0]
    assert [row.findings for row in rows[1:]] == [(), ()]


def test_a_forged_record_is_a_finding_and_no_record() -> None:
    book = _book(stream_record(0, audit_record(1), forged=True))
    assert book.rows() == []
    assert [each.split(":")[0] for each in book.findings_without_record()] == ["FORGED"]
    assert book.findings.keys() == {0}


def test_a_stream_that_was_declared_anew_is_shown_and_is_a_finding() -> None:
    book = _book(*chain(4), stream_record(0, audit_record(1, process=uid(8), audit_id=uid(90))))
    assert [row.audit_id for row in book.rows()] == [uid(90)]
    assert [each.split(":")[0] for each in book.findings_without_record()] == ["REPLACED"]


def test_the_number_of_records_is_bounded_and_the_book_says_that_there_are_older_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not _book(*chain(3)).has_older
    assert _book(*chain(3)[1:]).has_older
    monkeypatch.setattr(audit, "MAX_RECORDS", 2)
    book = _book(*chain(3))
    assert [row.counter for row in book.rows()] == [3, 2]
    assert book.has_older


def test_chains_that_were_begun_anew_still_find_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_CHAINS_KEPT_FOR", 10)
    monkeypatch.setattr(audit, "_WARMED_FOR", 3)
    records = chain(40)
    book = _book(*(each for index, each in enumerate(records) if index != 30))
    assert [row.counter for row in book.rows() if row.findings] == [32]
