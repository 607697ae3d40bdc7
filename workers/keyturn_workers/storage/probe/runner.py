"""Measure what the configured bucket does: `keyturn doctor`, and each worker's start (SPEC 10).

Every row is the outcome of requests just made, with real concurrent writers where a race
matters, and with the bucket's versioning as it is. Nothing is concluded from a server's name or
version. All keys are under `.keyturn/doctor/{random}/`, which is removed at the end.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn_workers.errors import RefusedError, StorageAnswerError, UnsafeStorageError
from keyturn_workers.storage.capabilities import Capabilities
from keyturn_workers.storage.port import Headers
from keyturn_workers.storage.probe import race_checks as races
from keyturn_workers.storage.probe import request_checks as requests
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

PREFIX: Final = ".keyturn/doctor/"

Needed = Literal["required", "wanted", "info"]


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one check."""

    name: str
    needed: Needed
    ok: bool
    detail: str
    consequence: str
    undecided: bool = False
    """Not ok because a request failed at the storage: nothing is known, and a retry may differ."""


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of a probe."""

    rows: Sequence[Row]
    left_behind: str | None = None
    """The prefix, if removing it failed."""

    @property
    def unsafe(self) -> Sequence[Row]:
        """The required rows that do not hold. A safe bucket has none."""
        return [row for row in self.rows if row.needed == "required" and not row.ok]

    @property
    def capabilities(self) -> Capabilities:
        """What workers may rely on beyond the requirements."""
        passed = {row.name for row in self.rows if row.ok}
        return Capabilities(
            conditional_completion={COMPLETION, COMPLETION_RACE} <= passed,
            conditional_copy_destination=COPY_DESTINATION in passed,
            copy_keeps_tags=TAGS in passed,
            late_writes_refused={LATE_PUT, LATE_COPY, LATE_COMPLETION} <= passed,
            listings_show_overwrites=OVERWRITES in passed,
        )

    def check(self) -> None:
        """Refuse a bucket on which Keyturn's guarantees would not hold.

        Raises:
            UnsafeStorageError: a requirement of SPEC 10 is not met; names each row.
        """
        if self.unsafe:
            rows = "; ".join(f"{row.name}: {row.detail}" for row in self.unsafe)
            raise UnsafeStorageError(f"the bucket does not meet the requirements: {rows}")


COMPLETION: Final = "completion If-None-Match: *"
COMPLETION_RACE: Final = "completion If-None-Match: *, two at once"
COPY_DESTINATION: Final = "self-copy If-Match on the destination"
TAGS: Final = "tags kept on self-copy"
LATE_PUT: Final = "late put refused"
LATE_COPY: Final = "late self-copy refused"
LATE_COMPLETION: Final = "late completion refused"
OVERWRITES: Final = "listing shows overwrites"

_OVERWRITTEN: Final = "two uploads to one object key could both be reported as stored"
_LOST_UPDATE: Final = "two rotations could overwrite each other's keyring"
_LATE: Final = (
    "a stalled worker's write can arrive after its lease and after a proof; sweeps report this"
)


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    needed: Needed
    run: Callable[[ProbeStorage, str], Awaitable[Outcome]]
    consequence: str
    quick: bool = False
    """Also run when a worker starts."""


_CHECKS: Final = (
    _Check("put If-None-Match: *", "required", requests.create, _OVERWRITTEN, quick=True),
    _Check(
        "put If-None-Match: *, many at once",
        "required",
        races.concurrent_creates,
        _OVERWRITTEN,
        quick=True,
    ),
    _Check("put If-Match", "required", requests.replace_body, _LOST_UPDATE, quick=True),
    _Check(
        "put If-Match, many at once",
        "required",
        races.concurrent_replaces,
        _LOST_UPDATE,
        quick=True,
    ),
    _Check(
        "read and list after write",
        "required",
        requests.read_after_write,
        "an upload could miss a rotation that came before it",
        quick=True,
    ),
    _Check(
        OVERWRITES,
        "wanted",
        requests.overwritten_in_listing,
        "keyrings are read one by one, instead of a thousand by one listing",
        quick=True,
    ),
    _Check("multipart upload", "required", requests.multipart, "no large bodies", quick=True),
    _Check(
        "self-copy replaces metadata",
        "required",
        requests.replace_metadata,
        "rotation is not possible",
        quick=True,
    ),
    _Check(
        "self-copy with a source condition",
        "wanted",
        requests.copy_source,
        "a copy is not pinned to the body that was read; writing objects once makes up for it",
    ),
    _Check(
        COPY_DESTINATION,
        "wanted",
        requests.copy_destination,
        "the condition is not sent; writing objects once makes up for it",
        quick=True,
    ),
    _Check(
        COMPLETION,
        "wanted",
        requests.completion,
        "large bodies are stored by one streamed put, of 5 GiB at most",
        quick=True,
    ),
    _Check(
        COMPLETION_RACE,
        "wanted",
        races.concurrent_completions,
        "large bodies are stored by one streamed put, of 5 GiB at most",
        quick=True,
    ),
    _Check(
        "multipart copy",
        "wanted",
        requests.multipart_copy,
        "objects above the copy limit cannot be rotated",
    ),
    _Check(
        TAGS,
        "wanted",
        requests.tags,
        "tags are read before a copy and restored after it",
        quick=True,
    ),
    _Check(LATE_PUT, "wanted", requests.late_put, _LATE, quick=True),
    _Check(LATE_COPY, "wanted", requests.late_copy, _LATE, quick=True),
    _Check(LATE_COMPLETION, "wanted", requests.late_completion, _LATE, quick=True),
    _Check(
        "ETag kept on self-copy",
        "info",
        requests.etag_of_put,
        "a rotation changes the ETag that S3 shows",
    ),
    _Check(
        "ETag kept on self-copy, multipart",
        "info",
        requests.etag_of_multipart,
        "a rotation changes the ETag that S3 shows",
    ),
    _Check("delete If-Match", "info", requests.conditional_delete, "nothing relies on it"),
    _Check(
        "no old versions kept",
        "info",
        requests.unversioned,
        "old versions keep old wraps until a rotation removes them",
        quick=True,
    ),
)


async def probe(storage: ProbeStorage, *, quick: bool = False) -> Report:
    """Check everything that Keyturn relies on or works around.

    Args:
        storage: The configured bucket.
        quick: Only what a worker needs to know when it starts.

    Raises:
        StorageUnavailableError: the storage cannot be reached.
        SettingsError: the bucket does not exist, or the credentials may not write there.
    """
    prefix = f"{PREFIX}{secrets.token_hex(8)}/"
    checks = [check for check in _CHECKS if check.quick or not quick]
    await _check_access(storage, f"{prefix}access")
    left_behind = None
    try:
        rows = await asyncio.gather(
            *(_row(storage, check, f"{prefix}{at}") for at, check in enumerate(checks))
        )
    finally:
        try:
            await storage.purge(prefix)
        except (StorageAnswerError, StorageUnavailableError):
            left_behind = prefix  # reported; the outcomes matter more
    return Report(rows, left_behind)


async def _check_access(storage: ProbeStorage, key: str) -> None:
    try:
        await storage.put(key, b"", Headers({}))
    except RefusedError as exc:
        raise SettingsError(f"these S3 credentials may not write below {PREFIX}") from exc
    except StorageUnavailableError as exc:
        if exc.detail.endswith("NoSuchBucket"):
            raise SettingsError("the bucket in KEYTURN_S3_BUCKET does not exist") from exc
        raise


async def _row(storage: ProbeStorage, check: _Check, key: str) -> Row:
    try:
        outcome = await check.run(storage, key)
    except StorageUnavailableError as exc:
        detail = f"failed: {exc.detail}"
        return Row(
            check.name,
            check.needed,
            ok=False,
            detail=detail,
            consequence=check.consequence,
            undecided=True,
        )
    except StorageAnswerError as exc:
        outcome = Outcome(ok=False, detail=f"failed: {exc}")
    return Row(check.name, check.needed, outcome.ok, outcome.detail, check.consequence)


def as_json(report: Report) -> Sequence[Mapping[str, str | bool]]:
    """The rows for `keyturn doctor --json`."""
    return [
        {
            "name": row.name,
            "needed": row.needed,
            "ok": row.ok,
            "said": row.detail,
            "consequence": row.consequence,
        }
        for row in report.rows
    ]
