"""Events, published by workers and read by publishers (SPEC 6.7). Pure."""

from typing import Annotated, Final, Literal

from pydantic import Field

from keyturn.counts import Counts
from keyturn.messages.fields import (
    Code,
    Count,
    DeadLetterQueue,
    DeadLettersAction,
    EventModel,
    Generation,
    Key,
    Project,
    RequestDigest,
    RequestId,
    Rows,
)
from keyturn.messages.status import (
    AttentionStatus,
    AuditStatus,
    CodeCount,
    Cursor,
    DeadLetterStatus,
    DeadQueueStatus,
    EvidenceStatus,
    FailureStatus,
    MasterKeyStatus,
    ObjectGroupStatus,
    ProjectStatus,
    QueueStatus,
    StatusView,
    SweepStatus,
    TotalsStatus,
    WorkerStatus,
)
from keyturn.progress import Progress


class RejectedModel(EventModel):
    """The common fields of all rejections."""

    # As sent: a rejected request may not even have a well-formed project.
    project: str | None
    code: Code
    detail: str


class _Failed(EventModel):
    project: Project | Literal["*"]
    code: Code
    detail: str


class _Completed(EventModel):
    # A premise of the proof: this storage refuses writes after their lease, and no worker saw its
    # clocks contradict each other (SPEC 8.4).
    late_writes_refused: bool | None = None
    # The digest of the evidence of a clean end (SPEC 15.1). The end of a sweep of `*` has none:
    # each project's part leaves its own.
    evidence: RequestDigest | None = None


class CountedEvent(EventModel):
    """An event of a sweep, with the counts of SPEC 8.6.

    `objects` counts all keys of the last pass except `foreign`; `rewrapped` and `encrypted` are
    totals of the whole sweep; the others are of the last pass. `clean` is the result at the end;
    while the sweep is in progress nothing is proven yet, and it is false.
    """

    objects: Count
    rewrapped: Count
    current: Count
    plaintext: Count
    encrypted: Count
    deleted: Count
    foreign: Count
    failed: Count
    noncurrent_stale: Count
    clean: bool

    @property
    def counts(self) -> Counts:
        """The counts as one value."""
        return Counts(**{name: getattr(self, name) for name in Counts.model_fields})


class ProjectEnrolled(EventModel):
    """The project has a keyring."""

    type: Literal["project.enrolled"] = "project.enrolled"
    request_id: RequestId
    project: Project
    generation: Generation


class EnrollRejected(RejectedModel):
    """The enrollment was refused."""

    type: Literal["enroll.rejected"] = "enroll.rejected"
    request_id: RequestId


class UploadStored(EventModel):
    """The object is stored, with wraps of this generation; `size` is in bytes of plaintext."""

    type: Literal["upload.stored"] = "upload.stored"
    upload_id: RequestId
    project: Project
    key: Key
    size: Count
    generation: Generation


class UploadRejected(RejectedModel):
    """The upload was refused."""

    type: Literal["upload.rejected"] = "upload.rejected"
    upload_id: RequestId


class RotationAccepted(EventModel):
    """The keyring is at this generation; the sweep begins (SPEC 8.1)."""

    type: Literal["rotation.accepted"] = "rotation.accepted"
    rotation_id: RequestId
    project: Project
    generation: Generation


class RotationFailed(_Failed):
    """The rotation was accepted, but its sweep cannot end; an operator must act (SPEC 6.7)."""

    type: Literal["rotation.failed"] = "rotation.failed"
    rotation_id: RequestId


class RotationCompleted(CountedEvent, _Completed):
    """The rotation's sweep has ended (SPEC 8.1); only `clean` says that no old wrap is left."""

    type: Literal["rotation.completed"] = "rotation.completed"
    rotation_id: RequestId
    project: Project


class RotationRejected(RejectedModel):
    """The rotation was refused."""

    type: Literal["rotation.rejected"] = "rotation.rejected"
    rotation_id: RequestId


class SweepProgressed(CountedEvent):
    """How far a sweep of one project is; a rotation's has its `rotation_id` as `sweep_id`."""

    type: Literal["sweep.progressed"] = "sweep.progressed"
    sweep_id: RequestId
    project: Project
    # Absent from workers of earlier versions.
    progress: Progress | None = None


class SweepFailed(_Failed):
    """The sweep has begun, but cannot end; an operator must act (SPEC 6.7)."""

    type: Literal["sweep.failed"] = "sweep.failed"
    sweep_id: RequestId


class SweepCompleted(CountedEvent, _Completed):
    """The sweep of one project, or with `*` of all, has ended; then the counts are sums."""

    type: Literal["sweep.completed"] = "sweep.completed"
    sweep_id: RequestId
    project: Project | Literal["*"]


class SweepRejected(RejectedModel):
    """The sweep was refused."""

    type: Literal["sweep.rejected"] = "sweep.rejected"
    sweep_id: RequestId


class ObjectDeleted(EventModel):
    """A tombstone has replaced the object (SPEC 8.7)."""

    type: Literal["object.deleted"] = "object.deleted"
    request_id: RequestId
    project: Project
    key: Key


class DeleteRejected(RejectedModel):
    """The delete of `key` was refused, or of every key of the request if `key` is absent."""

    type: Literal["delete.rejected"] = "delete.rejected"
    request_id: RequestId
    key: Key | None = None


