"""The newest records of the audit trail, with the problems of its chains (SPEC 15.3). Pure."""

from collections import deque
from typing import Final

from keyturn.audit import AuditChains
from keyturn.crypto.signatures import EventVerifier
from keyturn.messages.audit import AuditRecorded
from keyturn.messages.status import AuditStatus
from keyturn.publisher.event_stream import StreamRecord

MAX_RECORDS: Final = 20_000
MAX_FINDINGS: Final = 100
DECLARED_ANEW: Final = (
    "REPLACED: the stream of the audit trail was declared again; its earlier records are gone"
)
_CHAINS_KEPT_FOR: Final = 100_000
"""Records after which the chains are begun anew, so that those of processes that are long gone
are forgotten."""
_WARMED_FOR: Final = 10_000
_FIELDS: Final = tuple(
    name for name in AuditStatus.model_fields if name in AuditRecorded.model_fields
)


class AuditBook:
    """The newest records, and the problems of their chains.

    `findings` has the newest problems, by offset. If `has_older`, the stream has earlier records
    that were not read, or not kept.
    """

    def __init__(self, signatures: EventVerifier) -> None:
        self._signatures = signatures
        self._chains = AuditChains(signatures)
        self._next = AuditChains(signatures)
        self._count = 0
        self._last = -1
        self._rows: deque[AuditStatus] = deque(maxlen=MAX_RECORDS)
        self._without_record: dict[int, tuple[str, ...]] = {}
        self.findings: dict[int, tuple[str, ...]] = {}
        self.has_older = False

    def apply(self, record: StreamRecord) -> None:
        """Check and keep the next record of the stream."""
        if record.offset < self._last:  # the stream was declared anew
            self._rows.clear()
            self.findings = {-1: (DECLARED_ANEW,)}
            self._without_record = dict(self.findings)
            self.has_older = False
        elif self._last < 0:
            self.has_older = record.offset > 0
        self._last = record.offset
        checked = self._chains_for_next().add(record.body, record.signature, record.key_id)
        findings = tuple(map(str, checked.findings))
        if findings:
            _note(self.findings, record.offset, findings)
        if checked.record is not None:
            self.has_older |= len(self._rows) == MAX_RECORDS
            fields = {name: getattr(checked.record, name) for name in _FIELDS}
            self._rows.append(AuditStatus(**fields, offset=record.offset, findings=findings))
        elif findings:
            _note(self._without_record, record.offset, findings)
        if self._count > _CHAINS_KEPT_FOR - _WARMED_FOR:
            # The next chains learn the end of each chain before they are asked about gaps.
            self._next.add(record.body, record.signature, record.key_id)

    def _chains_for_next(self) -> AuditChains:
        self._count += 1
        if self._count > _CHAINS_KEPT_FOR:
            self._chains, self._next = self._next, AuditChains(self._signatures)
            self._count = _WARMED_FOR
        return self._chains

    def rows(self) -> list[AuditStatus]:
        """Return the records, the newest first."""
        return list(reversed(self._rows))

    def findings_without_record(self) -> tuple[str, ...]:
        """Return the problems at offsets without a readable record, the newest last."""
        found = sorted(self._without_record.items())
        return tuple(finding for _, findings in found for finding in findings)


def _note(known: dict[int, tuple[str, ...]], offset: int, findings: tuple[str, ...]) -> None:
    known[offset] = findings
    if len(known) > MAX_FINDINGS:
        del known[min(known)]
