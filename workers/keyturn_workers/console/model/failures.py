"""What sweeps could not bring to the desired state, object by object (SPEC 8.6, 16.2). Pure.

A list is requested when a person opens the page of its sweep. Memory is bounded: a list is cut, and
the lists that were read longest ago are dropped.
"""

from typing import Final

from keyturn.messages import StatusReported
from keyturn_workers.console.model.paged_reports import PagedReport
from keyturn_workers.console.model.rows import FailureRow, SweepRef

MAX_FAILURES: Final = 5000
MAX_LISTS: Final = 20


class FailureBook:
    """The lists of failures that were read."""

    def __init__(self) -> None:
        self._lists: dict[SweepRef, PagedReport[FailureRow]] = {}

    def apply(self, report: StatusReported) -> bool:
        """Take over a report of the view `failures`."""
        if report.sweep_id is None:
            return False
        ref = SweepRef(report.project, report.sweep_id)
        held = self._lists.get(ref)
        if held is None:
            held = self._lists[ref] = PagedReport(MAX_FAILURES)
        rows = report.failures
        changed = held.apply(
            report, None if rows is None else [FailureRow(f.project, f.key, f.code) for f in rows]
        )
        self._bound()
        return changed

    def _bound(self) -> None:
        while len(self._lists) > MAX_LISTS:
            del self._lists[min(self._lists, key=self._age)]

    def _age(self, ref: SweepRef) -> tuple[float, str, str]:
        as_of = self._lists[ref].as_of
        return (as_of.timestamp() if as_of else 0.0, ref.project, ref.sweep_id)

    def of(self, ref: SweepRef) -> PagedReport[FailureRow] | None:
        """The list of one sweep; None if it was not read."""
        return self._lists.get(ref)