class StatusReported(EventModel):
    """One page of what a control worker found (SPEC 16.1).

    It goes to the stream of its publisher alone. The field of the view is set, unless the page
    could not be read.

    Attributes:
        view: What was requested.
        sweep_id: As requested.
        at: When reading began: what the report says was so then.
        page: As requested.
        total: How many rows match the filter.
        of_all: How many rows there are without the filter.
        is_complete: Whether nothing was left out: no bound was reached, and all has been read.
        next: Where the next page of `objects` begins; absent on the last one.
        code: Why nothing could be read, such as `storage_unavailable`; then there are no rows.
        codes: Of `failures` and `dead_letters`, how many there are of each code.
        findings: Of `audit`, what is wrong with the trail where no record can be read.
    """

    type: Literal["status.reported"] = "status.reported"
    request_id: RequestId
    project: Project | Literal["*"]
    view: StatusView
    sweep_id: RequestId | None = None
    page: Annotated[int, Field(ge=1)] | None = None
    total: Count | None = None
    of_all: Count | None = None
    is_complete: bool | None = None
    next: Cursor | None = None
    code: Code | None = None
    detail: str | None = None
    projects: Rows[ProjectStatus] | None = None
    sweeps: Rows[SweepStatus] | None = None
    failures: Rows[FailureStatus] | None = None
    evidence_files: Rows[EvidenceStatus] | None = None
    master_keys: Rows[MasterKeyStatus] | None = None
    objects: Rows[ObjectGroupStatus] | None = None
    workers: Rows[WorkerStatus] | None = None
    queues: Rows[QueueStatus] | None = None
    totals: Rows[TotalsStatus] | None = None
    attention: Rows[AttentionStatus] | None = None
    audit_records: Rows[AuditStatus] | None = None
    dead_letters: Rows[DeadLetterStatus] | None = None
    dead_queues: Rows[DeadQueueStatus] | None = None
    codes: Rows[CodeCount] | None = None
    findings: Rows[str] | None = None


class StatusRejected(RejectedModel):
    """The request for a report was refused."""

    type: Literal["status.rejected"] = "status.rejected"
    request_id: RequestId


class DeadLettersMoved(EventModel):
    """The dead letters that a request selects were replayed or discarded (SPEC 16.1).

    Attributes:
        queue: The dead-letter queue.
        moved: Letters that were moved by the last delivery of the request. One that was redelivered
            may have moved others before.
        left: Selected letters that stay in the queue.
        code, detail: Why the first of those stays.
    """

    type: Literal["dead_letters.moved"] = "dead_letters.moved"
    request_id: RequestId
    project: Literal["*"]
    queue: DeadLetterQueue
    action: DeadLettersAction
    moved: Count
    left: Count
    code: Code | None = None
    detail: str | None = None


class DeadLettersRejected(RejectedModel):
    """The request to move dead letters was refused."""

    type: Literal["dead_letters.rejected"] = "dead_letters.rejected"
    request_id: RequestId


class ProjectRecovered(EventModel):
    """The project's keyring is in use again, at this generation and serial (SPEC 5.5)."""

    type: Literal["project.recovered"] = "project.recovered"
    request_id: RequestId
    project: Project
    generation: Generation
    serial: Count


class RecoverRejected(RejectedModel):
    """The recovery was refused."""

    type: Literal["recover.rejected"] = "recover.rejected"
    request_id: RequestId


class ProjectErased(EventModel):
    """The project was erased at this generation; `evidence` is the digest of the evidence."""

    type: Literal["project.erased"] = "project.erased"
    request_id: RequestId
    project: Project
    generation: Generation
    evidence: RequestDigest


class EraseRejected(RejectedModel):
    """The erasure was refused, at once or after the stores were asked; nothing has changed."""

    type: Literal["erase.rejected"] = "erase.rejected"
    request_id: RequestId


Event = (
    ProjectEnrolled
    | EnrollRejected
    | UploadStored
    | UploadRejected
    | RotationAccepted
    | RotationRejected
    | RotationCompleted
    | RotationFailed
    | SweepProgressed
    | SweepCompleted
    | SweepFailed
    | SweepRejected
    | ObjectDeleted
    | DeleteRejected
    | StatusReported
    | StatusRejected
    | DeadLettersMoved
    | DeadLettersRejected
    | ProjectRecovered
    | RecoverRejected
    | ProjectErased
    | EraseRejected
)
Failed = RotationFailed | SweepFailed
Rejected = (
    EnrollRejected
    | UploadRejected
    | RotationRejected
    | SweepRejected
    | DeleteRejected
    | StatusRejected
    | DeadLettersRejected
    | RecoverRejected
    | EraseRejected
)
EVENT_MODELS: Final[dict[str, type[EventModel]]] = {
    "project.enrolled": ProjectEnrolled,
    "enroll.rejected": EnrollRejected,
    "upload.stored": UploadStored,
    "upload.rejected": UploadRejected,
    "rotation.accepted": RotationAccepted,
    "rotation.rejected": RotationRejected,
    "rotation.completed": RotationCompleted,
    "rotation.failed": RotationFailed,
    "sweep.progressed": SweepProgressed,
    "sweep.completed": SweepCompleted,
    "sweep.failed": SweepFailed,
    "sweep.rejected": SweepRejected,
    "object.deleted": ObjectDeleted,
    "delete.rejected": DeleteRejected,
    "status.reported": StatusReported,
    "status.rejected": StatusRejected,
    "dead_letters.moved": DeadLettersMoved,
    "dead_letters.rejected": DeadLettersRejected,
    "project.recovered": ProjectRecovered,
    "recover.rejected": RecoverRejected,
    "project.erased": ProjectErased,
    "erase.rejected": EraseRejected,
}
