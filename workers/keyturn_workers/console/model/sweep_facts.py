"""What is known of one sweep, and the row that follows from it (SPEC 6.7, 8.6, 16.2). Pure.

Each source has its own fact, of which the newest counts: the last progress, the end, what a
report said. The row is a function of the facts, so that the order in which they came is without
meaning.
"""

from dataclasses import astuple, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from keyturn.identifiers import ALL_PROJECTS
from keyturn_workers.console.model.rows import SweepCounts, SweepRow, SweepState
from keyturn_workers.console.model.samples import Samples
from keyturn_workers.console.model.sweep_messages import End, Progress, Requested

# The clocks of workers differ: a report that still says "running" this shortly after an end may
# have been read before it.
REPORT_SLACK: Final = timedelta(seconds=10)


@dataclass(slots=True, eq=False)
class SweepFacts:
    """The facts about one sweep.

    Attributes:
        report: What the newest report said, as a row of its own.
        accepted: When a rotation was accepted, and the generation that it began.
        first: The earliest event, and who had requested it.
    """

    project: str
    sweep_id: str
    samples: Samples = field(default_factory=Samples)
    is_rotation: bool = False
    report: SweepRow | None = None
    accepted: tuple[datetime, int] | None = None
    progress: Progress | None = None
    end: End | None = None
    ended_first_at: datetime | None = None
    requested: Requested | None = None
    first: tuple[datetime, str] | None = None
    expected: tuple[datetime, int] | None = None

    def add_report(self, said: SweepRow) -> bool:
        """Take over what a report says; False if a newer one is known."""
        if said.expected_objects is not None and said.as_of is not None:
            # Only the report of a single sweep counts them.
            counted = (said.as_of, said.expected_objects)
            self.expected = counted if self.expected is None else max(self.expected, counted)
        self.is_rotation |= said.kind == "rotation"
        self._sample(said.as_of, said.counts)
        if self.report is not None and not _is_newer(said, self.report):
            return False
        self.report = said
        return True

    def add_accepted(self, at: datetime, generation: int) -> bool:
        """A rotation was accepted; a repeated acceptance changes nothing."""
        self.is_rotation = True
        accepted = (at, generation)
        if self.accepted is not None and self.accepted <= accepted:
            return False
        self.accepted = accepted
        return True

    def add_progress(self, progress: Progress) -> bool:
        """Take over how far it is; False if a newer one is known."""
        self._sample(progress.at, progress.counts)
        if self.progress is not None and _order_of(progress) <= _order_of(self.progress):
            return False
        self.progress = progress
        return True

    def add_end(self, end: End) -> bool:
        """Take over how it ended; False if a newer end is known."""
        self._sample(end.at, end.counts)
        if end.status == "done":
            at = self.ended_first_at
            self.ended_first_at = end.at if at is None else min(at, end.at)
        if self.end is not None and _end_rank(end) <= _end_rank(self.end):
            return False
        self.end = end
        return True

    def add_requested(self, requested: Requested) -> bool:
        """Note that this console requested it; what is known in detail counts."""
        held = self.requested
        self.is_rotation |= requested.kind == "rotation"
        if held is not None and _request_rank(requested) <= _request_rank(held):
            return False
        self.requested = requested
        return True

    def _sample(self, at: datetime | None, counts: SweepCounts | None) -> None:
        if at is not None and counts is not None:
            self.samples.add(at, counts.done, counts.rewrapped)

    def see(self, at: datetime, publisher: str | None) -> None:
        """Note that an event named it."""
        seen = (at, publisher or "")
        self.first = seen if self.first is None else min(self.first, seen)

    def row(self, whole: SweepRow | None) -> SweepRow:
        """The row.

        Args:
            whole: The row of the sweep of all with this id, of which this is a part.
        """
        said = self.report or SweepRow(sweep_id=self.sweep_id, project=self.project)
        asked = self.requested
        counts, counted_at = self._counts()
        status, end = self._state(whole)
        is_part = said.part_of_all or (whole is not None and self.project != ALL_PROJECTS)
        row = replace(
            said,
            kind="rotation" if self.is_rotation or said.kind == "rotation" else "sweep",
            status=status,
            code=said.code if end is None else end.code,
            detail=said.detail if end is None else end.detail,
            clean=None if status not in ("done", "failed") else bool(end and end.clean),
            counts=counts,
            requested_at=said.requested_at or (asked.at if asked else None),
            started_at=said.started_at or self._started_at(),
            ended_at=self._ended_at(status, end),
            publisher=said.publisher or self._publisher(),
            actor=self._actor(said) or (whole.actor if whole is not None and is_part else None),
            part_of_all=is_part,
            generation=said.generation or (self.accepted[1] if self.accepted else None),
            evidence=said.evidence or (end.evidence if end else None),
            expected_objects=None if self.expected is None else self.expected[1],
            objects_done=None if counts is None else counts.done,
            as_of=self.as_of,
        )
        row = _with_options(row, asked, whole if is_part else None)
        return self._with_rate(row, counted_at)

    @property
    def as_of(self) -> datetime | None:
        """The newest moment at which anything was known of it."""
        times = (
            self.report.as_of if self.report else None,
            self.accepted[0] if self.accepted else None,
            self.progress.at if self.progress else None,
            self.end.at if self.end else None,
            self.requested.at if self.requested else None,
        )
        return max((at for at in times if at is not None), default=None)

    @property
    def order(self) -> tuple[float, str, str]:
        """By what sweeps are sorted: when it was requested, or began."""
        said = self.report
        at = (said and (said.requested_at or said.started_at)) or self._started_at() or self.as_of
        return (at.timestamp() if at else 0.0, self.sweep_id, self.project)

    def _started_at(self) -> datetime | None:
        if self.accepted is not None:
            return self.accepted[0]
        return self.first[0] if self.first is not None else None

    def _publisher(self) -> str | None:
        if self.requested is not None and self.requested.publisher:
            return self.requested.publisher
        return (self.first[1] or None) if self.first is not None else None

    def _actor(self, said: SweepRow) -> str | None:
        """The person, from the sweep's record or from this console's own request.

        The request counts only if no other publisher requested the sweep first.
        """
        asked = self.requested
        if asked is None or said.publisher not in (None, asked.publisher):
            return said.actor
        return said.actor or asked.actor

    def _counts(self) -> tuple[SweepCounts | None, datetime | None]:
        known = [
            (at, counts)
            for at, counts in (
                (self.report.as_of, self.report.counts) if self.report else (None, None),
                (self.progress.at, self.progress.counts) if self.progress else (None, None),
                (self.end.at, self.end.counts) if self.end else (None, None),
            )
            if at is not None and counts is not None
        ]
        if not known:
            return None, None
        at, counts = max(known, key=lambda each: each[0])
        return counts, at

    def _state(self, whole: SweepRow | None) -> tuple[SweepState, End | None]:
        """The status, and the end that it rests on."""
        end, said = self._newest_end(whole), self.report
        if said is not None and said.as_of is not None and (end is None or said.as_of > end.at):
            if said.status != "running":
                return said.status, _end_of(said)
            if end is None or said.as_of > end.at + REPORT_SLACK:
                return "running", None
        is_begun = bool(self.accepted or self.progress or said)
        if end is None:
            return ("requested" if self.requested and not is_begun else "running"), None
        # A refusal answers one request; the sweep itself may have begun by another one.
        is_void = end.status == "rejected" and is_begun
        # Its dead letter was replayed, or it was requested again: it goes on.
        is_resumed = (
            end.status == "failed" and self.progress is not None and self.progress.at > end.at
        )
        return ("running", None) if is_void or is_resumed else (end.status, end)

    def _newest_end(self, whole: SweepRow | None) -> End | None:
        if self.end is not None and self.end.status != "rejected":
            return self.end
        progress = self.progress
        if progress is not None and progress.is_clean:
            return End(progress.at, "done", clean=True, counts=progress.counts)
        if whole is not None and whole.status == "done" and whole.ended_at is not None:
            # All parts ended before the sweep of all did; a clean one says so.
            return End(whole.ended_at, "done", clean=False)
        return self.end or self._refusal()

    def _refusal(self) -> End | None:
        """The end of a refused request, from the audit trail if its event is not known."""
        asked = self.requested
        if asked is None or asked.code is None:
            return None
        return End(asked.at, "rejected", clean=False, code=asked.code)

    def _ended_at(self, status: SweepState, end: End | None) -> datetime | None:
        if status in ("requested", "running") or end is None:
            return None
        if self.report is not None and self.report.ended_at is not None:
            return self.report.ended_at
        # An end is published again where its request is repeated.
        if self.ended_first_at is not None and status == "done":
            return self.ended_first_at
        return end.at

    def _with_rate(self, row: SweepRow, counted_at: datetime | None) -> SweepRow:
        if not row.is_running or row.counts is None:
            return replace(row, rate_per_s=None, left_s=None)
        said = self.report
        is_newest = said is not None and said.as_of == counted_at
        rate = self.samples.rate_per_s() or (said.rate_per_s if said else None)
        left = said.left_s if said is not None and is_newest else None
        if left is None and rate and row.expected_objects is not None:
            total = max(row.expected_objects - row.counts.foreign, row.counts.objects)
            left = max(0.0, total - row.counts.done) / rate
        return replace(row, rate_per_s=rate, left_s=left)


