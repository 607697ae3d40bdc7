"""Reports of status: queries (`status.requested`) and rows (`status.reported`), SPEC 16.1. Pure.

A report never holds a key, a wrap, a DEK, or anything of an object but its key and its state.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from keyturn.counts import Counts
from keyturn.messages.fields import (
    Actor,
    Code,
    Count,
    ExtensibleModel,
    Generation,
    Number,
    Project,
    QueueName,
    RequestDigest,
    RequestId,
    Rows,
    Seconds,
    ShortName,
    StrictModel,
    Time,
)
from keyturn.messages.queue_report import QueueReport
from keyturn.progress import Progress

StatusView = Literal[
    "projects",
    "sweeps",
    "sweep",
    "failures",
    "evidence",
    "master_keys",
    "objects",
    "workers",
    "queues",
    "totals",
    "attention",
    "audit",
    "dead_letters",
]
"""The subject of a report.

| view | rows |
| --- | --- |
| `projects` | keyrings, with each project's sweeps from their records |
| `sweeps` | sweeps, rotations and erasures that left records |
| `sweep` | one sweep; for a sweep of `*` also the parts that run or did not end clean |
| `failures` | the objects that one sweep could not bring to the desired state |
| `evidence` | evidence of one project, with its envelopes |
| `master_keys` | the master keys of the answering worker |
| `objects` | how many objects and records depend on which key, a range of S3 keys a page |
| `workers` | worker processes, by their last reports |
| `queues` | the queues of requests |
| `totals` | the workers' totals in each minute of the last hour |
| `attention` | problems that need a person |
| `audit` | records of the audit trail |
| `dead_letters` | the oldest dead letters of each queue |
"""
ALL_ONLY_VIEWS: Final = frozenset(
    {
        "master_keys",
        "workers",
        "queues",
        "totals",
        "attention",
        "audit",
        "dead_letters",
    }
)
"""Views of the whole installation: they are requested only for `*`."""

PROJECT_STATES: Final = (
    "ok",
    "attention",
    "sweeping",
    "never_proven",
    "earlier_keks",
    "old_key",
    "plaintext",
    "customer_key",
    "waits_for_key",
    "erased",
)
"""The filters of the view `projects`.

An erased project needs nothing: it is in none of `attention`, `never_proven` and `old_key`.

| state | the projects |
| --- | --- |
| `ok` | whose keyring can be read, and is in use |
| `attention` | of `waits_for_key`, with an unusable keyring, or with a newest sweep not clean |
| `sweeping` | with a sweep or a rotation under way |
| `never_proven` | without a known clean end |
| `earlier_keks` | whose keyring still holds earlier user KEKs |
| `old_key` | whose API key is older than a year |
| `plaintext` | that may hold plaintext objects |
| `customer_key` | with a customer key |
| `waits_for_key` | with a sweep or a rotation that waits for the customer key |
| `erased` | that were erased |
"""
SWEEP_STATES: Final = ("running", "done", "failed", "not_clean")

STATUS_FILTERS: Final[dict[str, tuple[str, ...]]] = {
    "projects": ("text", "state", "master_key"),
    "sweeps": ("text", "state", "kind", "parts"),
    "failures": ("code", "text"),
    "objects": ("records",),
    "audit": (
        "text",
        "action",
        "actor",
        "project",
        "outcome",
        "reports",
        "since",
        "until",
        "request_id",
    ),
    "dead_letters": ("queue", "code", "text"),
}
"""The fields of each view's filter."""
STATUS_STATES: Final = {"projects": PROJECT_STATES, "sweeps": SWEEP_STATES}
STATUS_ORDERS: Final[dict[str, tuple[str, ...]]] = {
    "projects": (
        "project",
        "generation",
        "master_key",
        "key_since",
        "last_proof_at",
        "enrolled_at",
    ),
}
"""The columns that each view can be ordered by, the default first. Others have one order."""

STATUS_LIMIT: Final = 200
"""The default number of rows of a page; for `objects`, of S3 keys inspected."""
STATUS_MAX_LIMIT: Final = 1000
CURSOR_MAX_CHARACTERS: Final = 2048

