"""The console's model: a fold over signed messages; every page is made of it (SPEC 16.2). Pure.

Events, reports, worker reports, audit records and the broker's counts come in; rows go out. A
message that is older than what is known changes nothing, and neither does a repeated one, so that
the order in which streams are read is without meaning, and a console that restarts shows the same.

It is not thread-safe: one event loop owns it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, TypeVar

from keyturn.identifiers import ALL_PROJECTS, format_time, parse_time
from keyturn.messages import (
    AuditRecorded,
    Event,
    RotationRequested,
    StatusReported,
    SweepRequested,
    UploadRejected,
    UploadStored,
    WorkerReported,
)
from keyturn_workers.console.model.attention import Facts, find_attention
from keyturn_workers.console.model.audit import AuditBook
from keyturn_workers.console.model.census import CensusBook
from keyturn_workers.console.model.changes import NOW, TOPICS, Changes, Topic
from keyturn_workers.console.model.evidence import EvidenceBook
from keyturn_workers.console.model.history import MINUTE_S, History, spread
from keyturn_workers.console.model.master_keys import MasterKeyBook
from keyturn_workers.console.model.offsets import OffsetSet
from keyturn_workers.console.model.projects import ProjectBook
from keyturn_workers.console.model.rows import (
    AttentionItem,
    AuditQuery,
    AuditRow,
    Census,
    DeadSummary,
    EvidenceView,
    Feed,
    FeedName,
    MasterKeyRow,
    Overview,
    Page,
    ProjectQuery,
    ProjectRow,
    QueueRow,
    QueueSnapshot,
    SweepQuery,
    SweepRef,
    SweepRow,
    SweepView,
    WorkerRow,
)
from keyturn_workers.console.model.sweep_messages import Requested
from keyturn_workers.console.model.sweeps import SweepBook
from keyturn_workers.console.model.workers import WorkerBook

_DatedT = TypeVar("_DatedT", Event, StatusReported, WorkerReported)
HISTORY: Final = timedelta(days=1)
AHEAD: Final = timedelta(minutes=5)
"""How far ahead of this console's clock a worker's may be, as for requests (SPEC 6.3)."""
_NOTED_FOR: Final = timedelta(minutes=15)
FEEDS: Final[tuple[FeedName, ...]] = (
    "events",
    "history",
    "reports",
    "workers",
    "audit",
    "queues",
    "status",
)
REWRAPPED: Final = "rewrapped"
_SWEEP_REQUESTS: Final[dict[str, Literal["rotation", "sweep"]]] = {
    "sweep.requested": "sweep",
    "rotation.requested": "rotation",
}
_REQUEST_ACTIONS: Final = ("request.served", "request.refused")
_VIEW_TOPICS: Final[dict[str, tuple[Topic, ...]]] = {
    "projects": ("projects", "master_keys"),
    "sweeps": ("sweeps", "projects"),
    "sweep": ("sweeps", "projects"),
    "failures": ("sweeps",),
    "evidence": ("projects",),
    "master_keys": ("master_keys",),
    "objects": ("master_keys",),
}


_ATTENTION_TOPICS: Final = TOPICS - {NOW}
_ATTENTION_S: Final = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class _Attention:
    """What was found, and of which version of the model."""

    version: int
    feed_changes: int
    at: datetime
    items: tuple[AttentionItem, ...]


def _is_read(feed: Feed) -> tuple[bool, str | None]:
    return feed.is_connected, feed.problem


def utc_now() -> datetime:
    """The time now."""
    return datetime.now(UTC)


class Model:
    """What the console knows.

    Args:
        publisher: The name under which this console requests.
        history: How much history charts show.
        now: The clock.

    Attributes:
        changes: Which topics changed, for subscribers.
        history: Counts by minute; see also `series`.
        started_at: When this console began.
    """

    def __init__(
        self,
        publisher: str,
        *,
        history: timedelta = HISTORY,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.publisher = publisher
        self.now = now
        self.started_at = now()
        self.changes = Changes()
        self.history = History(history, now)
        self._length = history
        self._offsets = OffsetSet()
        self._projects = ProjectBook(now, self.project_sweeps)
        self._sweeps = SweepBook(now, self._projects.touch, self._projects.remember_proof)
        self._workers = WorkerBook(now)
        self._audit = AuditBook()
        self._evidence = EvidenceBook()
        self._keys = MasterKeyBook()
        self._census = CensusBook()
        self._dead: DeadSummary | None = None
        self._feeds: dict[FeedName, Feed] = {name: Feed(name) for name in FEEDS}
        self._attention: _Attention | None = None
        self._feed_changes = 0
        self._rewrapped: tuple[int, datetime, dict[int, int]] | None = None
        self._expired_at = now()
        self._dated_ahead_at: datetime | None = None

    # What comes in: verified messages only.

    def apply_event(self, event: Event, offset: int) -> None:
        """Take over an event of `keyturn.events`, whose signature was checked."""
        event = self._dated(event)
        is_new = self._offsets.add(offset)
        topics: list[Topic] = []
        if is_new:
            self.history.add(event)
        if not isinstance(event, UploadStored | UploadRejected):  # most events
            if self._sweeps.apply_event(event):
                topics += ["sweeps", "projects"]
            if self._projects.apply_event(event):
                topics.append("projects")
        if topics or is_new:
            self.changes.publish(*topics)

    def _dated(self, message: _DatedT) -> _DatedT:
        """A message that is not dated in the future.

        The newest counts: one of a worker whose clock is a year ahead would hide for a year what
        follows it.
        """
        now = self.now()
        if parse_time(message.at) <= now + AHEAD:
            return message
        self._dated_ahead_at = now
        return message.model_copy(update={"at": format_time(now)})

    def _is_dated_ahead(self) -> bool:
        noted_at = self._dated_ahead_at
        return noted_at is not None and self.now() - noted_at < _NOTED_FOR

    def pass_event(self, offset: int) -> None:
        """Note that a message of `keyturn.events` was passed over: it is not signed, say."""
        self._offsets.add(offset)

    def restart_events(self) -> None:
        """Note that `keyturn.events` was declared anew: its offsets begin at 0 again."""
        self._offsets = OffsetSet()

    def apply_report(self, report: StatusReported) -> None:
        """Take over a report that this console requested, in this run or an earlier one."""
        if report.publisher != self.publisher:
            return
        report = self._dated(report)
        match report.view:
            case "projects":
                changed = self._projects.apply_report(report)
            case "sweeps" | "sweep" | "failures":
                changed = self._sweeps.apply_report(report)
            case "evidence":
                changed = self._evidence.apply(report)
            case "master_keys":
                changed = self._keys.apply(report)
            case "objects":
                changed = self._census.apply(report)
            case _:
                changed = False
        if changed:
            self.changes.publish(*_VIEW_TOPICS[report.view])

    def apply_request(
        self, request: SweepRequested | RotationRequested, actor: str | None = None
    ) -> None:
        """Note a sweep or a rotation that this console has just requested."""
        self._sweeps.apply_request(request, actor, self.publisher)
        self.changes.publish("sweeps", "projects")

    def apply_audit(
        self, record: AuditRecorded, offset: int, findings: tuple[str, ...] = ()
    ) -> None:
        """Take over a record of the audit trail, with what is wrong with its chain there."""
        topics: list[Topic] = []
        if self._audit.apply(record, offset, findings):
            topics.append("audit")
        # Even if the record is too old to be kept.
        if self._note_requested(record):
            topics.append("sweeps")
        if topics:
            self.changes.publish(*topics)

    def _note_requested(self, record: AuditRecorded) -> bool:
        """Note who requested a sweep through this console; returns whether that is news."""
        kind = _SWEEP_REQUESTS.get(record.request_type or "")
        is_own = record.publisher == self.publisher and record.action in _REQUEST_ACTIONS
        if kind is None or not is_own or record.request_id is None or record.project is None:
            return False
        actor = record.actor if record.actor != record.publisher else None
        code = record.outcome if record.action == "request.refused" else None
        requested = Requested(parse_time(record.at), actor, record.publisher, kind, code=code)
        ref = SweepRef(record.project, record.request_id)
        return self._sweeps.note_requested(ref, requested)

    def restart_audit(self) -> None:
        """Note that `keyturn.audit` was declared anew: its offsets begin at 0 again."""
        self._audit.restart()
        self.changes.publish("audit")

    def note_audit_finding(self, offset: int, findings: tuple[str, ...]) -> None:
        """Note what is wrong with the audit trail where no record can be read."""
        self._audit.note_findings(offset, findings)
        self.changes.publish("audit")

    def audit_offsets(self) -> tuple[int, int] | None:
        """The offsets of the oldest and the newest audit record that are held."""
        return self._audit.offsets

    def set_audit_has_older(self, *, has_older: bool) -> None:
        """Note whether the stream of the audit trail holds earlier records."""
        self._audit.has_older = has_older
        self.changes.publish("audit")

    def apply_worker(self, report: WorkerReported) -> None:
        """Take over what a worker reports about itself."""
        if self._workers.apply(self._dated(report)):
            self.changes.publish("workers", "queues")

    def apply_queues(self, snapshot: QueueSnapshot) -> None:
        """Take over what the broker says about queues."""
        if self._workers.apply_queues(snapshot):
            self.changes.publish("queues")

    def set_feed(self, feed: Feed) -> None:
        """Note the state of a source."""
        held = self._feeds.get(feed.name)
        if held == feed:
            return
        self._feeds[feed.name] = feed
        self._feed_changes += 1
        # Every page says whether its sources are read, and why not.
        is_news = held is None or _is_read(held) != _is_read(feed)
        self.changes.publish(*(TOPICS if is_news else ()))

    def set_dead(self, summary: DeadSummary) -> None:
        """Take over the index of dead letters."""
        if self._dead != summary:
            self._dead = summary
            self.changes.publish("dead")

    def set_census_running(self, *, is_running: bool) -> None:
        """Note whether this console reads the pages of a census now."""
        if self._census.is_running != is_running:
            self._census.is_running = is_running
            self.changes.publish("master_keys")

    def renew(self, rows: int) -> bool:
        """Compute so many rows of projects that changed; whether more are left.

        They would be computed when a page asks for them: done before, the page is there sooner.
        """
        return self._projects.renew(rows)

    def expire(self) -> None:
        """Forget what is too old; to be called every minute or so."""
        if self._sweeps.expire():
            self.changes.publish("sweeps")
        if self._workers.expire():
            self.changes.publish("workers")

    # What pages ask.

    def projects(self, query: ProjectQuery) -> Page[ProjectRow]:
        """One page of the projects that match."""
        return self._projects.query(query)

    def project(self, name: str) -> ProjectRow | None:
        """One project; None if it is not known."""
        return self._projects.row(name)

    def sweeps(self, query: SweepQuery) -> Page[SweepRow]:
        """One page of the sweeps and rotations that match: those under way, then the newest."""
        return self._sweeps.query(query)

    def sweep(self, sweep_id: str, project: str) -> SweepView | None:
        """One sweep, of a project or of all (`*`); None if it is not known."""
        return self._sweeps.view(SweepRef(project, sweep_id))

    def project_sweeps(self, name: str) -> tuple[SweepRow, ...]:
        """The sweeps and rotations of one project, and its parts of those of all; newest first."""
        return self._sweeps.of_project(name)

    def is_sweep_known(self, ref: SweepRef) -> bool:
        """Whether a report says what was requested of a sweep."""
        return self._sweeps.is_reported(ref)

    def running_sweeps(self) -> tuple[SweepRow, ...]:
        """What is under way; parts of sweeps of all are left out."""
        return tuple(row for row in self._sweeps.running() if not row.part_of_all)

    def evidence(self, project: str) -> EvidenceView:
        """The files of evidence of a project that were read."""
        return self._evidence.view(project)

    def master_keys(self) -> tuple[MasterKeyRow, ...]:
        """The master keys, and what depends on each."""
        chain = self._projects.inventory.chain()
        return self._keys.rows(
            self._projects.rows(),
            self._census.complete,
            running_sweeps=len(self.running_sweeps()),
            is_inventory_complete=chain.is_complete and not self._projects.is_truncated,
            inventory_as_of=chain.as_of,
        )

    def census(self) -> Census:
        """The newest census of objects by key, complete or not."""
        return self._census.newest()

    def complete_census(self) -> Census | None:
        """The newest complete census, by which master keys are judged."""
        return self._census.complete

    def workers(self) -> tuple[WorkerRow, ...]:
        """The worker processes."""
        return self._workers.rows()

    def queues(self) -> tuple[QueueRow, ...]:
        """The queues of requests."""
        return self._workers.queues()

    def queue_depths(self, queue: str) -> tuple[tuple[datetime, int], ...]:
        """The depths of a queue that were seen lately, by time."""
        return self._workers.depths(queue)

    def audit_findings(self) -> tuple[str, ...]:
        """What is wrong with the chains of the audit trail, the newest last."""
        found = sorted(self._audit.findings.items())
        return tuple(finding for _, findings in found for finding in findings)

    def audit(self, query: AuditQuery) -> Page[AuditRow]:
        """One page of the audit records that match, the newest first."""
        return self._audit.query(query)

    def audit_of_request(self, request_id: str) -> tuple[AuditRow, ...]:
        """What the audit trail says about one request."""
        return self._audit.of_request(request_id)

    def dead(self) -> DeadSummary | None:
        """The dead letters by queue and code; None until they were counted."""
        return self._dead

    def feeds(self) -> tuple[Feed, ...]:
        """The sources of all this, and whether they are read."""
        return tuple(self._feeds[name] for name in FEEDS)

    def feed(self, name: FeedName) -> Feed:
        """One source."""
        return self._feeds[name]

    def digest_of_page(self, view: str, project: str, after: str | None) -> str | None:
        """The digest of a page of a report that is held, to name in the next request for it."""
        match view:
            case "projects" if project == ALL_PROJECTS:
                return self._projects.inventory.known(after)
            case "sweeps" if project == ALL_PROJECTS:
                return self._sweeps.inventory.known(after)
            case "master_keys":
                return self._keys.report.known(after)
            case "evidence":
                held = self._evidence.of(project)
                return None if held is None else held.known(after)
            case _:
                return None

    def attention(self) -> tuple[AttentionItem, ...]:
        """What needs a person, the most urgent first."""
        now, held = self.now(), self._attention
        # Uploads change nothing here, and there are many.
        if (
            held is None
            or held.feed_changes != self._feed_changes
            or now - held.at > _ATTENTION_S
            or self.changes.has_changed_since(held.version, _ATTENTION_TOPICS)
        ):
            version, changes = self.changes.version, self._feed_changes
            items = find_attention(self._attention_facts(now))
            held = self._attention = _Attention(version, changes, now, items)
        return held.items

    def _attention_facts(self, now: datetime) -> Facts:
        return Facts(
            now=now,
            started_at=self.started_at,
            feeds={str(feed.name): feed for feed in self.feeds()},
            queues=self.queues(),
            depths=self._workers.depths,
            unsigned_depth=self._workers.unsigned_depth(),
            workers=self.workers(),
            projects=self._projects.rows(),
            running=tuple(self._sweeps.running()),
            ended_of_all=self._sweeps.ended_of_all(),
            moved_at=self._sweeps.moved_at,
            master_keys=self.master_keys(),
            dead=self._dead,
            audit_findings=self._audit.findings,
            notes=self.notes(),
        )

    def notes(self) -> tuple[str, ...]:
        """What was left out, to bound the memory, or was not taken as it came."""
        known = (
            (self._projects.is_truncated, "Not all projects are shown: there are too many."),
            (self._sweeps.is_truncated, "The oldest sweeps are not shown: there are too many."),
            (self._workers.is_truncated, "Not all workers are shown: there are too many."),
            (self._audit.is_truncated, "Only the newest audit records are held."),
            (
                self._census.is_truncated,
                "The count for master keys is incomplete: too many objects.",
            ),
            (self._is_dated_ahead(), "A worker's clock is minutes ahead of this console's."),
        )
        return tuple(text for is_so, text in known if is_so)

    def overview(self) -> Overview:
        """The totals for the header and for *Now*."""
        items = self.attention()
        events, dead = self._feeds["events"], self._dead
        queues = self.queues()
        depths = [row.depth for row in queues if row.depth is not None]
        # The broker's counts are more recent, but miss the letters that a reader holds just now.
        dead_depths = sum(row.dead_depth or 0 for row in queues) + (
            self._workers.unsigned_depth() or 0
        )
        chain = self._projects.inventory.chain()
        return Overview(
            broker_lost_at=None if events.is_connected else events.since or self.started_at,
            projects=len(self._projects),
            is_inventory_complete=chain.is_complete and not self._projects.is_truncated,
            sweeps_running=len(self.running_sweeps()),
            workers=sum(row.is_present for row in self.workers()),
            backlog=sum(depths) if depths else None,
            dead_letters=None if dead is None else max(dead.total, dead_depths),
            act=sum(item.severity == "act" for item in items),
            soon=sum(item.severity == "soon" for item in items),
            history_from=self._feeds["history"].behind,
            notes=self.notes(),
            as_of=self._newest(),
        )

    def _newest(self) -> datetime | None:
        return max((at for each in self.feeds() if (at := each.as_of) is not None), default=None)

    def series(self, name: str, since: datetime, buckets: int) -> list[tuple[datetime, float]]:
        """A series of the history, by minute, from `since` until now; also `rewrapped`.

        Args:
            name: One of those of `History`, or `rewrapped`.
            since: Where it begins.
            buckets: How many points at most.
        """
        if name != REWRAPPED:
            return self.history.series(name, since, buckets)
        return spread(self._rewrapped_minutes(), since, self.now(), buckets)

    def _rewrapped_minutes(self) -> dict[int, int]:
        """How many objects were wrapped anew in each minute, by the progress of sweeps."""
        now = self.now()
        held = self._rewrapped
        if held is None or (held[0] != self.changes.version and now - held[1] > _REFRESHED_AFTER):
            first = int((now - self._length).timestamp())
            minutes: dict[int, int] = {}
            for samples in self._sweeps.all_samples():
                before = 0
                for at, _, rewrapped in samples.ordered():
                    if rewrapped > before and at >= first:
                        minute = int(at) // MINUTE_S
                        minutes[minute] = minutes.get(minute, 0) + rewrapped - before
                    before = max(before, rewrapped)
            held = self._rewrapped = (self.changes.version, now, minutes)
        return held[2]

    def sizes(self) -> dict[str, int]:
        """How much is held of what, for tests and measurements of the memory."""
        return {
            "projects": len(self._projects),
            "sweeps": len(self._sweeps),
            "samples": sum(map(len, self._sweeps.all_samples())),
            "workers": len(self._workers),
            "audit": len(self._audit),
            "history": self.history.size,
            "ranges": len(self._offsets.ranges),
        }


_REFRESHED_AFTER: Final = timedelta(seconds=2)
