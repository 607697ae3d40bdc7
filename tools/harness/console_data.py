"""A console's model filled with made-up messages: for tests of pages, pictures and measurements.

Nothing is signed, and no server runs: what a console would have read is applied to its model. All
of it follows from the numbers that are given, so that two models are the same.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from keyturn.identifiers import format_time
from keyturn.messages import (
    AuditRecorded,
    Counts,
    EvidenceStatus,
    MasterKeyStatus,
    ProjectEnrolled,
    ProjectStatus,
    QueueReport,
    RotationAccepted,
    StatusReported,
    SweepCompleted,
    SweepFailed,
    SweepProgressed,
    SweepStatus,
    UploadRejected,
    UploadStored,
    WorkerReported,
)
from keyturn_workers.console.model import Model
from keyturn_workers.console.model.rows import (
    DeadCount,
    DeadSummary,
    Feed,
    QueueDepth,
    QueueSnapshot,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyturn_workers.console.model.rows import FeedName

PUBLISHER: Final = "console"
NOW: Final = datetime(2026, 11, 26, 9, 30, 12, tzinfo=UTC)
HOSTILE: Final = "<script>window.pwned=1</script>\"'>\u202egnp.exe\x00 \u200b"
"""Text that must stay text."""
HOSTILE_KEY: Final = HOSTILE.replace("\x00", "")
"""The same as an object key, which has no control characters."""
LONG_PROJECT: Final = "a-project-with-the-longest-name-that-the-specification-allows-0"
_NAMES: Final = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "tyrell")
_CODES: Final = ("bad_seal", "not_permitted", "request_expired", "already_exists", "bad_seal")
_PAGE: Final = 200
_FEEDS: Final[tuple[FeedName, ...]] = (
    "events", "history", "reports", "workers", "audit", "queues", "status",
)  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How much there is of what."""

    projects: int = 240
    sweeps: int = 120
    uploads: int = 3000
    workers: int = 5
    records: int = 260