Cursor = Annotated[str, Field(min_length=1, max_length=CURSOR_MAX_CHARACTERS)]
SweepProject = Project | Literal["*"]
SweepKind = Literal["rotation", "sweep", "erasure"]
_Text = Annotated[str, Field(max_length=200)]


class StatusFilter(StrictModel):
    """Which rows of a view are wanted; a row must match every field that is set.

    Attributes:
        text: Words that the row must contain, in any of its texts.
        state: One of those of the view.
        parts: Whether parts of sweeps of `*` are rows too.
        records: Only keyrings and records of sweeps, or only objects; both by default.
        reports: Whether requests for reports that consoles make by themselves are rows too.
        since: Not before then.
        until: Before then.
    """

    text: _Text | None = None
    state: str | None = None
    master_key: ShortName | None = None
    kind: SweepKind | None = None
    parts: bool | None = None
    records: bool | None = None
    code: Code | None = None
    action: _Text | None = None
    actor: _Text | None = None
    project: Project | None = None
    outcome: Literal["ok", "not_ok"] | None = None
    reports: bool | None = None
    since: Time | None = None
    until: Time | None = None
    request_id: RequestId | None = None
    queue: QueueName | None = None


KeyringMark = Literal["current", "unmarked", "rolled_back", "removed", "unknown"]
"""The result of a keyring's comparison with its mark: no worker uses one in the last three."""


class CustomerKeyStatus(ExtensibleModel):
    """The customer key of a project's current generation (SPEC 2.6).

    Attributes:
        code: Why it gives no secret to the project's sweep or rotation that waits for it.
        since: Since when that waits, by the storage's clock.
    """

    store: ShortName
    key: str
    code: Code | None = None
    since: Time | None = None


class ProjectStatus(ExtensibleModel):
    """One keyring (SPEC 5.2); of one that does not open only `project`, `code` and `detail`.

    Attributes:
        earlier_keks: How many earlier user KEKs it still holds.
        enrolled_at: When generation 1 began.
        rotated_at: When the current generation began; absent at the first one.
        evidence: The digest of the newest evidence.
        mark: How the keyring compares with its mark (SPEC 5.5); absent where that is not known.
            One that was removed has only `project` and this.
        code: Why the keyring cannot be read or used.
        key_since: When the current API key came: `rotated_at`, otherwise `enrolled_at`.
        last_proof_at: The newest clean end of a sweep or rotation that a record has.
        last_proof_sweep: Which one it was.
        last_end_sweep: The sweep or rotation that ended last.
        last_end_clean: Whether that was clean.
        objects: How many objects the sweep or rotation counted that ended last, without tombstones.
        objects_at: When it ended.
        running_sweeps: What is under way; also parts of a sweep of `*`.
        customer_key: The customer key, if it has one.
        erased_at: When the stores of its customer keys last said that they are gone; absent unless
            the project was erased.
    """

    project: Project
    generation: Generation | None = None
    kek_id: str | None = None
    master_key: ShortName | None = None
    plaintext: bool | None = None
    earlier_keks: Count | None = None
    enrolled_at: Time | None = None
    rotated_at: Time | None = None
    evidence: RequestDigest | None = None
    mark: KeyringMark | None = None
    code: Code | None = None
    detail: str | None = None
    key_since: Time | None = None
    last_proof_at: Time | None = None
    last_proof_sweep: RequestId | None = None
    last_end_sweep: RequestId | None = None
    last_end_clean: bool | None = None
    objects: Count | None = None
    objects_at: Time | None = None
    running_sweeps: Rows[RequestId] | None = None
    customer_key: CustomerKeyStatus | None = None
    erased_at: Time | None = None


