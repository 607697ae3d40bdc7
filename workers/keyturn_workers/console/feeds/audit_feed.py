"""The audit trail into the model, with what is wrong with its chains (SPEC 15.3, 16.2).

The newest records are read at the start; earlier ones when a person asks for them. Those are read
with the records after them once more, so that a gap where the two meet is noticed.
"""

from contextlib import aclosing
from datetime import datetime
from typing import Final

from keyturn.audit import AuditChains, Checked
from keyturn.crypto import EventVerifier
from keyturn.identifiers import parse_time
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_stream import StreamRecord
from keyturn.topology import AUDIT_STREAM
from keyturn_workers.console.feeds.pacing import Pacer
from keyturn_workers.console.feeds.stream_reader import Handled, read_until
from keyturn_workers.console.model import Model

NEWEST: Final = 5000
"""Records that are read at the start."""
OVERLAP: Final = 500
OLDER_AT_ONCE: Final = 5000
CHAINS_KEPT_FOR: Final = 100_000
"""Records after which the chains are begun anew, so that those of processes that are long gone
are forgotten."""
_WARMED_FOR: Final = 10_000


class AuditFolder:
    """Verifies the records of the audit trail and folds them.

    Args:
        signatures: Verifies the records.
        model: Takes them.
    """

    def __init__(self, signatures: EventVerifier, model: Model) -> None:
        self._signatures = signatures
        self._model = model
        self._chains = AuditChains(signatures)
        self._next = AuditChains(signatures)
        self._count = 0
        self._last = -1
        self.refused = 0

    def __call__(self, record: StreamRecord) -> Handled:
        """Fold one record."""
        if record.offset < self._last:  # the stream was declared anew
            self._model.restart_audit()
        self._last = record.offset
        checked = self._check(record)
        if checked.link is None:
            self.refused += 1
        return Handled(fold(self._model, record.offset, checked), self.refused)

    def _check(self, record: StreamRecord) -> Checked:
        self._count += 1
        if self._count > CHAINS_KEPT_FOR:
            self._chains, self._next = self._next, AuditChains(self._signatures)
            self._count = _WARMED_FOR
        elif self._count > CHAINS_KEPT_FOR - _WARMED_FOR:
            # The next chains know the end of each before they are asked about gaps.
            self._next.add(record.body, record.signature, record.key_id)
        return self._chains.add(record.body, record.signature, record.key_id)


def fold(model: Model, offset: int, checked: Checked) -> datetime | None:
    """Give a record to the model; return its time if it is signed."""
    findings = tuple(map(str, checked.findings))
    if checked.record is not None:
        model.apply_audit(checked.record, offset, findings)
    elif findings:
        model.note_audit_finding(offset, findings)
    return None if checked.link is None else parse_time(checked.link.at)


async def read_older(
    connection: BrokerConnection,
    signatures: EventVerifier,
    model: Model,
    since: datetime | None = None,
) -> None:
    """Read earlier records, up to those that are held.

    Args:
        connection: A connection of its own.
        signatures: Verifies the records.
        model: Takes them.
        since: Where to begin; by default, some thousand records before those that are held.

    Raises:
        EventsUnavailableError: the stream cannot be read.
    """
    held = model.audit_offsets()
    if held is None or held[0] == 0:
        model.set_audit_has_older(has_older=False)
        return
    oldest, newest = held
    start = max(0, oldest - OLDER_AT_ONCE) if since is None else since
    end = min(oldest + OVERLAP, newest + 1)
    chains, pacer, first = AuditChains(signatures), Pacer(), None
    async with aclosing(read_until(connection, AUDIT_STREAM, start, end)) as records:
        async for record in records:
            first = record.offset if first is None else first
            checked = chains.add(record.body, record.signature, record.key_id)
            fold(model, record.offset, checked)
            await pacer.breathe()
    # A stream that begins later than asked for has dropped what was before.
    is_first = first is None or (isinstance(start, int) and first > start)
    model.set_audit_has_older(has_older=not is_first and first != 0)
