"""What the console's pages show, as frozen values (SPEC 16.2). Pure.

Every row says as of when it is true: `as_of` is the time that the signed message named, never the
time at which it arrived.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, Literal, TypeVar

from keyturn.messages import EvidenceStatus, QueueReport

T = TypeVar("T")

PAGE_SIZE: Final = 100
PAGE_MAX_SIZE: Final = 1000

SweepState = Literal["requested", "running", "done", "failed", "rejected"]
Severity = Literal["act", "soon", "info"]
ProjectSort = Literal[
    "project", "generation", "master_key", "key_since", "last_proof_at", "enrolled_at", "as_of"
]
ProjectState = Literal[
    "any", "ok", "attention", "sweeping", "never_proven", "earlier_keks", "old_key", "plaintext"
]
"""What the page *Projects* can be filtered by.

| state | the projects |
| --- | --- |
| `ok` | whose keyring can be read |
| `attention` | whose keyring cannot be read, or whose newest ended sweep is not clean |
| `sweeping` | with a sweep or a rotation under way |
| `never_proven` | without a known clean end |
| `earlier_keks` | whose keyring still holds earlier user KEKs |
| `old_key` | whose API key is older than a year |
| `plaintext` | that may hold plaintext or v0 objects |
"""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a table.

    Attributes:
        rows: The rows of this page.
        total: All rows that are known.
        matching: Those that match the filter.
        page: Its number, from 1.
        pages: How many there are, at least 1.
        as_of: When all of them were last known to be so; None if never.
        is_complete: Whether nothing was left out: the inventory was read to its end, and no
            bound of the memory was reached.
        has_older: Whether more can be read on demand, for the audit trail.
    """

    rows: tuple[T, ...]
    total: int
    matching: int
    page: int
    pages: int
    as_of: datetime | None
    is_complete: bool
    has_older: bool = False


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """The counts of SPEC 8.6."""

    objects: int = 0
    rewrapped: int = 0
    current: int = 0
    plaintext: int = 0
    encrypted: int = 0
    deleted: int = 0
    foreign: int = 0
    failed: int = 0
    noncurrent_stale: int = 0

    @property
    def done(self) -> float:
        """Objects done; one that still needs its proof counts as half."""
        proven = self.current + self.plaintext + self.deleted + self.failed
        return (self.objects + proven) / 2


@dataclass(frozen=True, slots=True)
class SweepRef:
    """Names one sweep or rotation; `project` is `*` for a sweep of all."""

    project: str
    sweep_id: str


