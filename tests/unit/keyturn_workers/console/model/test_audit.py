"""The audit trail: newest first, filtered, bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn_workers.console.model import audit
from keyturn_workers.console.model.audit import AuditBook
from keyturn_workers.console.model.rows import AuditQuery
from tests.unit.keyturn_workers.console.model.messages import at, audit_record, uid

if TYPE_CHECKING:
    import pytest


def offsets(book: AuditBook, **query: Any) -> list[int]:
    return [row.offset for row in book.query(AuditQuery(**query)).rows]


def test_records_are_newest_first_and_count_once() -> None:
    book = AuditBook()
    for offset in (3, 1, 2, 3):
        book.apply(audit_record(offset, offset), offset)
    assert offsets(book) == [3, 2, 1]
    assert book.as_of == at(3)


def test_filters() -> None:
    book = AuditBook()
    book.apply(audit_record(1, action="kek.derived", actor="ada@host", reason="ticket 7"), 1)
    book.apply(audit_record(2, 2, outcome="unknown_project", request_id=uid(5)), 2)
    assert offsets(book, action="kek.derived") == [1]
    assert offsets(book, actor="ADA") == [1]
    assert offsets(book, text="ticket") == [1]
    assert offsets(book, outcome="not_ok") == [2]
    assert offsets(book, since=at(2)) == [2]
    assert offsets(book, until=at(2)) == [1]
    assert offsets(book, project="beta") == []
    assert [row.offset for row in book.of_request(uid(5))] == [2]


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_RECORDS", 2)
    book = AuditBook()
    for offset in (2, 3, 4, 1):
        book.apply(audit_record(offset, offset), offset)
    assert offsets(book) == [4, 3]
    assert (book.is_truncated, book.query(AuditQuery()).has_older) == (True, True)
    assert book.offsets == (3, 4)


def test_findings_stay_with_their_record() -> None:
    book = AuditBook()
    book.apply(audit_record(1, 3), 5, ("MISSING: record 2",))
    book.note_findings(6, ("FORGED: a record",))
    assert book.query(AuditQuery()).rows[0].findings == ("MISSING: record 2",)
    assert [*book.findings] == [5, 6]


def test_what_a_console_asks_for_by_itself_is_shown_only_if_wanted() -> None:
    book = AuditBook()
    status: dict[str, Any] = {"publisher": "console", "request_type": "status.requested"}
    book.apply(audit_record(1, actor="console", **status), 1)
    book.apply(audit_record(2, 2, actor="ada", **status), 2)
    book.apply(audit_record(3, 3, actor="console", outcome="not_permitted", **status), 3)
    assert offsets(book) == [3, 2]
    assert offsets(book, reports=True) == [3, 2, 1]
