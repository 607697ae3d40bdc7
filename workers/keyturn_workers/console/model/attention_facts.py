"""What the rules of *Now* judge by, and how they put things (SPEC 16.2). Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

from keyturn.identifiers import ALL_PROJECTS, ALL_PROJECTS_FOLDER
from keyturn_workers.console.model.rows import (
    AttentionItem,
    DeadSummary,
    Feed,
    MasterKeyRow,
    ProjectRow,
    QueueRow,
    SweepRow,
    WorkerRow,
)

LISTED: Final = 5
"""Names that one item lists."""
_NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules judge by.

    Attributes:
        depths: The depths of a queue that were seen lately, by time.
        running: Sweeps and rotations under way; parts too.
        ended_of_all: Sweeps of all that ended, the newest first.
        moved_at: When a sweep last made progress; None if it never did.
        unsigned_depth: Messages that no known publisher signed; None if unknown.
        audit_findings: What is wrong with the audit trail, by offset.
        notes: What was left out, to bound the memory.
    """

    now: datetime = _NEVER
    started_at: datetime = _NEVER
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    queues: Sequence[QueueRow] = ()
    depths: Callable[[str], Sequence[tuple[datetime, int]]] = lambda _: ()
    unsigned_depth: int | None = None
    workers: Sequence[WorkerRow] = ()
    projects: Sequence[ProjectRow] = ()
    running: Sequence[SweepRow] = ()
    ended_of_all: Sequence[SweepRow] = ()
    moved_at: Callable[[SweepRow], datetime | None] = lambda _: None
    master_keys: Sequence[MasterKeyRow] = ()
    dead: DeadSummary | None = None
    audit_findings: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def is_broker_up(self) -> bool:
        """Whether events are read."""
        events = self.feeds.get("events")
        return events is not None and events.is_connected


Rule = Callable[[Facts], Iterable[AttentionItem]]


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    known = [*names]
    more = len(known) - LISTED
    text = ", ".join(known[:LISTED])
    return f"{text} and {more} more" if more > 0 else text


def ago(moment: timedelta) -> str:
    """A length of time in words."""
    seconds = int(moment.total_seconds())
    for unit_s, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {name}"
    return f"{max(0, seconds)} seconds"


def project_link(project: str) -> str:
    """The page of a project."""
    return f"/projects/{quote(project)}"


def sweep_link(project: str, sweep_id: str) -> str:
    """The page of a sweep."""
    folder = ALL_PROJECTS_FOLDER if project == ALL_PROJECTS else quote(project)
    return f"/sweeps/{folder}/{quote(sweep_id)}"


def count_of(number: int, noun: str) -> str:
    """The number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