@dataclass(frozen=True, slots=True)
class ProjectRow:
    """One project. What is not known yet is None.

    Attributes:
        earlier_keks: How many earlier user KEKs the keyring still holds.
        key_since: When the current API key came: `rotated_at`, otherwise `enrolled_at`.
        evidence: The digest of the newest evidence, by the keyring.
        mark: How the keyring compares with its mark (SPEC 5.5); None where that is not known.
        code: Why the keyring cannot be read or used; `not_found` where an inventory no longer
            lists it.
        last_proof_at: The newest clean end of a sweep or rotation.
        last_proof_sweep: Which one it was.
        last_proof_evidence: The digest of the evidence that it left.
        last_end: The sweep that ended last; it may not be clean.
        is_last_end_clean: Whether it was clean; None if there is none.
        running_sweeps: What is under way; also parts of a sweep of all.
        as_of: When the keyring was read last, or the newest event.
    """

    project: str
    generation: int | None = None
    kek_id: str | None = None
    master_key: str | None = None
    plaintext: bool | None = None
    v0: bool | None = None
    earlier_keks: int | None = None
    enrolled_at: datetime | None = None
    rotated_at: datetime | None = None
    key_since: datetime | None = None
    evidence: str | None = None
    mark: str | None = None
    code: str | None = None
    detail: str | None = None
    last_proof_at: datetime | None = None
    last_proof_sweep: str | None = None
    last_proof_evidence: str | None = None
    last_end: SweepRef | None = None
    is_last_end_clean: bool | None = None
    running_sweeps: tuple[SweepRef, ...] = ()
    as_of: datetime | None = None

    @property
    def is_contradicted(self) -> bool:
        """Whether no worker uses the keyring, because of its mark."""
        return self.mark in ("rolled_back", "removed", "unknown")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One sweep or rotation, or one project's part of a sweep of all.

    Attributes:
        status: `requested` only for what this console requested and no worker has begun yet.
        clean: Of the end; None until then.
        actor: The person who asked for it by this console, if known.
        publisher: Who requested it.
        generation: The generation that a rotation began, or that the sweep proves.
        waits_for_round: Whether a round runs that does not answer it: it waits for the next one.
        expected_objects: How many objects there are, where that was counted.
        objects_done: Objects done; one that still needs its proof counts as half.
        rate_per_s: Objects done a second lately; None if unknown.
        left_s: Seconds left at that rate; None if unknown.
        pages: Pages planned so far.
        pages_open: Pages not proven yet.
        parts_ended: Of a sweep of all: how many projects' parts have ended.
    """

    sweep_id: str
    project: str
    kind: Literal["rotation", "sweep"] = "sweep"
    status: SweepState = "running"
    code: str | None = None
    detail: str | None = None
    clean: bool | None = None
    counts: SweepCounts | None = None
    requested_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    publisher: str | None = None
    actor: str | None = None
    part_of_all: bool = False
    master_key: str | None = None
    encrypt_plaintext: bool | None = None
    repair: bool | None = None
    generation: int | None = None
    waits_for_round: bool = False
    evidence: str | None = None
    expected_objects: int | None = None
    objects_done: float | None = None
    rate_per_s: float | None = None
    left_s: float | None = None
    pages: int | None = None
    pages_open: int | None = None
    parts_ended: int | None = None
    as_of: datetime | None = None

    @property
    def ref(self) -> SweepRef:
        """What names it."""
        return SweepRef(self.project, self.sweep_id)

    @property
    def is_running(self) -> bool:
        """Whether it may still go on by itself."""
        return self.status in ("requested", "running")


@dataclass(frozen=True, slots=True)
class RateSample:
    """How far a sweep was at a moment; `objects_done` counts an unproven object as half."""

    at: datetime
    objects_done: float
    rewrapped: int = 0


@dataclass(frozen=True, slots=True)
class FailureRow:
    """An object that a sweep could not bring to the desired state; `key` is None for a record."""

    project: str
    key: str | None
    code: str


@dataclass(frozen=True, slots=True)
class SweepView:
    """One sweep with all that is known of it.

    Attributes:
        row: The sweep.
        samples: For a chart, by time.
        parts: Of a sweep of all: the parts that are known, those that need attention first.
        failures: What it could not bring to the desired state.
        failures_as_of: When the oldest page of them was read; None if none was.
        failures_complete: Whether these are all failures.
        failures_truncated: Whether more exist than the console keeps.
    """

    row: SweepRow
    samples: tuple[RateSample, ...] = ()
    parts: tuple[SweepRow, ...] = ()
    failures: tuple[FailureRow, ...] = ()
    failures_as_of: datetime | None = None
    failures_complete: bool = False
    failures_truncated: bool = False


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """What is known of a project's evidence (SPEC 15.1)."""

    project: str
    files: tuple[EvidenceStatus, ...] = ()
    as_of: datetime | None = None
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class ObjectGroup:
    """How many objects, versions or records depend on one key, over a whole census."""

    kind: str
    generation: int | None
    master_key: str | None
    code: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Census:
    """How many objects and records depend on which key: the newest count of the bucket.

    Attributes:
        started_at: When its first page was read.
        ended_at: When its last page was read; None while pages are missing.
        inspected: S3 keys counted so far.
        groups: The sums so far.
        is_running: Whether this console reads its pages now.
        next: Where its next page begins; None if none was read, or all were.
        as_of: When its newest page was read.
        problem: The code with which its last page could not be read, if it could not.
        is_truncated: Whether pages were left out, to bound the memory.
    """

    started_at: datetime | None = None
    ended_at: datetime | None = None
    inspected: int = 0
    groups: tuple[ObjectGroup, ...] = ()
    is_running: bool = False
    next: str | None = None
    as_of: datetime | None = None
    problem: str | None = None
    is_truncated: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether it counted the whole bucket."""
        return self.ended_at is not None and not self.is_truncated


@dataclass(frozen=True, slots=True)
class MasterKeyRow:
    """One master key, and what still depends on it.

    Attributes:
        is_held: Whether the control worker that answered holds it.
        provider: `local`, or what holds it elsewhere; None if it is not held.
        active: Whether new projects are enrolled under it.
        code: Why it cannot be used now.
        projects: How many known projects' keyrings are sealed under it.
        counts: By kind, what depends on it, by the newest complete census; None without one.
        safe_to_drop: Whether nothing needs it, by a complete inventory and a complete census;
            None if that is not known.
        reason: Why it can or cannot be dropped, in one sentence.
    """

    master_key: str
    is_held: bool
    provider: str | None = None
    active: bool = False
    code: str | None = None
    projects: int = 0
    counts: Mapping[str, int] | None = None
    safe_to_drop: bool | None = None
    reason: str = ""
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker process by its last report (see `WorkerReported`).

    Attributes:
        is_missing: Whether several reports in a row did not come.
        clock_unknown_since: Since when it does not know the storage's clock, as far as is known.
    """

    worker_id: str
    roles: tuple[str, ...]
    host: str
    version: str
    started_at: datetime
    interval_s: float
    is_stopping: bool
    lease_s: int
    is_clock_known: bool
    active_master_key: str
    master_keys: tuple[str, ...]
    event_keys: tuple[str, ...]
    intake_keys: tuple[str, ...]
    queues: tuple[QueueReport, ...]
    as_of: datetime
    is_missing: bool = False
    clock_unknown_since: datetime | None = None

    @property
    def is_present(self) -> bool:
        """Whether it works, as far as is known."""
        return not (self.is_missing or self.is_stopping)


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What the broker says about one queue."""

    queue: str
    depth: int
    consumers: int


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """What the broker says about queues at one moment; a queue that is missing does not exist."""

    at: datetime
    queues: tuple[QueueDepth, ...]


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue of requests.

    Attributes:
        depth: Messages ready for delivery; None until the broker was asked.
        retrying: Messages that wait for their next attempt.
        dead_depth: Messages in its dead-letter queue.
        served_per_s: By the reports of its workers.
        oldest_s: How long the request waited that a worker received last; None while empty.
        as_of: When the broker was asked last.
    """

    queue: str
    depth: int | None = None
    consumers: int | None = None
    retrying: int | None = None
    served_per_s: float | None = None
    refused_per_s: float | None = None
    oldest_s: float | None = None
    dead_depth: int | None = None
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One record of the audit trail (SPEC 15.3; see `AuditRecorded`).

    Attributes:
        offset: Its place in the stream.
        findings: What is wrong with its chain at this record, for people.
    """

    audit_id: str
    at: datetime
    process: str
    counter: int
    role: str
    host: str
    action: str
    actor: str
    publisher: str | None
    request: str | None
    request_type: str | None
    request_id: str | None
    project: str | None
    object_key: str | None
    queue: str | None
    master_key: str | None
    kind: str | None
    provider: str | None
    provider_request_id: str | None
    outcome: str
    reason: str | None
    offset: int
    findings: tuple[str, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether what it records was done, or begun."""
        return self.outcome in ("done", "started")

    @property
    def is_unattended_report(self) -> bool:
        """Whether a console asked for a report by itself, and got it."""
        is_report = self.request_type == "status.requested" and self.is_ok
        return is_report and self.actor == self.publisher