class SweepStatus(ExtensibleModel):
    """One sweep, rotation or erasure by its record; of one that does not open only ids and `code`.

    Attributes:
        publisher: Who requested it.
        actor: The person whom that request names, as the publisher claims (SPEC 15.3).
        part_of_all: Whether this is one project's part of a sweep of `*`.
        waits_for_round: Whether a round runs that does not answer it: it waits for the next one.
        expected_objects: How many objects there are, where that was counted.
        rate_per_s: Objects a second since its round began.
        left_s: Seconds left at that rate, and until a proof is possible.
        pages: Pages planned so far.
        pages_open: Pages not proven yet.
        stepped_at: When it was last seen to go on, by the storage's clock.
        progress: The phase that it is in, and the moments that it passed.
        round_id: The round, or walk, that answers it or answered it; in the view `sweep`, like
            all below.
        also_answers: The other sweeps and rotations that this round answers.
        ranges: How many ranges of keys its round is divided into.
        ranges_planned: How many of them are planned to their end.
        parts_clean: Of a sweep of `*`: the parts that ended clean.
    """

    sweep_id: RequestId
    project: SweepProject
    kind: SweepKind | None = None
    status: Literal["running", "done", "failed"] | None = None
    code: Code | None = None
    detail: str | None = None
    clean: bool | None = None
    counts: Counts | None = None
    requested_at: Time | None = None
    started_at: Time | None = None
    ended_at: Time | None = None
    publisher: ShortName | None = None
    actor: Actor | None = None
    part_of_all: bool = False
    master_key: ShortName | None = None
    encrypt_plaintext: bool = False
    repair: bool = False
    generation: Generation | None = None
    proves_master_key: ShortName | None = None
    waits_for_round: bool = False
    evidence: RequestDigest | None = None
    expected_objects: Count | None = None
    rate_per_s: Number | None = None
    left_s: Number | None = None
    pages: Count | None = None
    pages_open: Count | None = None
    parts_ended: Count | None = None
    stepped_at: Time | None = None
    progress: Progress | None = None
    round_id: RequestId | None = None
    also_answers: Rows[RequestId] | None = None
    ranges: Count | None = None
    ranges_planned: Count | None = None
    parts_clean: Count | None = None


class FailureStatus(ExtensibleModel):
    """An object that a sweep could not bring to the desired state, and why."""

    project: Project
    key: str | None = None
    code: Code


class EvidenceStatus(ExtensibleModel):
    """One file of evidence (SPEC 15.1).

    `envelope` is the DSSE envelope as stored; absent where the file does not verify.
    """

    project: Project
    generation: Generation
    sweep_id: RequestId
    at: Time
    digest: RequestDigest
    envelope: str | None = None
    code: Code | None = None


class MasterKeyStatus(ExtensibleModel):
    """A master key that the answering worker holds.

    Attributes:
        provider: `local`, or what holds it elsewhere, such as `pkcs11`.
        active: Whether new projects are enrolled under it.
        code: Why it cannot be used now.
        projects: How many keyrings are sealed under it.
    """

    master_key: ShortName
    provider: ShortName
    active: bool
    code: Code | None = None
    projects: Count | None = None


class ObjectGroupStatus(ExtensibleModel):
    """How many objects, noncurrent versions or records of one page depend on the same key.

    Attributes:
        kind: `encrypted`, `tombstone`, `plaintext`, `noncurrent`, `foreign`, `unreadable`,
            `erased`, `keyring` or `sweep_record`.
        master_key: The master key that opened the admin wrap, the tombstone or the record.
        code: Why an unreadable one does not open.
        project: Whose they are; absent in pages of all projects, but for commands.
        record: The S3 key of a record that does not open; only for commands, like `detail`.
    """

    kind: Literal[
        "encrypted",
        "tombstone",
        "plaintext",
        "noncurrent",
        "foreign",
        "unreadable",
        "erased",
        "keyring",
        "sweep_record",
    ]
    count: Count
    generation: Generation | None = None
    master_key: ShortName | None = None
    code: Code | None = None
    project: Project | None = None
    record: str | None = None
    detail: str | None = None


class WorkerStatus(ExtensibleModel):
    """One worker process by its last report (see `WorkerReported`).

    Attributes:
        as_of: When it reported.
        is_missing: Whether several reports in a row did not come.
        clock_unknown_since: Since when it does not know the storage's clock, as far as is known.
    """

    worker_id: RequestId
    roles: Rows[ShortName]
    host: Actor
    version: Annotated[str, Field(max_length=64)]
    started_at: Time
    interval_s: Seconds
    is_stopping: bool
    lease_s: Count
    is_clock_known: bool
    active_master_key: ShortName
    master_keys: Rows[ShortName]
    event_keys: Rows[Annotated[str, Field(max_length=64)]]
    intake_keys: Rows[ShortName]
    queues: Rows[QueueReport]
    as_of: Time
    is_missing: bool = False
    clock_unknown_since: Time | None = None


