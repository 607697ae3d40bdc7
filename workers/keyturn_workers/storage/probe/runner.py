"""Ask the configured bucket what it does: `keyturn doctor`, and each worker's start (SPEC 10).

Every row is the outcome of requests just made, with real concurrent writers where a race
matters, and under the bucket's versioning as it is. Nothing is derived from a server's
name or version. All of it happens under `.keyturn/doctor/{random}/`, which is removed at
the end; no other key is ever touched.
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
    """One thing that was tried, and what came of it."""

    name: str
    needed: Needed
    ok: bool
    said: str
    consequence: str
    undecided: bool = False
    """Not ok because a request of it failed at the storage, which may pass: nothing is known."""


@dataclass(frozen=True, slots=True)
class Report:
    """All rows of a probe."""

    rows: Sequence[Row]
    left_behind: str | None = None
    """The prefix that could not be removed, where that failed."""

    @property
    def unsafe(self) -> Sequence[Row]:
        """The required rows that do not hold; there must be none."""
        return [row for row in self.rows if row.needed == "required" and not row.ok]

    @property
    def capabilities(self) -> Capabilities:
        """What the workers may rely on beyond what is required."""
        held = {row.name for row in self.rows if row.ok}
        return Capabilities(
            conditional_completion={COMPLETION, COMPLETION_RACE} <= held,
            conditional_copy_destination=COPY_DESTINATION in held,
            copy_keeps_tags=TAGS in held,
            late_writes_refused={LATE_PUT, LATE_COPY, LATE_COMPLETION} <= held,
            listings_show_overwrites=OVERWRITES in held,
        )

    def check(self) -> None:
        """Refuse a bucket on which Keyturn's promises would not hold.

        Raises:
            UnsafeStorageError: something that SPEC 10 requires is missing; names each row.
        """
        if self.unsafe:
            rows = "; ".join(f"{row.name}: {row.said}" for row in self.unsafe)
            raise UnsafeStorageError(f"the bucket misses what is required: {rows}")


COMPLETION: Final = "completion If-None-Match: *"
COMPLETION_RACE: Final = "completion If-None-Match: *, two at once"
COPY_DESTINATION: Final = "self-copy If-Match on the destination"
TAGS: Final = "tags kept on self-copy"
LATE_PUT: Final = "late put refused"
LATE_COPY: Final = "late self-copy refused"
LATE_COMPLETION: Final = "late completion refused"
OVERWRITES: Final = "listing shows overwrites"

_OVERWRITTEN: Final = "two uploads to one key could both be told stored"
_LOST_UPDATE: Final = "two rotations could overwrite each other's keyring"
_LATE: Final = (
    "a stalled worker's write can arrive after its lease, behind a proof; ends of sweeps say so"
)


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    needed: Needed
    run: Callable[[ProbeStorage, str], Awaitable[Outcome]]
    consequence: str
    quick: bool = False
    """Part of what a worker asks at its start."""


_CHECKS: Final = (
    _Check("put If-None-Match: *", "required", requests.create, _OVERWRITTEN, quick=True),
    _Check(
        "put If-None-Match: *, many at once", "required", races.creators, _OVERWRITTEN, quick=True
    ),
    _Check("put If-Match", "required", requests.replace_body, _LOST_UPDATE, quick=True),
    _Check("put If-Match, many at once", "required", races.replacers, _LOST_UPDATE, quick=True),
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
        "keyrings are read one by one, not a thousand by one listing",
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
        "a copy cannot be pinned to the body that was read; objects written once make up for it",
    ),
    _Check(
        COPY_DESTINATION,
        "wanted",
        requests.copy_destination,
        "the condition is not sent; objects written once make up for it",
        quick=True,
    ),
    _Check(
        COMPLETION,
        "wanted",
        requests.completion,
        "large bodies go as one streamed put, 5 GiB at most",
        quick=True,
    ),
    _Check(
        COMPLETION_RACE,
        "wanted",
        races.completers,
        "large bodies go as one streamed put, 5 GiB at most",
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
        "tags are read before a copy and put back after it",
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
        "old versions hold old wraps until a rotation has removed them",
        quick=True,
    ),
)


async def probe(storage: ProbeStorage, *, quick: bool = False) -> Report:
    """Try out everything that Keyturn relies on or works around.

    Args:
        storage: On the configured bucket.
        quick: Only what a worker has to know when it starts.

    Raises:
        StorageUnavailableError: the storage cannot be reached.
        SettingsError: the bucket does not exist, or the keys may not write there.
    """
    prefix = f"{PREFIX}{secrets.token_hex(8)}/"
    checks = [check for check in _CHECKS if check.quick or not quick]
    await _knock(storage, f"{prefix}knock")
    left_behind = None
    try:
        rows = await asyncio.gather(
            *(_row(storage, check, f"{prefix}{at}") for at, check in enumerate(checks))
        )
    finally:
        try:
            await storage.purge(prefix)
        except (StorageAnswerError, StorageUnavailableError):
            left_behind = prefix  # told, and never in the way of what was found out
    return Report(rows, left_behind)


async def _knock(storage: ProbeStorage, key: str) -> None:
    try:
        await storage.put(key, b"", Headers({}))
    except RefusedError as exc:
        raise SettingsError(f"the storage lets these S3 keys not write below {PREFIX}") from exc
    except StorageUnavailableError as exc:
        if exc.detail.endswith("NoSuchBucket"):
            raise SettingsError("KEYTURN_S3_BUCKET names no bucket there") from exc
        raise


async def _row(storage: ProbeStorage, check: _Check, key: str) -> Row:
    try:
        outcome = await check.run(storage, key)
    except StorageUnavailableError as exc:
        said = f"failed: {exc.detail}"
        return Row(
            check.name,
            check.needed,
            ok=False,
            said=said,
            consequence=check.consequence,
            undecided=True,
        )
    except StorageAnswerError as exc:
        outcome = Outcome(ok=False, said=f"failed: {exc}")
    return Row(check.name, check.needed, outcome.ok, outcome.said, check.consequence)


def as_json(report: Report) -> Sequence[Mapping[str, str | bool]]:
    """The rows for `keyturn doctor --json`."""
    return [
        {
            "name": row.name,
            "needed": row.needed,
            "ok": row.ok,
            "said": row.said,
            "consequence": row.consequence,
        }
        for row in report.rows
    ]
