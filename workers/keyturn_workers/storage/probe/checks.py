"""The rows of the probe: each check with its need and its consequence (SPEC 10)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

from keyturn_workers.storage.probe import key_checks as keys
from keyturn_workers.storage.probe import race_checks as races
from keyturn_workers.storage.probe import request_checks as requests
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

Needed = Literal["required", "wanted", "info"]

COMPLETION: Final = "completion If-None-Match: *"
COMPLETION_RACE: Final = "completion If-None-Match: *, many at once"
COPY_DESTINATION: Final = "self-copy If-Match on the destination"
TAGS: Final = "tags kept on self-copy"
LATE_PUT: Final = "late put refused"
LATE_COPY: Final = "late self-copy refused"
LATE_COMPLETION: Final = "late completion refused"
OVERWRITES: Final = "listing shows overwrites"
LISTING: Final = "listing resumes after each key"
BACKSLASHES: Final = "backslashes kept in keys"
BESIDE_FOLDER: Final = "key beside keys below it"
ALL_NAMES: Final = "listing shows every name"
# Their outcomes decide which keys a worker refuses, and how it lists. If any other row that is not
# required has no outcome, the worker does what is safe on every server.
DECISIVE: Final = frozenset({LISTING, BACKSLASHES, BESIDE_FOLDER, ALL_NAMES})

_OVERWRITTEN: Final = "two uploads to one object key could both be reported as stored"
_LOST_UPDATE: Final = "two rotations could overwrite each other's keyring"
_LATE: Final = (
    "a stalled worker's write can arrive after its lease and after a proof; sweeps report this"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One row: its measurement, and the consequence if it does not hold."""

    name: str
    needed: Needed
    run: Callable[[ProbeStorage, str], Awaitable[Outcome]]
    consequence: str
    quick: bool = False
    """Also run when a worker starts."""


CHECKS: Final = (
    Check("put If-None-Match: *", "required", requests.create, _OVERWRITTEN, quick=True),
    Check(
        "put If-None-Match: *, many at once",
        "required",
        races.concurrent_creates,
        _OVERWRITTEN,
        quick=True,
    ),
    Check("put If-Match", "required", requests.replace_body, _LOST_UPDATE, quick=True),
    Check(
        "put If-Match, many at once",
        "required",
        races.concurrent_replaces,
        _LOST_UPDATE,
        quick=True,
    ),
    Check(
        "read and list after write",
        "required",
        requests.read_after_write,
        "an upload could miss a rotation that came before it",
        quick=True,
    ),
    Check(
        OVERWRITES,
        "wanted",
        requests.overwritten_in_listing,
        "keyrings are read one by one, instead of a thousand by one listing",
        quick=True,
    ),
    Check(
        LISTING,
        "required",
        keys.resumed,
        "a sweep could miss objects",
        quick=True,
    ),
    Check(
        "listing in byte order",
        "wanted",
        keys.in_byte_order,
        "sweeps and listings follow paths, and a bucket that keeps versions is refused",
    ),
    Check(
        ALL_NAMES,
        "wanted",
        keys.hidden_names,
        "uploads to the hidden names are refused; a sweep would miss them",
        quick=True,
    ),
    Check(
        "put that is cut off stores nothing",
        "required",
        requests.cut_puts,
        "a broken connection could leave an empty object at an upload's key",
        quick=True,
    ),
    Check("multipart upload", "required", requests.multipart, "no large bodies", quick=True),
    Check(
        "self-copy replaces metadata",
        "required",
        requests.replace_metadata,
        "rotation is not possible",
        quick=True,
    ),
    Check(
        "self-copy with a source condition",
        "wanted",
        requests.copy_source,
        "a copy is not pinned to the body that was read; writing objects once makes up for it",
    ),
    Check(
        COPY_DESTINATION,
        "wanted",
        requests.copy_destination,
        "the condition is not sent; writing objects once makes up for it",
        quick=True,
    ),
    Check(
        COMPLETION,
        "wanted",
        requests.completion,
        "large bodies are stored by one streamed put, of 5 GiB at most",
        quick=True,
    ),
    Check(
        COMPLETION_RACE,
        "wanted",
        races.concurrent_completions,
        "large bodies are stored by one streamed put, of 5 GiB at most",
        quick=True,
    ),
    Check(
        "multipart copy",
        "wanted",
        requests.multipart_copy,
        "objects above the copy limit cannot be rotated",
    ),
    Check(
        TAGS,
        "wanted",
        requests.tags,
        "sweeps record tags before a copy and restore them after it; an upload that must rewrap "
        "its own object leaves one with tags to a sweep",
        quick=True,
    ),
    Check(LATE_PUT, "wanted", requests.late_put, _LATE, quick=True),
    Check(LATE_COPY, "wanted", requests.late_copy, _LATE, quick=True),
    Check(LATE_COMPLETION, "wanted", requests.late_completion, _LATE, quick=True),
    Check(
        BACKSLASHES,
        "wanted",
        keys.backslashes,
        "uploads to keys with a backslash are refused",
        quick=True,
    ),
    Check(
        BESIDE_FOLDER,
        "wanted",
        keys.beside_folder,
        "an upload to a key is refused while other objects are below it",
        quick=True,
    ),
    Check(
        "key segment of 300 bytes",
        "wanted",
        keys.long_segment,
        "uploads to keys with such a segment are refused",
    ),
    Check(
        "empty segments kept in keys",
        "info",
        keys.empty_segments,
        "no uploaded key has an empty segment",
    ),
    Check(
        "ETag kept on self-copy",
        "info",
        requests.etag_of_put,
        "a rotation changes the ETag that S3 shows",
    ),
    Check(
        "ETag kept on self-copy, multipart",
        "info",
        requests.etag_of_multipart,
        "a rotation changes the ETag that S3 shows",
    ),
    Check("delete If-Match", "info", requests.conditional_delete, "nothing relies on it"),
    Check(
        "no old versions kept",
        "info",
        requests.unversioned,
        "old versions keep old wraps until a rotation removes them",
        quick=True,
    ),
)
