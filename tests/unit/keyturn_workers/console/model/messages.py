"""Events, reports and records for tests of the model, with times as seconds after `T0`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from keyturn.identifiers import format_time
from keyturn.messages import (
    AuditRecorded,
    FailureStatus,
    MasterKeyStatus,
    ObjectGroupStatus,
    ProjectEnrolled,
    ProjectStatus,
    QueueReport,
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    StatusReported,
    SweepCompleted,
    SweepProgressed,
    SweepRejected,
    SweepStatus,
    UploadRejected,
    UploadStored,
    WorkerReported,
)
from keyturn_workers.console.model import Model

T0 = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
CONSOLE = "console"
DIGEST = "ab" * 32
COUNTS: dict[str, Any] = {
    "objects": 0,
    "rewrapped": 0,
    "current": 0,
    "plaintext": 0,
    "encrypted": 0,
    "deleted": 0,
    "foreign": 0,
    "failed": 0,
    "noncurrent_stale": 0,
}


class Clock:
    """A clock that a test sets, in seconds after `T0`."""

    def __init__(self, at_s: float = 0) -> None:
        self.now = at(at_s)

    def __call__(self) -> datetime:
        return self.now

    def set(self, at_s: float) -> None:
        self.now = at(at_s)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def text(seconds: float) -> str:
    return format_time(at(seconds))


def uid(number: int) -> str:
    return str(UUID(int=number))


def make_model(clock: Clock | None = None) -> Model:
    return Model(CONSOLE, now=clock or Clock(60))


def stored(seconds: float, project: str = "acme", size: int = 10) -> UploadStored:
    return UploadStored(
        at=text(seconds),
        publisher="shop",
        request=DIGEST,
        upload_id=uid(1),
        project=project,
        key="a.txt",
        size=size,
        generation=1,
    )


def upload_rejected(seconds: float, code: str = "already_exists") -> UploadRejected:
    return UploadRejected(
        at=text(seconds), upload_id=uid(1), project="acme", code=code, detail="refused"
    )


def enrolled(seconds: float, project: str = "acme", generation: int = 1) -> ProjectEnrolled:
    return ProjectEnrolled(
        at=text(seconds), request_id=uid(2), project=project, generation=generation
    )


def accepted(
    seconds: float, project: str = "acme", generation: int = 2, rotation: int = 3
) -> RotationAccepted:
    return RotationAccepted(
        at=text(seconds),
        publisher="shop",
        rotation_id=uid(rotation),
        project=project,
        generation=generation,
    )


def progressed(
    seconds: float, project: str = "acme", sweep: int = 3, *, clean: bool = False, **counts: int
) -> SweepProgressed:
    return SweepProgressed(
        at=text(seconds),
        publisher="shop",
        sweep_id=uid(sweep),
        project=project,
        clean=clean,
        **(COUNTS | counts),
    )


def rotation_completed(
    seconds: float,
    project: str = "acme",
    rotation: int = 3,
    *,
    clean: bool = True,
    evidence: str | None = DIGEST,
    **counts: int,
) -> RotationCompleted:
    return RotationCompleted(
        at=text(seconds),
        publisher="shop",
        rotation_id=uid(rotation),
        project=project,
        clean=clean,
        late_writes_refused=True,
        evidence=evidence if clean else None,
        **(COUNTS | counts),
    )


def rotation_failed(
    seconds: float, project: str = "acme", rotation: int = 3, code: str = "corrupt_object"
) -> RotationFailed:
    return RotationFailed(
        at=text(seconds), rotation_id=uid(rotation), project=project, code=code, detail="broken"
    )


def sweep_completed(
    seconds: float,
    project: str = "acme",
    sweep: int = 4,
    *,
    clean: bool = True,
    late_writes_refused: bool | None = True,
    evidence: str | None = None,
    **counts: int,
) -> SweepCompleted:
    return SweepCompleted(
        at=text(seconds),
        publisher="shop",
        sweep_id=uid(sweep),
        project=project,
        clean=clean,
        late_writes_refused=late_writes_refused,
        evidence=evidence,
        **(COUNTS | counts),
    )


def sweep_rejected(seconds: float, project: str | None = "acme", sweep: int = 4) -> SweepRejected:
    return SweepRejected(
        at=text(seconds),
        sweep_id=uid(sweep),
        project=project,
        code="unknown_project",
        detail="no keyring",
    )


def report(seconds: float, view: Any, **fields: Any) -> StatusReported:
    values: dict[str, Any] = {
        "at": text(seconds),
        "publisher": CONSOLE,
        "request": DIGEST,
        "request_id": uid(9),
        "project": "*",
        "view": view,
    }
    return StatusReported(**(values | fields))


def project_status(name: str, generation: int = 1, **fields: Any) -> ProjectStatus:
    values: dict[str, Any] = {
        "project": name,
        "generation": generation,
        "kek_id": f"{generation:016x}",
        "master_key": "main",
        "plaintext": False,
        "v0": False,
        "earlier_keks": 0,
        "enrolled_at": text(-1000),
    }
    return ProjectStatus(**(values | fields))


def projects_report(
    seconds: float, *rows: ProjectStatus, digest: str | None = DIGEST, **fields: Any
) -> StatusReported:
    return report(seconds, "projects", projects=rows, digest=digest, **fields)


def sweep_status(
    project: str = "acme", sweep: int = 4, status: Any = "running", **fields: Any
) -> SweepStatus:
    values: dict[str, Any] = {
        "sweep_id": uid(sweep),
        "project": project,
        "kind": "sweep",
        "status": status,
        "publisher": "shop",
        "requested_at": text(-10),
        "started_at": text(-9),
    }
    return SweepStatus(**(values | fields))


def sweeps_report(seconds: float, *rows: SweepStatus, **fields: Any) -> StatusReported:
    return report(seconds, "sweeps", sweeps=rows, digest=DIGEST, **fields)


def failures_report(
    seconds: float, *keys: str, sweep: int = 4, project: str = "acme", **fields: Any
) -> StatusReported:
    rows = tuple(FailureStatus(project=project, key=key, code="corrupt_object") for key in keys)
    return report(
        seconds, "failures", project=project, sweep_id=uid(sweep), failures=rows, **fields
    )


def objects_report(
    seconds: float, *groups: tuple[str, str | None, int], **fields: Any
) -> StatusReported:
    rows = tuple(
        ObjectGroupStatus(kind=kind, master_key=key, count=count)  # type: ignore[arg-type]
        for kind, key, count in groups
    )
    return report(seconds, "objects", objects=rows, **fields)


def keys_report(seconds: float, *names: str, active: str = "main") -> StatusReported:
    rows = tuple(
        MasterKeyStatus(master_key=name, provider="local", active=name == active) for name in names
    )
    return report(seconds, "master_keys", master_keys=rows, digest=DIGEST)


def worker(
    seconds: float,
    number: int = 1,
    *,
    served: int = 0,
    queue: str = "keyturn.upload",
    **fields: Any,
) -> WorkerReported:
    values: dict[str, Any] = {
        "at": text(seconds),
        "worker_id": uid(number),
        "roles": ("upload",),
        "host": f"node-{number}",
        "version": "0.9.0",
        "started_at": text(-100),
        "interval_s": 15.0,
        "lease_s": 15,
        "is_clock_known": True,
        "active_master_key": "main",
        "master_keys": ("main",),
        "event_keys": ("e1",),
        "intake_keys": ("main",),
        "queues": (
            QueueReport(
                queue=queue, served=served, refused=0, retried=0, in_flight=0, waited_s=2.0
            ),
        ),
    }
    return WorkerReported(**(values | fields))


def audit_record(seconds: float, counter: int = 1, **fields: Any) -> AuditRecorded:
    values: dict[str, Any] = {
        "at": text(seconds),
        "process": uid(7),
        "counter": counter,
        "previous": None if counter == 1 else DIGEST,
        "audit_id": uid(100 + counter),
        "role": "worker control",
        "host": "node-1",
        "action": "request.served",
        "actor": "shop",
        "publisher": "shop",
        "project": "acme",
        "outcome": "done",
    }
    return AuditRecorded(**(values | fields))
