"""What one message says about a sweep: a report, progress, an end, a request. Pure.

SPEC 6.7, 8.6, 16.1. `sweep_facts` keeps the newest of each.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from keyturn.identifiers import parse_time
from keyturn.messages import (
    COUNT_FIELDS,
    CountedEvent,
    RotationCompleted,
    RotationFailed,
    RotationRejected,
    SweepCompleted,
    SweepFailed,
    SweepRejected,
    SweepStatus,
)
from keyturn_workers.console.model.rows import SweepCounts, SweepRow

EndEvent = (
    RotationCompleted
    | RotationFailed
    | RotationRejected
    | SweepCompleted
    | SweepFailed
    | SweepRejected
)


@dataclass(frozen=True, slots=True)
class Progress:
    """The counts at a moment; `is_clean` is set at the clean end of a part of a sweep of all."""

    at: datetime
    counts: SweepCounts
    is_clean: bool


@dataclass(frozen=True, slots=True)
class End:
    """How it ended."""

    at: datetime
    status: Literal["done", "failed", "rejected"]
    clean: bool
    code: str | None = None
    detail: str | None = None
    counts: SweepCounts | None = None
    evidence: str | None = None


@dataclass(frozen=True, slots=True)
class Requested:
    """A request by this console, and for whom; `code` if it was refused."""

    at: datetime
    actor: str | None = None
    publisher: str | None = None
    kind: Literal["rotation", "sweep"] = "sweep"
    master_key: str | None = None
    encrypt_plaintext: bool | None = None
    repair: bool | None = None
    code: str | None = None


def reported_row(status: SweepStatus, at: datetime) -> SweepRow:
    """What a report says about a sweep."""
    counts = status.counts
    return SweepRow(
        sweep_id=status.sweep_id,
        project=status.project,
        kind=status.kind or "sweep",
        status=status.status or "running",
        code=status.code,
        detail=status.detail,
        clean=status.clean,
        counts=None if counts is None else _counts(counts),
        requested_at=_time(status.requested_at),
        started_at=_time(status.started_at),
        ended_at=_time(status.ended_at),
        publisher=status.publisher,
        actor=status.actor,
        part_of_all=status.part_of_all,
        master_key=status.master_key,
        # A record that does not open says nothing about what was requested.
        encrypt_plaintext=status.encrypt_plaintext if status.status else None,
        repair=status.repair if status.status else None,
        generation=status.generation,
        waits_for_round=status.waits_for_round,
        evidence=status.evidence,
        expected_objects=status.expected_objects,
        rate_per_s=status.rate_per_s,
        left_s=status.left_s,
        pages=status.pages,
        pages_open=status.pages_open,
        parts_ended=status.parts_ended,
        as_of=at,
    )


def event_counts(event: CountedEvent) -> SweepCounts:
    """The counts of an event."""
    return _counts(event)


def end_of_event(event: EndEvent) -> End:
    """The end that an event states."""
    at = parse_time(event.at)
    match event:
        case RotationCompleted() | SweepCompleted():
            return End(at, "done", event.clean, counts=_counts(event), evidence=event.evidence)
        case RotationRejected() | SweepRejected():
            return End(at, "rejected", clean=False, code=event.code, detail=event.detail)
        case _:
            return End(at, "failed", clean=False, code=event.code, detail=event.detail)


def _counts(source: object) -> SweepCounts:
    return SweepCounts(*(getattr(source, name) for name in COUNT_FIELDS))


def _time(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)