class QueueStatus(ExtensibleModel):
    """One queue; `keyturn.unsigned.dead` has a row with `dead` alone.

    Attributes:
        depth: Messages ready for delivery.
        retrying: Messages that wait for their next attempt.
        dead: Messages in its dead-letter queue.
        served_per_s: By the reports of its workers.
        oldest_s: How long the request waited that a worker received last; absent while empty.
    """

    queue: QueueName
    depth: Count | None = None
    consumers: Count | None = None
    retrying: Count | None = None
    dead: Count | None = None
    served_per_s: Number | None = None
    refused_per_s: Number | None = None
    oldest_s: Number | None = None


class TotalsStatus(ExtensibleModel):
    """What all workers did in the minute that begins at `at`, by their reports.

    Attributes:
        uploads: Uploads that were stored.
        uploads_refused: Uploads that were refused for good.
        control: Enrollments, rotations, sweeps, deletes and other requests that were served.
        control_refused: Those that were refused for good.
        pages: Pages of sweeps that were processed.
        retried: Attempts at any message that ended with a transient error.
    """

    at: Time
    uploads: Count = 0
    uploads_refused: Count = 0
    control: Count = 0
    control_refused: Count = 0
    pages: Count = 0
    retried: Count = 0


class AttentionLink(ExtensibleModel):
    """The page that shows what needs a person, with what to fill in."""

    page: Literal[
        "queues", "dead_letters", "audit", "project", "projects", "sweep", "sweeps", "master_keys"
    ]
    project: SweepProject | None = None
    sweep_id: RequestId | None = None
    filter: dict[str, str] | None = None


class AttentionStatus(ExtensibleModel):
    """Something that needs a person.

    Attributes:
        rule: The stable name of the rule that found it.
        severity: `act`: something does not work. `soon`: it will not, or is unsafe until then.
            `info`: worth knowing.
        remedy: What to do, in one or two sentences.
        command: A command that does it, if there is one.
        as_of: When it was seen to be so.
    """

    rule: Code
    severity: Literal["act", "soon", "info"]
    title: str
    detail: str
    link: AttentionLink
    remedy: str
    command: str | None = None
    as_of: Time | None = None


class AuditStatus(ExtensibleModel):
    """One record of the audit trail (SPEC 15.3; see `AuditRecorded`).

    Attributes:
        offset: Its place in the stream.
        findings: What is wrong with its chain at this record, in words.
    """

    audit_id: RequestId
    at: Time
    process: str
    counter: Count
    role: str
    host: str
    action: str
    actor: str
    publisher: str | None = None
    request: str | None = None
    request_type: str | None = None
    request_id: str | None = None
    project: str | None = None
    object_key: str | None = None
    object_count: Count | None = None
    first_object: Count | None = None
    generation: Count | None = None
    queue: str | None = None
    master_key: str | None = None
    kind: str | None = None
    provider: str | None = None
    provider_request_id: str | None = None
    outcome: str
    reason: str | None = None
    offset: Count
    findings: Rows[str] = ()


class DeadLetterStatus(ExtensibleModel):
    """A dead letter by its own claim, cut short, without its body.

    Attributes:
        letter: Hex SHA-256 of its body, by which `dead_letters.requested` names it.
        object_key: The object that the request is about.
        obstacle: Why it cannot be replayed: its body was not kept, it names no type of request,
            or it is past its age.
        text: The letter for people, with all secrets left out.
    """

    queue: QueueName
    letter: RequestDigest
    message_id: str | None = None
    type: str | None = None
    project: str | None = None
    object_key: str | None = None
    code: str | None = None
    detail: str | None = None
    publisher: str | None = None
    requested_at: Time | None = None
    dead_at: Time | None = None
    size_bytes: Count
    work_queue: str | None = None
    obstacle: Literal["body", "type", "expired"] | None = None
    text: str | None = None


class DeadQueueStatus(ExtensibleModel):
    """One dead-letter queue: how many letters it holds, and how many of them were read."""

    queue: QueueName
    depth: Count
    read: Count


class CodeCount(ExtensibleModel):
    """How many failures of a sweep, or dead letters of a queue, have one code."""

    code: str
    count: Count
    queue: QueueName | None = None