def made_up_id(name: str) -> str:
    """An id that follows from a name."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def digest(name: str) -> str:
    """A digest that follows from a name."""
    return hashlib.sha256(name.encode()).hexdigest()


def project_name(number: int) -> str:
    """The id of a project."""
    name = _NAMES[number % len(_NAMES)]
    return name if number < len(_NAMES) else f"{name}-{number:05}"


def empty_model(now: datetime | None = NOW, *, age: timedelta = timedelta()) -> Model:
    """A model that has read nothing, of a console that began a while ago.

    Args:
        now: At which its clock stands still; None for the time of day.
        age: How long ago the console began.
    """
    clock = _Clock(now, age)
    model = Model(PUBLISHER, now=clock)
    clock.age = timedelta()
    return model


@dataclass
class _Clock:
    stopped_at: datetime | None
    age: timedelta

    def __call__(self) -> datetime:
        return (self.stopped_at or datetime.now(UTC)) - self.age


def filled_model(scale: Scale = Scale(), *, now: datetime | None = NOW) -> Model:
    """A model of a deployment that has lived a little."""
    model = empty_model(now, age=timedelta(hours=3))
    maker = _Maker(model, scale, model.now())
    maker.feeds()
    maker.projects()
    maker.sweeps()
    maker.uploads()
    maker.workers()
    maker.audit()
    maker.dead_letters()
    return model


def go_on(model: Model, number: int) -> None:
    """Let the next thing happen: a few uploads, an enrollment, and the queues are looked at."""
    maker = _Maker(model, Scale(), model.now())
    maker.offset = 10**6 + 10 * number
    for each in range(5):
        maker.upload(10**6 + 5 * number + each, maker.ago(seconds=0))
    maker.enrollment(f"new-{number:05}")
    model.apply_queues(maker.queues_at(0))


def projects_report(
    rows: tuple[ProjectStatus, ...] = (),
    *,
    after: str | None = None,
    next_: str | None = None,
    at: datetime = NOW,
) -> StatusReported:
    """One page of the inventory."""
    return StatusReported(
        at=format_time(at),
        publisher=PUBLISHER,
        request_id=made_up_id(f"projects {after}"),
        project="*",
        view="projects",
        after=after,
        next=next_,
        digest=digest(f"projects {after}"),
        projects=rows,
    )


def report_record() -> AuditRecorded:
    """The record of a request for a report, as each console makes many."""
    return AuditRecorded(
        at=format_time(NOW),
        process=made_up_id("process of reports"),
        counter=1,
        previous=None,
        audit_id=made_up_id("record of a report"),
        role="worker control",
        host="worker-2.internal",
        action="request.served",
        actor=PUBLISHER,
        publisher=PUBLISHER,
        request=digest("report"),
        request_type="status.requested",
        request_id=made_up_id("report"),
        project="*",
        outcome="done",
    )


def lose_broker(model: Model, since: datetime) -> None:
    """Let all sources be away."""
    for feed in model.feeds():
        model.set_feed(Feed(feed.name, problem="connection refused", since=since, as_of=feed.as_of))


class _Maker:
    def __init__(self, model: Model, scale: Scale, now: datetime) -> None:
        self.model = model
        self.scale = scale
        self.now = now
        self.offset = 0

    def ago(self, **age: float) -> str:
        return format_time(self.now - timedelta(**age))

    def next_offset(self) -> int:
        self.offset += 1
        return self.offset

    def feeds(self) -> None:
        for name in _FEEDS:
            self.model.set_feed(
                Feed(
                    name,
                    is_connected=True,
                    is_caught_up=True,
                    since=self.now - timedelta(hours=3),
                    as_of=self.now - timedelta(seconds=2),
                    behind=self.now - timedelta(days=1) if name == "history" else None,
                    progress=1.0 if name == "history" else None,
                    refused=3 if name == "workers" else 0,
                )
            )

    def projects(self) -> None:
        rows = sorted(
            (self._project(number) for number in range(self.scale.projects)),
            key=lambda row: row.project,
        )
        after = None
        for begin in range(0, len(rows), _PAGE):
            part = tuple(rows[begin : begin + _PAGE])
            last = part[-1].project if begin + _PAGE < len(rows) else None
            read_at = self.now - timedelta(seconds=40)
            self.model.apply_report(projects_report(part, after=after, next_=last, at=read_at))
            after = last
        self.model.apply_report(
            StatusReported(
                at=self.ago(seconds=40),
                publisher=PUBLISHER,
                request_id=made_up_id("master keys"),
                project="*",
                view="master_keys",
                master_keys=(
                    MasterKeyStatus(master_key="m2", provider="pkcs11", active=True),
                    MasterKeyStatus(master_key="m1", provider="local", active=False),
                ),
            )
        )

    def _project(self, number: int) -> ProjectStatus:
        name = LONG_PROJECT if number == 11 else project_name(number)
        if number == 5:
            return ProjectStatus(
                project=name, code="unknown_master_key", detail=f"master key {HOSTILE}"
            )
        generation = 1 + number % 5
        return ProjectStatus(
            project=name,
            generation=generation,
            kek_id=digest(f"kek {number}")[:32],
            master_key="m1" if number % 9 == 4 else "m2",
            plaintext=number % 20 == 7,
            v0=number % 30 == 9,
            earlier_keks=number % 3 if number % 4 == 0 else 0,
            enrolled_at=self.ago(days=900 - number % 400),
            rotated_at=self.ago(days=number * 37 % 380, hours=2) if generation > 1 else None,
            evidence=digest(f"evidence {name} {generation}") if generation > 1 else None,
        )

    def sweeps(self) -> None:
        for number in range(self.scale.sweeps):
            self._ended_sweep(number)
        self._running("umbrella", "rotation", 48_000, 0.61)
        self._running("wayne", "sweep", 9_500, 0.13)
        self.model.apply_event(
            SweepFailed(
                at=self.ago(minutes=50),
                publisher="ops",
                request=digest("failed sweep"),
                sweep_id=made_up_id("failed sweep"),
                project="hooli",
                code="lease_mismatch",
                detail="LEASE_S is 60 here and 120 in the record",
            ),
            self.next_offset(),
        )

    def _ended_sweep(self, number: int) -> None:
        failed = 4 if number % 11 == 3 else 0
        counts = _counts(500 + number * 7, failed=failed)
        # The newest ones come last; each project has its turn.
        age_s = 3600 + (self.scale.sweeps - number) * 90
        project = project_name(number)
        self.model.apply_event(
            SweepCompleted.model_validate(
                counts
                | {
                    "at": self.ago(seconds=age_s),
                    "publisher": "ops",
                    "request": digest(f"sweep {number}"),
                    "sweep_id": made_up_id(f"sweep {number}"),
                    "project": project,
                    "clean": not failed,
                    "evidence": None if failed else digest(f"evidence {project} {1 + number % 5}"),
                }
            ),
            self.next_offset(),
        )

    def _running(self, project: str, kind: str, total: int, part: float) -> None:
        sweep_id = made_up_id(f"running {project}")
        if kind == "rotation":
            self.model.apply_event(
                RotationAccepted(
                    at=self.ago(minutes=11),
                    publisher="api",
                    request=digest(sweep_id),
                    rotation_id=sweep_id,
                    project=project,
                    generation=3,
                ),
                self.next_offset(),
            )
        steps = 40
        for step in range(steps):
            share = part * (step + 1) / steps * (1 + 0.06 * math.sin(step))
            done = int(total * min(share, part))
            self.model.apply_event(
                SweepProgressed.model_validate(
                    _counts(done, rewrapped=done * 9 // 10)
                    | {
                        "at": self.ago(seconds=(steps - step) * 15),
                        "publisher": "api" if kind == "rotation" else PUBLISHER,
                        "request": digest(sweep_id),
                        "sweep_id": sweep_id,
                        "project": project,
                        "clean": False,
                    }
                ),
                self.next_offset(),
            )
        self.model.apply_report(
            StatusReported(
                at=self.ago(seconds=8),
                publisher=PUBLISHER,
                request_id=made_up_id(f"report {project}"),
                project=project,
                view="sweep",
                sweep_id=sweep_id,
                sweeps=(self._running_status(project, kind, total, part, sweep_id),),
            )
        )

    def _running_status(
        self, project: str, kind: str, total: int, part: float, sweep_id: str
    ) -> SweepStatus:
        done = int(total * part)
        return SweepStatus(
            sweep_id=sweep_id,
            project=project,
            kind="rotation" if kind == "rotation" else "sweep",
            status="running",
            counts=Counts(**_counts(done, rewrapped=done * 9 // 10)),
            requested_at=self.ago(minutes=11),
            started_at=self.ago(minutes=10),
            publisher="api" if kind == "rotation" else PUBLISHER,
            generation=3,
            expected_objects=total,
            rate_per_s=done / 600,
            left_s=(total - done) / (done / 600),
            pages=total // 500,
            pages_open=(total - done) // 500,
        )

    def uploads(self) -> None:
        for number in range(self.scale.uploads):
            share = number / self.scale.uploads
            # More by day than by night.
            age_s = 86_000 * (1 - share) * (1 - 0.25 * math.sin(share * 9))
            self.upload(number, self.ago(seconds=max(1, age_s)))

    def upload(self, number: int, at: str) -> None:
        project = project_name(number % 50)
        upload_id = made_up_id(f"upload {number}")
        common: dict[str, Any] = {
            "at": at,
            "publisher": "api",
            "request": digest(upload_id),
            "upload_id": upload_id,
            "project": project,
        }
        if number % 23 == 5:
            code = _CODES[number % len(_CODES)]
            event = UploadRejected(**common, code=code, detail="the body does not open")
            self.model.apply_event(event, self.next_offset())
            return
        key = f"2026/11/{number:06}.pdf"
        stored = UploadStored(**common, key=key, size=40_000, generation=1 + number % 5)
        self.model.apply_event(stored, self.next_offset())

    def enrollment(self, project: str) -> None:
        self.model.apply_event(
            ProjectEnrolled(
                at=self.ago(seconds=0),
                publisher="api",
                request=digest(project),
                request_id=made_up_id(project),
                project=project,
                generation=1,
            ),
            self.next_offset(),
        )

    def workers(self) -> None:
        roles = (("upload",), ("upload",), ("control",), ("sweep",), ("upload", "control", "sweep"))
        for number in range(self.scale.workers):
            for age_s in (18, 3):
                self.model.apply_worker(self._worker(number, roles[number % len(roles)], age_s))
        for age_s in range(300, -1, -10):
            self.model.apply_queues(self.queues_at(age_s))

    def _worker(self, number: int, roles: tuple[str, ...], age_s: float) -> WorkerReported:
        is_old = number == self.scale.workers - 1
        if number == 1:
            age_s += 300
        served = 90_000 - int(age_s * (4 + number))
        return WorkerReported(
            at=self.ago(seconds=age_s),
            worker_id=made_up_id(f"worker {number}"),
            roles=roles,
            host=HOSTILE_KEY if number == 4 else f"worker-{number}.internal",
            version="0.8.2" if is_old else "0.9.0",
            started_at=self.ago(hours=30 + number),
            interval_s=15,
            lease_s=120 if is_old else 60,
            is_clock_known=number != 3,
            active_master_key="m2",
            master_keys=("m1", "m2"),
            event_keys=("8f3c2a71",),
            intake_keys=("main",),
            queues=tuple(
                QueueReport(
                    queue=f"keyturn.{role}",
                    served=served,
                    refused=40,
                    retried=3,
                    in_flight=number % 4,
                    oldest_s=0.4,
                    waited_s=2.5 + number,
                )
                for role in roles
            ),
        )

    def queues_at(self, age_s: float) -> QueueSnapshot:
        wave = 1 + math.sin(age_s / 40)
        depths = {
            "keyturn.upload": QueueDepth("keyturn.upload", int(40 * wave), 8),
            "keyturn.control": QueueDepth("keyturn.control", 0, 1),
            "keyturn.sweep": QueueDepth("keyturn.sweep", int(300 - age_s), 2),
            "keyturn.plan": QueueDepth("keyturn.plan", 1, 0),
            "keyturn.upload.dead": QueueDepth("keyturn.upload.dead", 131, 0),
            "keyturn.control.dead": QueueDepth("keyturn.control.dead", 2, 0),
            "keyturn.sweep.dead": QueueDepth("keyturn.sweep.dead", 0, 0),
        }
        return QueueSnapshot(self.now - timedelta(seconds=age_s), tuple(depths.values()))

    def audit(self) -> None:
        for number in range(self.scale.records):
            findings = ("record 118 of this process is missing",) if number == 200 else ()
            self.model.apply_audit(self._record(number), number, findings)

    def _record(self, number: int) -> AuditRecorded:
        outcome = "not_permitted" if number % 9 == 4 else "done"
        document: dict[str, Any] = {
            "at": self.ago(minutes=(self.scale.records - number) * 4),
            "process": made_up_id("process"),
            "counter": number + 1,
            "previous": digest(f"record {number - 1}") if number else None,
            "audit_id": made_up_id(f"record {number}"),
            "project": project_name(number % 120),
            "outcome": outcome,
        }
        if number % 13 == 5:
            document |= {
                "role": "download",
                "host": "bastion.internal",
                "action": "object.opened_as_operator",
                "actor": "ada@bastion",
                "object_key": HOSTILE_KEY if number % 2 else "2026/11/report.pdf",
                "master_key": "m2",
                "kind": "admin",
                "reason": "ticket 4711: the customer asked for it",
            }
            return AuditRecorded.model_validate(document)
        is_sweep = number % 3 == 0
        document |= {
            "role": "worker control",
            "host": "worker-2.internal",
            "action": "request.refused" if outcome != "done" else "request.served",
            "actor": ("ada", "grace", "api")[number % 3],
            "publisher": ("console", "console", "api")[number % 3],
            "request": digest(f"audit {number}"),
            "request_type": "sweep.requested" if is_sweep else "delete.requested",
            # A third of them is about the sweeps that have ended.
            "request_id": made_up_id(f"sweep {number % 120}" if is_sweep else f"audit {number}"),
        }
        if not is_sweep:
            document["object_key"] = f"2026/11/{number:06}.pdf"
        return AuditRecorded.model_validate(document)

    def dead_letters(self) -> None:
        self.model.set_dead(
            DeadSummary(
                counts=(
                    DeadCount("keyturn.upload.dead", "bad_seal", 92, self.now),
                    DeadCount("keyturn.upload.dead", "request_expired", 39, self.now),
                    DeadCount("keyturn.control.dead", "not_permitted", 2, self.now),
                ),
                total=133,
                as_of=self.now - timedelta(seconds=4),
                is_complete=True,
            )
        )


def _counts(objects: int, *, failed: int = 0, rewrapped: int = 0) -> dict[str, Any]:
    return {
        "objects": objects,
        "rewrapped": rewrapped,
        "current": objects - failed,
        "plaintext": 0,
        "encrypted": 0,
        "deleted": objects // 100,
        "foreign": 0,
        "failed": failed,
        "noncurrent_stale": 0,
    }


def evidence_files(project: str, now: datetime = NOW) -> Iterator[EvidenceStatus]:
    """The evidence of a project, the last file of which does not verify."""
    for generation in range(2, 5):
        name = f"evidence {project} {generation}"
        is_bad = generation == 4
        yield EvidenceStatus(
            project=project,
            generation=generation,
            sweep_id=made_up_id(name),
            at=format_time(now - timedelta(days=400 - generation * 90)),
            digest=digest(name),
            envelope=None if is_bad else f'{{"payload":"{generation}"}}',
            code="bad_signature" if is_bad else None,
        )


def add_evidence(model: Model, project: str, now: datetime = NOW) -> None:
    """Let the model have read a project's evidence."""
    model.apply_report(
        StatusReported(
            at=format_time(now - timedelta(seconds=20)),
            publisher=PUBLISHER,
            request_id=made_up_id(f"evidence of {project}"),
            project=project,
            view="evidence",
            evidence_files=tuple(evidence_files(project, now)),
        )
    )