@dataclass(frozen=True, slots=True)
class AttentionItem:
    """Something that needs a person.

    Attributes:
        rule: The stable name of the rule that found it.
        severity: `act`: something does not work. `soon`: it will not, or is unsafe until then.
            `info`: worth knowing.
        link: The page of the console that shows it.
        remedy: What to do, in one or two sentences.
        command: A command that does it, if there is one.
    """

    rule: str
    severity: Severity
    title: str
    detail: str
    link: str
    remedy: str
    command: str | None = None
    as_of: datetime | None = None


FeedName = Literal["events", "history", "reports", "workers", "audit", "queues", "status"]


@dataclass(frozen=True, slots=True)
class Feed:
    """One source of what the console shows.

    Attributes:
        name: Which one.
        is_connected: Whether it is being read.
        is_caught_up: Whether it was read up to now; of the history, back to its beginning.
        problem: Why it cannot be read, in one line.
        since: Since when it has been so.
        as_of: The time of the newest message that was read.
        behind: Of the history: how far back it was read so far.
        progress: Of the history: 0 to 1.
        refused: Messages that were ignored because no event key had signed them.
    """

    name: FeedName
    is_connected: bool = False
    is_caught_up: bool = False
    problem: str | None = None
    since: datetime | None = None
    as_of: datetime | None = None
    behind: datetime | None = None
    progress: float | None = None
    refused: int = 0


