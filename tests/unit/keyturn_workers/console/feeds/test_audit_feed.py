"""The audit trail: gaps are found, also where an older part meets a newer one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn.messages import body_digest, encode_audit
from keyturn_workers.console.feeds import audit_feed, stream_reader
from keyturn_workers.console.feeds.audit_feed import AuditFolder, read_older
from keyturn_workers.console.model import AuditQuery
from tests.unit.keyturn_workers.console.feeds.streams import FakeStream, make_signatures, record
from tests.unit.keyturn_workers.console.model.messages import audit_record, make_model, uid

if TYPE_CHECKING:
    import pytest

    from keyturn.publisher.event_stream import StreamRecord
    from keyturn_workers.console.model import Model

CONNECTION: Any = None


def chain(length: int) -> list[StreamRecord]:
    records, previous = [], None
    for counter in range(1, length + 1):
        each = audit_record(counter, counter, previous=previous)
        previous = body_digest(encode_audit(each))
        records.append(record(counter - 1, each))
    return records


def findings(model: Model) -> list[tuple[str, ...]]:
    return [row.findings for row in model.audit(AuditQuery(size=1000)).rows if row.findings]


def test_a_gap_is_found() -> None:
    model, records = make_model(), chain(4)
    fold = AuditFolder(make_signatures(), model)
    for each in (records[0], records[1], records[3]):
        fold(each)
    assert model.audit(AuditQuery()).total == 3
    assert "MISSING" in findings(model)[0][0]


def test_a_forged_record_is_a_finding_and_no_record() -> None:
    model = make_model()
    fold = AuditFolder(make_signatures(), model)
    handled = fold(record(0, audit_record(1), forged=True))
    assert (handled.at, handled.refused, model.audit(AuditQuery()).total) == (None, 1, 0)


def test_a_stream_that_was_declared_anew_is_shown_and_is_a_finding() -> None:
    model, records = make_model(), chain(4)
    fold = AuditFolder(make_signatures(), model)
    for each in records:
        fold(each)
    fold(record(0, audit_record(90, process=uid(8), audit_id=uid(90))))
    rows = model.audit(AuditQuery()).rows
    assert [row.audit_id for row in rows] == [uid(90)]
    assert [each.split(":")[0] for each in model.audit_findings()] == ["REPLACED"]


def test_chains_that_were_begun_anew_still_find_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_feed, "CHAINS_KEPT_FOR", 10)
    monkeypatch.setattr(audit_feed, "_WARMED_FOR", 3)
    model, records = make_model(), chain(40)
    fold = AuditFolder(make_signatures(), model)
    for index, each in enumerate(records):
        if index != 30:
            fold(each)
    assert len(findings(model)) == 1
    assert "record 31" in findings(model)[0][0]


async def test_older_records_join_the_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, records = make_model(), chain(30)
    stream = FakeStream(*records)
    stream.install(monkeypatch, stream_reader)
    fold = AuditFolder(make_signatures(), model)
    for each in records[20:]:
        fold(each)
    model.set_audit_has_older(has_older=True)
    monkeypatch.setattr(audit_feed, "OLDER_AT_ONCE", 15)
    await read_older(CONNECTION, make_signatures(), model)
    page = model.audit(AuditQuery(size=100))
    assert (page.total, page.has_older, findings(model)) == (25, True, [])
    await read_older(CONNECTION, make_signatures(), model)
    page = model.audit(AuditQuery(size=100))
    assert (page.total, page.has_older) == (30, False)


async def test_a_gap_where_they_meet_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, records = make_model(), chain(30)
    stream = FakeStream(*records[:19], *records[20:])
    stream.install(monkeypatch, stream_reader)
    fold = AuditFolder(make_signatures(), model)
    for each in records[20:]:
        fold(each)
    await read_older(CONNECTION, make_signatures(), model)
    assert any("MISSING" in each for each in model.audit_findings())
