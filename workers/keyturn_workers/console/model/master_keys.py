"""Master keys, and what still depends on each (SPEC 8.1, 16.2). Pure.

Whether one can be dropped is decided by the same rule as for `keyturn status`, by a complete
inventory of keyrings and a complete census.
"""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from keyturn.messages import MasterKeyStatus, StatusReported
from keyturn_workers.console.model.paged_reports import PagedReport
from keyturn_workers.console.model.rows import Census, MasterKeyRow, ProjectRow
from keyturn_workers.key_usage_rules import (
    DropVerdict,
    KeyUsage,
    Surroundings,
    judge_drop,
    missing_key,
)

_MAX_KEYS: Final = 1000
_NONCURRENT: Final = "noncurrent"
_UNREADABLE: Final = "unreadable"
_KEYRING: Final = "keyring"
_SWEEP_RECORD: Final = "sweep_record"
_RECORDS: Final = (_KEYRING, _SWEEP_RECORD)


class MasterKeyBook:
    """The master keys that control workers reported."""

    def __init__(self) -> None:
        self.report = PagedReport[MasterKeyStatus](_MAX_KEYS)

    def apply(self, report: StatusReported) -> bool:
        """Take over a report of the view `master_keys`."""
        return self.report.apply(report, report.master_keys)

    def rows(
        self,
        projects: Iterable[ProjectRow],
        census: Census | None,
        *,
        running_sweeps: int,
        is_inventory_complete: bool,
        inventory_as_of: datetime | None,
    ) -> tuple[MasterKeyRow, ...]:
        """The keys that are held, the active one first; then those that only records name."""
        chain = self.report.chain()
        keyrings = Counter(row.master_key for row in projects if row.master_key is not None)
        usage = _Usage(keyrings, census, running_sweeps, is_inventory_complete)
        times = [at for at in (chain.as_of, inventory_as_of) if at is not None]
        if census is not None and census.ended_at is not None:
            times.append(census.ended_at)
        as_of = min(times, default=None)
        held = [usage.row(status, as_of) for status in chain.rows]
        held.sort(key=lambda row: (not row.active, row.master_key))
        names = {row.master_key for row in held}
        missing = sorted(usage.named() - names)
        return (*held, *(usage.missing_row(name, as_of) for name in missing))


class _Usage:
    """What depends on each key."""

    def __init__(
        self,
        keyrings: Counter[str],
        census: Census | None,
        running_sweeps: int,
        is_inventory_complete: bool,  # noqa: FBT001 - private
    ) -> None:
        self._keyrings = keyrings
        self._census = census
        self._is_complete = is_inventory_complete
        self._counts: dict[str, Counter[str]] = {}
        unreadable: Counter[str] = Counter()
        for group in census.groups if census is not None else ():
            if group.master_key is not None:
                counts = self._counts.setdefault(group.master_key, Counter())
                counts[group.kind] += group.count
            if group.kind == _UNREADABLE or (group.kind in _RECORDS and group.code is not None):
                unreadable[group.kind] += group.count
        self._around = Surroundings(
            running_sweeps=running_sweeps,
            unreadable_objects=unreadable[_UNREADABLE],
            unreadable_records=unreadable[_KEYRING] + unreadable[_SWEEP_RECORD],
        )

    def named(self) -> set[str]:
        """All keys that a record or an object names."""
        return {*self._keyrings, *self._counts}

    def _records(self, name: str) -> int:
        counts = self._counts.get(name, Counter[str]())
        return max(self._keyrings[name], counts[_KEYRING]) + counts[_SWEEP_RECORD]

    def row(self, status: MasterKeyStatus, as_of: datetime | None) -> MasterKeyRow:
        """The row of a key that is held."""
        name = status.master_key
        verdict = self._judge(status)
        return MasterKeyRow(
            master_key=name,
            is_held=True,
            provider=status.provider,
            active=status.active,
            code=status.code,
            projects=self._keyrings[name],
            counts=self._row_counts(name),
            safe_to_drop=verdict.may_be_dropped,
            reason=verdict.reason,
            as_of=as_of,
        )

    def missing_row(self, name: str, as_of: datetime | None) -> MasterKeyRow:
        """The row of a key that is named, and not held."""
        return MasterKeyRow(
            master_key=name,
            is_held=False,
            projects=self._keyrings[name],
            counts=self._row_counts(name),
            safe_to_drop=False,
            reason=missing_key(self._records(name)),
            as_of=as_of,
        )

    def _row_counts(self, name: str) -> dict[str, int] | None:
        return None if self._census is None else dict(sorted(self._counts.get(name, {}).items()))

    def _judge(self, status: MasterKeyStatus) -> DropVerdict:
        name = status.master_key
        if self._census is None:
            usage = KeyUsage(None, 0, self._records(name), status.active)
            return judge_drop(usage, self._around)
        counts = self._counts.get(name, Counter[str]())
        others = (_NONCURRENT, _UNREADABLE, *_RECORDS)
        objects = sum(number for kind, number in counts.items() if kind not in others)
        usage = KeyUsage(objects, counts[_NONCURRENT], self._records(name), status.active)
        verdict = judge_drop(usage, self._around)
        if verdict.may_be_dropped and not self._is_complete:
            return DropVerdict(None, "the inventory of projects is not complete yet")
        return verdict
