"""Keyrings and requests of sweeps as rows, without any key (SPEC 8.6, 16.1). Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from keyturn.counts import Counts
from keyturn.errors import CodedError
from keyturn.identifiers import format_time
from keyturn.messages.status import CustomerKeyStatus, ProjectStatus, SweepKind, SweepStatus
from keyturn.progress import Progress
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.sweep_progress import current_round, progress_of
from keyturn_workers.core.sweep_record import AllRecord, Kind, Origin, ProjectRecord, Round, Walk

_MAX_DETAIL: Final = 500
_KINDS: Final[dict[Kind, SweepKind]] = {
    "rotation": "rotation",
    "sweep": "sweep",
    "part": "sweep",
    "erase": "erasure",
}


def project_status(keyring: Keyring) -> ProjectStatus:
    """Return a keyring as a row."""
    current = keyring.current
    key = None if current.customer_key is None else current.customer_key.name
    answers = [] if keyring.erasure is None else list(keyring.erasure.answers.values())
    return ProjectStatus(
        project=keyring.project,
        generation=current.generation,
        kek_id=current.kek_id,
        master_key=keyring.master_key,
        plaintext=keyring.plaintext_allowed,
        earlier_keks=sum(entry.kek is not None for entry in keyring.history),
        enrolled_at=keyring.enrollment.at,
        rotated_at=current.at if keyring.history else None,
        evidence=keyring.evidence,
        customer_key=None if key is None else CustomerKeyStatus(store=key.store, key=key.key),
        erased_at=max((answer.at for answer in answers), default=None),
    )


def unreadable_project(project: str, error: CodedError) -> ProjectStatus:
    """Return the row of a keyring that does not open."""
    return ProjectStatus(project=project, code=error.code, detail=short_detail(error))


def unreadable_sweep(sweep_id: str, project: str, error: CodedError) -> SweepStatus:
    """Return the row of a sweep whose record does not open."""
    return SweepStatus(
        sweep_id=sweep_id, project=project, code=error.code, detail=short_detail(error)
    )


def short_detail(error: CodedError) -> str | None:
    """Return the error's detail, bounded: part of it may come from the bucket."""
    return error.detail[:_MAX_DETAIL] or None


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep or rotation: its request, and the record that has it."""

    record: ProjectRecord | AllRecord
    origin: Origin

    @property
    def current(self) -> Round | Walk | None:
        """The running round, or walk, that answers it; None if it ended or waits for one."""
        return current_round(self.record, self.origin)

    @property
    def round_id(self) -> str | None:
        """The round, or walk, that answers it or answered it; None without one."""
        if self.origin.end is not None:
            return self.origin.end.round_id
        return None if self.current is None else self.current.id

    @property
    def counts(self) -> Counts:
        """The counts so far, by its own record; only the writes while it waits for a round."""
        counts = self.record.counts_of(self.origin)
        return counts.writes() if self.origin.is_open and self.current is None else counts

    def row(self, counts: Counts | None = None, expected: int | None = None) -> SweepStatus:
        """Return its row.

        `counts` defaults to those of the record; of a sweep of all, these are the counts of the
        parts that ended. Without the number of `expected` objects, the time left is unknown.
        """
        counts = counts or self.counts
        progress = progress_of(self.record, self.origin)
        row = origin_status(self.record.project, self.origin, counts)
        row = row.model_copy(update={"progress": progress})
        if not self.origin.is_open:
            return row
        return row.model_copy(
            update={
                "expected_objects": expected,
                "stepped_at": _shown(self.record.stepped_at),
            }
            | self._round_fields()
            | self._rate_fields(counts, expected, progress)
        )

    def round_details(self) -> dict[str, Any]:
        """Return the details of its round that only the view `sweep` has."""
        others = [Sweep(self.record, each) for each in self.record.origins if each != self.origin]
        details: dict[str, Any] = {
            "round_id": self.round_id,
            "also_answers": tuple(
                each.origin.id
                for each in others
                if self.round_id is not None and each.round_id == self.round_id
            ),
        }
        if isinstance(self.current, Round) and self.current.ranges:
            ranges = self.current.ranges
            planned = sum(keys.planned for keys in ranges)
            details |= {"ranges": len(ranges), "ranges_planned": planned}
        return details

    def _round_fields(self) -> dict[str, Any]:
        current, record = self.current, self.record
        if isinstance(current, Walk):
            return {"parts_ended": current.projects}
        if current is None or isinstance(record, AllRecord):
            return {"waits_for_round": record.round is not None}
        return {
            "generation": record.state.generation,
            "proves_master_key": record.state.master_key,
            "pages": current.next_page,
            "pages_open": len(current.open_pages),
        }

    def _rate_fields(
        self, counts: Counts, expected: int | None, progress: Progress
    ) -> dict[str, Any]:
        """Return the rate since its round began, and the seconds left, until a proof is possible.

        Each object is inspected, changed if needed, and inspected again as proof: each of the two
        inspections is half of the work.
        """
        current, stepped_at = self.current, self.record.stepped_at
        if current is None or stepped_at is None:
            return {}
        elapsed_s = (stepped_at - _begun_at(self.record, current)).total_seconds()
        done = (counts.objects + counts.proven) / 2
        if not done or elapsed_s <= 0:
            return {}
        rate_per_s = done / elapsed_s
        total = progress.total if expected is None else expected - counts.foreign
        if total is None or isinstance(current, Walk):
            return {"rate_per_s": rate_per_s}
        wait_s = progress.seconds_to_proof(stepped_at) or 0.0
        left_s = max((max(total, counts.objects) - done) / rate_per_s, wait_s)
        return {"rate_per_s": rate_per_s, "left_s": float(round(left_s))}


def _shown(at: datetime | None) -> str | None:
    return None if at is None else format_time(at)


def _begun_at(record: ProjectRecord | AllRecord, current: Round | Walk) -> datetime:
    """Return about when the round began: its origins existed, and no other round ran."""
    moments = [each.added_at for each in record.origins if each.name in current.origins]
    moments += [each.end.at for each in record.origins if each.end is not None]
    if isinstance(record, ProjectRecord):
        moments.append(record.changed_at)
    return max(moments)


def find_sweep(record: ProjectRecord | AllRecord | None, sweep_id: str) -> Sweep | None:
    """Return the sweep or rotation with this id: the youngest open one, or else one that ended.

    Publishers choose the ids, so a record may have several.
    """
    if record is None:
        return None
    named = [each for each in record.origins if each.id == sweep_id]
    origin = max(named, key=lambda each: (each.is_open, each.added_at), default=None)
    return None if origin is None else Sweep(record, origin)


def origin_status(project: str, origin: Origin, counts: Counts | None = None) -> SweepStatus:
    """Return a request as a row, with its end if it ended."""
    end, options = origin.end, origin.options
    state = None if end is None else end.state
    counts = counts if end is None else end.counts
    return SweepStatus(
        sweep_id=origin.id,
        project=project,
        kind=_KINDS[origin.kind],
        status=origin.status,
        code=None if end is None else end.code or None,
        detail=None if end is None else end.detail[:_MAX_DETAIL] or None,
        clean=None if end is None else end.clean,
        counts=counts,
        requested_at=origin.requested_at,
        started_at=format_time(origin.added_at),
        ended_at=None if end is None else format_time(end.at),
        publisher=origin.publisher,
        actor=origin.actor,
        part_of_all=origin.kind == "part",
        master_key=options.master_key,
        encrypt_plaintext=options.encrypt_plaintext,
        repair=options.repair,
        generation=None if state is None else state.generation,
        proves_master_key=None if state is None else state.master_key,
        evidence=None if end is None else end.evidence,
        parts_ended=None if end is None else end.parts,
    )
