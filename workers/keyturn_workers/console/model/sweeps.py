"""All sweeps and rotations that the console knows, by events and by reports (SPEC 16.2). Pure.

A sweep is named by its project and its id: publishers choose the ids. One of all projects has the
project `*`, and its parts have its id. Memory is bounded: the oldest that ended are dropped, and
the model says so.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from keyturn.identifiers import ALL_PROJECTS, is_project, parse_time
from keyturn.messages import (
    Event,
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    RotationRejected,
    RotationRequested,
    StatusReported,
    SweepCompleted,
    SweepFailed,
    SweepProgressed,
    SweepRejected,
    SweepRequested,
    SweepStatus,
    request_id,
)
from keyturn_workers.console.model.failures import FailureBook
from keyturn_workers.console.model.paged_reports import PagedReport
from keyturn_workers.console.model.paging import matches, page_of
from keyturn_workers.console.model.retention import Kind, Retention
from keyturn_workers.console.model.rows import (
    Page,
    SweepQuery,
    SweepRef,
    SweepRow,
    SweepView,
)
from keyturn_workers.console.model.samples import Samples
from keyturn_workers.console.model.sorted_index import SortedIndex
from keyturn_workers.console.model.sweep_facts import SweepFacts
from keyturn_workers.console.model.sweep_messages import (
    EndEvent,
    Progress,
    Requested,
    end_of_event,
    event_counts,
    reported_row,
)

KEPT: Final = timedelta(days=14)
SILENT: Final = timedelta(hours=1)
"""After this long without a word, a sweep that an inventory does not list is not under way."""
MAX_INVENTORY: Final = 60_000
MAX_SAMPLES_OF_ALL: Final = 200_000
_SAMPLES_OF_OLD: Final = 32
_THINNED_TO: Final = 0.95

_SWEEP_EVENTS: Final = (
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    RotationRejected,
    SweepProgressed,
    SweepCompleted,
    SweepFailed,
    SweepRejected,
)


class SweepBook:
    """The sweeps.

    Args:
        now: The clock.
        changed: Is called with the project of each sweep that changed.
        dropped: Is called with the row of each sweep that is dropped for the bounds.
    """

    def __init__(
        self,
        now: Callable[[], datetime],
        changed: Callable[[str], None],
        dropped: Callable[[SweepRow], None],
    ) -> None:
        self._now = now
        self._changed = changed
        self._dropped = dropped
        self._facts: dict[SweepRef, SweepFacts] = {}
        self._by_project: dict[str, dict[str, None]] = defaultdict(dict)
        self._parts: dict[str, dict[str, None]] = defaultdict(dict)  # of each id, its projects
        self._rows: dict[SweepRef, SweepRow] = {}
        self._ordered = SortedIndex[SweepRef]()
        self._running: dict[SweepRef, None] = {}
        self._retention = Retention(self._is_droppable, self._forget)
        self._samples = 0
        self.inventory = PagedReport[SweepRef](MAX_INVENTORY)
        self.failures = FailureBook()

    # What comes in.

    def apply_event(self, event: Event) -> bool:
        """Take an event over; False if it says nothing new about sweeps."""
        if not isinstance(event, _SWEEP_EVENTS):
            return False
        project = event.project
        if project is None or not (project == ALL_PROJECTS or is_project(project)):
            return False
        facts, at = self._find(SweepRef(project, request_id(event))), parse_time(event.at)
        facts.see(at, event.publisher)
        changed = self._apply(facts, event, at)
        self._touch(facts)
        return changed

    def _apply(self, facts: SweepFacts, event: object, at: datetime) -> bool:
        match event:
            case RotationAccepted():
                return facts.add_accepted(at, event.generation)
            case SweepProgressed():
                return facts.add_progress(Progress(at, event_counts(event), event.clean))
            case RotationRejected() | RotationCompleted() | RotationFailed():
                facts.is_rotation = True
                return facts.add_end(end_of_event(event))
            case SweepRejected() | SweepCompleted() | SweepFailed():
                end: EndEvent = event
                return facts.add_end(end_of_event(end))
            case _:
                return False

    def apply_request(
        self, request: SweepRequested | RotationRequested, actor: str | None, publisher: str
    ) -> None:
        """Note a request that this console has sent."""
        at, is_sweep = request.requested_at_instant, isinstance(request, SweepRequested)
        requested = Requested(
            at,
            actor,
            publisher,
            "sweep" if is_sweep else "rotation",
            master_key=request.master_key if isinstance(request, SweepRequested) else None,
            encrypt_plaintext=isinstance(request, SweepRequested) and request.encrypt_plaintext,
            repair=isinstance(request, SweepRequested) and request.repair,
        )
        self.note_requested(SweepRef(request.project, request_id(request)), requested)

    def note_requested(self, ref: SweepRef, requested: Requested) -> bool:
        """Note that this console requested a sweep, perhaps in an earlier run; False if known."""
        facts = self._find(ref)
        changed = facts.add_requested(requested)
        self._touch(facts)
        return changed

    def apply_report(self, report: StatusReported) -> bool:
        """Take over a report of the views `sweeps`, `sweep` and `failures`."""
        at = parse_time(report.at)
        if report.view == "failures":
            return self.failures.apply(report)
        changed = False
        for status in report.sweeps or ():
            changed |= self._apply_status(status, at)
        # The sweeps of one project are no inventory: another program may have asked for them.
        if report.view == "sweeps" and report.project == ALL_PROJECTS:
            known = report.sweeps
            refs = None if known is None else [SweepRef(s.project, s.sweep_id) for s in known]
            changed |= self.inventory.apply(report, refs)
        return changed

    def _apply_status(self, status: SweepStatus, at: datetime) -> bool:
        facts = self._find(SweepRef(status.project, status.sweep_id))
        said = reported_row(status, at)
        if facts.report == said:  # it arrives twice: in answer to its request, and on the stream
            return False
        changed = facts.add_report(said)
        self._touch(facts)  # an older report may have counted the objects
        return changed

    def _find(self, ref: SweepRef) -> SweepFacts:
        facts = self._facts.get(ref)
        if facts is None:
            facts = SweepFacts(ref.project, ref.sweep_id, Samples(self._count_samples))
            self._facts[ref] = facts
            self._by_project[ref.project][ref.sweep_id] = None
            if ref.project != ALL_PROJECTS:
                self._parts[ref.sweep_id][ref.project] = None
        return facts

    def _count_samples(self, change: int) -> None:
        self._samples += change

    def _touch(self, facts: SweepFacts) -> None:
        """Compute the row anew, and all that depends on it."""
        ref = SweepRef(facts.project, facts.sweep_id)
        before = self._rows.get(ref)
        row = self._rows[ref] = facts.row(self._whole(ref))
        self._ordered.put(ref, facts.order)
        if row.is_running:
            self._running[ref] = None
        else:
            self._running.pop(ref, None)
        if ref.project != ALL_PROJECTS:
            self._changed(ref.project)
        elif before is None or _of_parts(before) != _of_parts(row):
            self._touch_parts(ref.sweep_id)
        self._retention.put(ref, _kind(row), facts.order)
        if self._samples > MAX_SAMPLES_OF_ALL:
            self._thin_samples()

    def _touch_parts(self, sweep_id: str) -> None:
        """What is known of the whole says what its parts were to do, and that they ended."""
        for project in self._parts.get(sweep_id, ()):
            part = self._facts[SweepRef(project, sweep_id)]
            self._touch(part)

    # Bounds.

    def _thin_samples(self) -> None:
        """Thin the samples of what is not under way, the oldest first."""
        for ref in self._ordered.names():
            if ref not in self._running:
                self._facts[ref].samples.thin(_SAMPLES_OF_OLD)
            if self._samples <= MAX_SAMPLES_OF_ALL * _THINNED_TO:
                return

    def _is_droppable(self, ref: SweepRef) -> bool:
        return ref not in self._running

    @property
    def is_truncated(self) -> bool:
        """Whether sweeps were dropped before their time, for the bounds."""
        return self._retention.is_truncated

    def expire(self) -> bool:
        """Drop those that ended too long ago, or left no record; whether any was."""
        oldest = self._now() - KEPT
        # None that began later can have ended before: only the oldest are looked at.
        old = [
            ref
            for ref in self._ordered.names_below((oldest.timestamp(),))
            if ref not in self._running
            and (at := self._facts[ref].as_of) is not None
            and at < oldest
        ] + self._without_record()
        for ref in old:
            self._retention.remove(ref)
            self._forget(ref)
        return bool(old)

    def _without_record(self) -> list[SweepRef]:
        """Those under way of which a whole inventory that is newer knows nothing.

        An old event that was published again, by an attacker, would otherwise be under way for
        ever.
        """
        chain = self.inventory.chain()
        if not chain.is_complete or chain.as_of is None:
            return []
        listed, oldest = frozenset(chain.rows), chain.as_of - SILENT
        return [
            ref
            for ref in self._running
            if ref not in listed
            and (row := self._rows[ref]).status == "running"
            and not row.part_of_all
            and row.as_of is not None
            and row.as_of < oldest
        ]

    def _forget(self, ref: SweepRef) -> None:
        row = self._rows.pop(ref)
        self._samples -= len(self._facts.pop(ref).samples)
        self._running.pop(ref, None)
        self._ordered.remove(ref)
        for index, key, value in (
            (self._by_project, ref.project, ref.sweep_id),
            (self._parts, ref.sweep_id, ref.project),
        ):
            values = index.get(key, {})
            values.pop(value, None)
            if not values:
                index.pop(key, None)
        self._dropped(row)

    # What pages ask.

    def row(self, ref: SweepRef) -> SweepRow | None:
        """One sweep; None if it is not known."""
        return self._rows.get(ref)

    def _whole(self, ref: SweepRef) -> SweepRow | None:
        whole = SweepRef(ALL_PROJECTS, ref.sweep_id)
        return None if ref == whole else self.row(whole)

    def is_reported(self, ref: SweepRef) -> bool:
        """Whether a report says what was requested."""
        facts = self._facts.get(ref)
        return facts is not None and facts.report is not None

    def is_part(self, ref: SweepRef) -> bool:
        """Whether it is a part of a sweep of all."""
        row = self.row(ref)
        return row is not None and row.part_of_all

    def rows(self) -> list[SweepRow]:
        """All sweeps and parts, the newest first."""
        rows = self._rows
        return [rows[ref] for ref in self._ordered.names(descending=True)]

    def running(self) -> Iterator[SweepRow]:
        """Those under way; parts too."""
        return (self._rows[ref] for ref in self._running)

    def of_project(self, project: str) -> tuple[SweepRow, ...]:
        """Those of one project, parts too, the newest first."""
        refs = [SweepRef(project, each) for each in self._by_project.get(project, ())]
        if len(refs) > 1:
            refs.sort(key=lambda ref: self._facts[ref].order, reverse=True)
        return tuple(self._rows[ref] for ref in refs if ref in self._rows)

    def ended_of_all(self) -> tuple[SweepRow, ...]:
        """Sweeps of all projects that ended, the newest first."""
        refs = [SweepRef(ALL_PROJECTS, each) for each in self._by_project.get(ALL_PROJECTS, ())]
        rows = [self._rows[ref] for ref in refs if ref in self._rows]
        ended = [row for row in rows if row.status in ("done", "failed")]
        return tuple(sorted(ended, key=_ended_order, reverse=True))

    def moved_at(self, row: SweepRow) -> datetime | None:
        """When a sweep last made progress."""
        facts = self._facts.get(row.ref)
        return None if facts is None else facts.samples.moved_at()

    def all_samples(self) -> Iterator[Samples]:
        """The samples of all sweeps but those of all, which count what their parts count."""
        return (facts.samples for ref, facts in self._facts.items() if ref.project != ALL_PROJECTS)

    def query(self, query: SweepQuery) -> Page[SweepRow]:
        """One page of the sweeps that match: those under way first, then the newest."""
        if query.state in ("running", "requested"):
            # *Now* asks at each refresh; few of thousands of sweeps are running.
            found = sorted(self._running, key=lambda ref: self._facts[ref].order, reverse=True)
            rows = [self._rows[ref] for ref in found]
        else:
            rows = self.rows()
        is_filtered = query != SweepQuery(page=query.page, size=query.size, parts=query.parts)
        known = [row for row in rows if query.parts or not row.part_of_all]
        matching = [row for row in known if _matches(row, query)] if is_filtered else known
        matching.sort(key=lambda row: not row.is_running)
        total = sum(query.parts or not row.part_of_all for row in self._rows.values())
        chain = self.inventory.chain()
        page = page_of(
            matching,
            query.page,
            query.size,
            total=total,
            as_of=chain.as_of,
            is_complete=chain.is_complete and not self.is_truncated,
        )
        # Events are newer than the inventory that they follow.
        times = (at for at in (chain.as_of, *(row.as_of for row in page.rows)) if at is not None)
        return replace(page, as_of=max(times, default=None))

    def view(self, ref: SweepRef) -> SweepView | None:
        """One sweep with its samples, parts and failures."""
        row = self.row(ref)
        if row is None:
            return None
        parts = self._part_rows(ref.sweep_id) if ref.project == ALL_PROJECTS else ()
        failures = self.failures.of(ref)
        chain = failures.chain() if failures is not None else None
        return SweepView(
            row,
            samples=self._facts[ref].samples.rows(),
            parts=parts,
            failures=() if chain is None else chain.rows,
            failures_as_of=None if chain is None else chain.as_of,
            failures_complete=chain is not None and chain.is_complete,
            failures_truncated=failures is not None and failures.is_truncated,
        )

    def _part_rows(self, sweep_id: str) -> tuple[SweepRow, ...]:
        refs = [SweepRef(project, sweep_id) for project in self._parts.get(sweep_id, ())]
        rows = [self._rows[ref] for ref in refs if ref in self._rows]
        return tuple(sorted(rows, key=lambda row: (_urgency(row), row.project)))

    def __len__(self) -> int:
        return len(self._facts)


def _kind(row: SweepRow) -> Kind:
    if row.status == "rejected":
        return "rejected"
    return "part" if row.part_of_all else "sweep"


def _of_parts(whole: SweepRow) -> tuple[object, ...]:
    """What the rows of the parts of a sweep of all depend on."""
    options = (whole.master_key, whole.encrypt_plaintext, whole.repair)
    return (whole.status, whole.ended_at, whole.actor, options)


def _ended_order(row: SweepRow) -> tuple[float, str]:
    return (row.ended_at.timestamp() if row.ended_at else 0.0, row.sweep_id)


def _urgency(row: SweepRow) -> int:
    if row.status in ("failed", "rejected"):
        return 0
    if row.is_running:
        return 2
    return 3 if row.clean else 1


def _matches(row: SweepRow, query: SweepQuery) -> bool:
    if query.project is not None and row.project != query.project:
        return False
    if query.kind not in ("any", row.kind):
        return False
    if query.state == "not_clean":
        if row.status != "failed" and not (row.status == "done" and not row.clean):
            return False
    elif query.state not in ("any", row.status):
        return False
    texts = (row.sweep_id, row.project, row.code, row.publisher, row.actor, row.master_key)
    return matches(query.text, texts)