@dataclass(frozen=True, slots=True)
class DeadCount:
    """How many dead letters of one queue have one code."""

    queue: str
    code: str
    count: int
    newest_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadSummary:
    """The dead letters of all queues, by queue and code.

    `is_complete` says whether all of them were read. `total` is the broker's count of messages.
    """

    counts: tuple[DeadCount, ...]
    total: int
    as_of: datetime
    is_complete: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """Totals for the header and for *Now*.

    Attributes:
        broker_lost_at: Since when the broker cannot be reached; None while it can.
        projects: Known projects.
        is_inventory_complete: Whether these are all.
        sweeps_running: Sweeps and rotations under way, parts not counted.
        workers: Worker processes that report.
        backlog: Requests that wait, by the broker.
        dead_letters: None if unknown.
        act: Attention items of severity `act`.
    """

    broker_lost_at: datetime | None
    projects: int
    is_inventory_complete: bool
    sweeps_running: int
    workers: int
    backlog: int | None
    dead_letters: int | None
    act: int
    soon: int
    history_from: datetime | None
    notes: tuple[str, ...] = ()
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class ProjectQuery:
    """Which projects to show, and in which order."""

    text: str = ""
    state: ProjectState = "any"
    sort: ProjectSort = "project"
    descending: bool = False
    page: int = 1
    size: int = PAGE_SIZE
    master_key: str | None = None


@dataclass(frozen=True, slots=True)
class SweepQuery:
    """Which sweeps to show: running ones, then the newest. Parts of sweeps of all only if asked.

    `state` may also be `not_clean`: ended, and not clean.
    """

    text: str = ""
    project: str | None = None
    state: SweepState | Literal["any", "not_clean"] = "any"
    kind: Literal["any", "rotation", "sweep"] = "any"
    page: int = 1
    size: int = PAGE_SIZE
    parts: bool = False


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which audit records to show, newest first.

    `reports` says whether to show the requests for reports that consoles make by themselves: they
    are most of all records, and no person asked for them.
    """

    text: str = ""
    action: str = ""
    actor: str = ""
    project: str = ""
    outcome: Literal["any", "ok", "not_ok"] = "any"
    reports: bool = False
    since: datetime | None = None
    until: datetime | None = None
    page: int = 1
    size: int = PAGE_SIZE
