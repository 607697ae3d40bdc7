"""The audit trail, newest first, with what is wrong with its chains (SPEC 15.3, 16.2). Pure."""

from bisect import insort
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from keyturn.identifiers import parse_time
from keyturn.messages import AuditRecorded
from keyturn_workers.console.model.paging import matches, page_of
from keyturn_workers.console.model.rows import AuditQuery, AuditRow, Page

MAX_RECORDS: Final = 20_000
MAX_FINDINGS: Final = 100
DECLARED_ANEW: Final = (
    "REPLACED: the stream of the audit trail was declared anew; what it held before is gone"
)


class AuditBook:
    """The newest records.

    Attributes:
        findings: What is wrong with the chains, newest last.
        has_older: Whether the stream holds earlier records that were not read.
        is_truncated: Whether records were dropped, to bound the memory.
    """

    def __init__(self) -> None:
        self._rows: dict[int, AuditRow] = {}
        self._offsets: list[int] = []
        self.findings: dict[int, tuple[str, ...]] = {}
        self.has_older = False
        self.is_truncated = False

    def apply(self, record: AuditRecorded, offset: int, findings: Sequence[str] = ()) -> bool:
        """Take over a record; False if it is known, or older than all that are kept."""
        if findings:
            self.note_findings(offset, findings)
        if offset in self._rows:
            return False
        if len(self._offsets) >= MAX_RECORDS:
            self.is_truncated = self.has_older = True
            if offset < self._offsets[0]:
                return False
            del self._rows[self._offsets.pop(0)]
        row = audit_row(record, offset, tuple(findings))
        self._rows[offset] = row
        insort(self._offsets, offset)
        return True

    def restart(self) -> None:
        """Forget all records: the stream was declared anew, and counts from 0 again."""
        self._rows.clear()
        self._offsets.clear()
        self.findings = {-1: (DECLARED_ANEW,)}
        self.has_older = False

    def note_findings(self, offset: int, findings: Sequence[str]) -> None:
        """Note what is wrong at an offset, also of a record that cannot be read."""
        self.findings[offset] = tuple(findings)
        if len(self.findings) > MAX_FINDINGS:
            del self.findings[min(self.findings)]

    def query(self, query: AuditQuery) -> Page[AuditRow]:
        """One page of the records that match, newest first."""
        rows = (self._rows[offset] for offset in reversed(self._offsets))
        matching = [row for row in rows if _matches(row, query)]
        return page_of(
            matching,
            query.page,
            query.size,
            total=len(self._rows),
            as_of=self.as_of,
            is_complete=not self.has_older,
            has_older=self.has_older,
        )

    def of_request(self, request_id: str) -> tuple[AuditRow, ...]:
        """The records about one request, newest first."""
        rows = (self._rows[offset] for offset in reversed(self._offsets))
        return tuple(row for row in rows if row.request_id == request_id)

    @property
    def as_of(self) -> datetime | None:
        """When the newest record was written; None if there is none."""
        return self._rows[self._offsets[-1]].at if self._offsets else None

    @property
    def offsets(self) -> tuple[int, int] | None:
        """The offsets of the oldest and the newest record that are kept."""
        return (self._offsets[0], self._offsets[-1]) if self._offsets else None

    def __len__(self) -> int:
        return len(self._rows)


def _matches(row: AuditRow, query: AuditQuery) -> bool:
    is_wanted = (
        (query.reports or not row.is_unattended_report)
        and (query.since is None or row.at >= query.since)
        and (query.until is None or row.at < query.until)
        and query.action in ("", row.action)
        and query.project in ("", row.project)
        and (query.outcome == "any" or row.is_ok == (query.outcome == "ok"))
        and matches(query.actor, (row.actor,))
    )
    texts = (
        *(row.actor, row.publisher, row.action, row.project, row.object_key, row.queue, row.host),
        *(row.request_type, row.request_id, row.request, row.master_key, row.outcome, row.reason),
    )
    return is_wanted and matches(query.text, texts)


def audit_row(record: AuditRecorded, offset: int, findings: tuple[str, ...] = ()) -> AuditRow:
    """A record as a row."""
    return AuditRow(
        audit_id=record.audit_id,
        at=parse_time(record.at),
        process=record.process,
        counter=record.counter,
        role=record.role,
        host=record.host,
        action=record.action,
        actor=record.actor,
        publisher=record.publisher,
        request=record.request,
        request_type=record.request_type,
        request_id=record.request_id,
        project=record.project,
        object_key=record.object_key,
        queue=record.queue,
        master_key=record.master_key,
        kind=record.kind,
        provider=record.provider,
        provider_request_id=record.provider_request_id,
        outcome=record.outcome,
        reason=record.reason,
        offset=offset,
        findings=findings,
    )
