"""What `status.reported` holds: keyrings, sweeps, evidence, master keys (SPEC 16.1). Pure.

A report never holds a key, a wrap, a DEK, or anything of an object but its key and its state.
"""

from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from keyturn.messages.fields import (
    Actor,
    Count,
    Generation,
    Project,
    RequestDigest,
    RequestId,
    ShortName,
    Time,
)

StatusView = Literal[
    "projects", "sweeps", "sweep", "failures", "evidence", "master_keys", "objects"
]
"""What a report is about.

| view | one page holds | in the order of |
| --- | --- | --- |
| `projects` | keyrings | project |
| `sweeps` | sweeps and rotations that left records | their records |
| `sweep` | one sweep; of a sweep of `*` also the parts that did not end clean | project |
| `failures` | the objects that one sweep could not bring to the desired state | their pages |
| `evidence` | evidence of one project, with its envelopes | its file names |
| `master_keys` | the master keys of the worker that answers | as set |
| `objects` | how many objects and records depend on which key | S3 keys |
"""

STATUS_LIMIT: Final = 200
"""Rows of a page where the request names no limit; for `objects`, S3 keys inspected."""
STATUS_MAX_LIMIT: Final = 1000
CURSOR_MAX_CHARACTERS: Final = 2048

Cursor = Annotated[str, Field(min_length=1, max_length=CURSOR_MAX_CHARACTERS)]
Code = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
SweepProject = Project | Literal["*"]


_T = TypeVar("_T")
# JSON has no infinity, but its readers take 1e999 for one.
Number = Annotated[float, Field(allow_inf_nan=False)]
# A list in JSON, which strict models would not take for a tuple.
Rows = Annotated[tuple[_T, ...], Field(strict=False)]


class StatusModel(BaseModel):
    """What all rows have in common: readers ignore fields that they do not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)


KeyringMark = Literal["current", "unmarked", "rolled_back", "removed", "unknown"]
"""How a keyring compares with its mark: of the last three, no worker uses the keyring."""


class ProjectStatus(StatusModel):
    """One keyring (SPEC 5.2); of one that does not open only `project`, `code` and `detail`.

    Attributes:
        earlier_keks: How many earlier user KEKs it still holds.
        enrolled_at: When generation 1 began.
        rotated_at: When the current generation began; absent at the first one.
        evidence: The digest of the newest evidence.
        mark: How the keyring compares with its mark (SPEC 5.5); absent where that is not known.
            One that was removed has only `project` and this.
        code: Why the keyring cannot be read or used.
    """

    project: Project
    generation: Generation | None = None
    kek_id: str | None = None
    master_key: ShortName | None = None
    plaintext: bool | None = None
    v0: bool | None = None
    earlier_keks: Count | None = None
    enrolled_at: Time | None = None
    rotated_at: Time | None = None
    evidence: RequestDigest | None = None
    mark: KeyringMark | None = None
    code: Code | None = None
    detail: str | None = None


class SweepCounts(StatusModel):
    """The counts of SPEC 8.6."""

    objects: Count = 0
    rewrapped: Count = 0
    current: Count = 0
    plaintext: Count = 0
    encrypted: Count = 0
    deleted: Count = 0
    foreign: Count = 0
    failed: Count = 0
    noncurrent_stale: Count = 0


class SweepStatus(StatusModel):
    """One sweep or rotation by its record; of one that does not open only ids and `code`.

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
    """

    sweep_id: RequestId
    project: SweepProject
    kind: Literal["rotation", "sweep"] | None = None
    status: Literal["running", "done", "failed"] | None = None
    code: Code | None = None
    detail: str | None = None
    clean: bool | None = None
    counts: SweepCounts | None = None
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


class FailureStatus(StatusModel):
    """An object that a sweep could not bring to the desired state, and why."""

    project: Project
    key: str | None = None
    code: Code


class EvidenceStatus(StatusModel):
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


class MasterKeyStatus(StatusModel):
    """A master key that the answering worker holds.

    Attributes:
        provider: `local`, or what holds it elsewhere, such as `pkcs11`.
        active: Whether new projects are enrolled under it.
        code: Why it cannot be used now.
    """

    master_key: ShortName
    provider: ShortName
    active: bool
    code: Code | None = None


class ObjectGroupStatus(StatusModel):
    """How many objects, noncurrent versions or records of one page depend on the same key.

    Attributes:
        kind: `encrypted`, `tombstone`, `plaintext`, `v0`, `noncurrent`, `foreign`, `unreadable`,
            `keyring` or `sweep_record`.
        master_key: The master key that opened the admin wrap, the tombstone or the record.
        code: Why an unreadable one does not open.
    """

    kind: Literal[
        "encrypted",
        "tombstone",
        "plaintext",
        "v0",
        "noncurrent",
        "foreign",
        "unreadable",
        "keyring",
        "sweep_record",
    ]
    count: Count
    generation: Generation | None = None
    master_key: ShortName | None = None
    code: Code | None = None