def _is_newer(said: SweepRow, held: SweepRow) -> bool:
    if said.as_of == held.as_of:
        # The text decides between two of the same moment, so that any order ends with the same.
        return repr(said) > repr(held)
    return held.as_of is None or (said.as_of is not None and said.as_of > held.as_of)


def _order_of(progress: Progress) -> tuple[datetime, bool, tuple[int, ...]]:
    return (progress.at, progress.is_clean, astuple(progress.counts))


def _end_rank(end: End) -> tuple[bool, datetime, str]:
    # A refusal answers one request, and never replaces an end.
    return (end.status != "rejected", end.at, repr(end))


def _request_rank(requested: Requested) -> tuple[bool, datetime, str]:
    return (requested.repair is not None, requested.at, repr(requested))


def _end_of(said: SweepRow) -> End | None:
    if said.status not in ("done", "failed") or said.as_of is None:
        return None
    status: Literal["done", "failed"] = "done" if said.status == "done" else "failed"
    at = said.ended_at or said.as_of
    return End(at, status, bool(said.clean), said.code, said.detail, said.counts, said.evidence)


def _with_options(row: SweepRow, asked: Requested | None, whole: SweepRow | None) -> SweepRow:
    """What was asked for: by a report, by this console's request, or by the sweep of all."""
    if row.repair is not None:
        return row
    for source in (asked, whole):
        if source is not None and source.repair is not None:
            return replace(
                row,
                master_key=source.master_key,
                encrypt_plaintext=source.encrypt_plaintext,
                repair=source.repair,
            )
    return row
