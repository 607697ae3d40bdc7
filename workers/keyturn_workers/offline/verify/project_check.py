"""Check every object of one project with one key (SPEC 15.2).

The project is listed once, with its versions where the bucket keeps them. Each object is read by
one ranged GET of its header. A few are read at once, so memory is bounded, however many there are.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.cobblestone import HEADER_BYTES
from keyturn.errors import (
    ArchivedObjectError,
    MalformedEvidenceError,
    MalformedRequestError,
    NotFoundError,
    StorageUnavailableError,
)
from keyturn.evidence.envelope import MAX_EVIDENCE_BYTES
from keyturn.identifiers import evidence_prefix
from keyturn.messages.json_text import load_json
from keyturn.metadata import KEK_USER, OWN_PREFIX
from keyturn.tasks import task_group
from keyturn_workers.core.errors import ArchivedError, MissingError, StorageResponseError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectHead
from keyturn_workers.offline.verify.object_check import ObjectCheck, VerificationKeys, check_object
from keyturn_workers.offline.verify.report import VerifyReport

DEFAULT_CONCURRENCY: Final = 32
_SECRET_LABEL: Final = re.compile(r"[^:]*:[^:]*:\s*([0-9a-f]{16})\s*")


@dataclass(frozen=True, slots=True)
class Listed:
    """An object, or a version: the latest one has no `version_id` here."""

    s3_key: str
    version_id: str | None = None


async def check_project(
    storage: Storage,
    keys: VerificationKeys,
    report: VerifyReport,
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_checked: Callable[[], object] = lambda: None,
) -> None:
    """Add the outcome of each object, and of each noncurrent version, to the report.

    `concurrency` objects are read at once; `on_checked` is called after each one.

    Raises:
        StorageUnavailableError, StorageResponseError: the check would be incomplete.
    """
    async with aclosing(_list(storage, f"{keys.project}/")) as listing:
        rows = aiter(listing)
        turn = asyncio.Lock()  # a generator runs one step at a time
        must_be_gone = report.expectation == "gone"

        async def check_rows() -> None:
            while (row := await _next(rows, turn)) is not None:
                check = await _check(storage, keys, row, report, must_be_gone=must_be_gone)
                report.add(row.s3_key, row.version_id, check)
                on_checked()

        async with task_group() as group:
            for _ in range(concurrency):
                group.create_task(check_rows())


async def find_secret_ids(storage: Storage, project: str) -> tuple[set[str], bool]:
    """Return the ids of the customer secrets that the project's evidence in the bucket names.

    The second value is False if there may be others: there is no evidence yet, or no longer, or
    it has not named them all.

    A file that is no evidence is not passed over: it may be one that was damaged to hide a secret.

    Raises:
        MalformedEvidenceError: a file cannot be read as evidence.
        StorageUnavailableError, StorageResponseError: the evidence cannot be read.
    """
    found, has_evidence, has_others = set[str](), False, False
    async for listed in storage.list(evidence_prefix(project)):
        _, body = await storage.read(listed.key, max_bytes=MAX_EVIDENCE_BYTES + 1)
        try:
            predicate = load_json(from_base64(load_json(body)["payload"]))["predicate"]
            # Of a rotation or a sweep, and of an erasure.
            former = predicate.get("former_customer_keys", ())
            named = [predicate.get("customer_key"), *former, *predicate.get("keys", ())]
            found |= {str(each["secret_id"]) for each in named if each is not None}
            has_others |= bool(predicate.get("omitted_customer_keys"))
        except (MalformedRequestError, AttributeError, KeyError, TypeError, ValueError):
            raise MalformedEvidenceError(
                f"{listed.key} cannot be read: which customer keys the project had is not known"
            ) from None
        has_evidence = True
    return found, has_evidence and not has_others


async def _next(rows: AsyncIterator[Listed], turn: asyncio.Lock) -> Listed | None:
    async with turn:
        return await anext(rows, None)


async def _list(storage: Storage, prefix: str) -> AsyncGenerator[Listed]:
    if not await storage.versioning():
        async for listed in storage.list(prefix):
            yield Listed(listed.key)
        return
    async for version in storage.list_versions(prefix):
        if not version.is_delete_marker:
            yield Listed(version.key, None if version.is_latest else version.version_id)


async def _check(
    storage: Storage,
    keys: VerificationKeys,
    row: Listed,
    report: VerifyReport,
    *,
    must_be_gone: bool,
) -> ObjectCheck:
    header: bytes | None
    tags: Mapping[str, str] = {}
    object_key = row.s3_key.removeprefix(f"{keys.project}/")
    try:
        head, header = await storage.read_start(row.s3_key, HEADER_BYTES, version_id=row.version_id)
    except MissingError:
        # Keyturn's own deletes leave a tombstone, so this object was removed by another writer.
        gone = NotFoundError("it was listed, but the storage reports that it does not exist")
        return ObjectCheck.refused("unreadable", gone)
    except ArchivedError as exc:
        if row.version_id is not None:  # its metadata comes only with its bytes
            return ObjectCheck.refused("unreadable", ArchivedObjectError(str(exc)))
        head = await storage.head(row.s3_key)
        header = None if head.size_bytes else b""
    except StorageResponseError as exc:
        return ObjectCheck.refused("unreadable", StorageUnavailableError(str(exc)))
    if must_be_gone and head.tag_count and row.version_id is None:
        try:
            tags = await storage.read_tags(row.s3_key)
        except StorageResponseError as exc:
            return ObjectCheck.refused("unreadable", StorageUnavailableError(f"its tags: {exc}"))
    label = _SECRET_LABEL.fullmatch(head.metadata.get(KEK_USER, ""))
    if label is not None:
        report.secret_ids.add(label[1])
    return check_object(
        head.metadata,
        header,
        object_key,
        keys,
        must_be_gone=must_be_gone,
        others=_others(head, tags),
    )


def _others(head: ObjectHead, tags: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return all values in which a wrap could hide, except the `enc-` metadata and the body."""
    headers = {"content-type": head.headers.content_type or "", **head.headers.restated}
    return [
        *(
            (name, value)
            for name, value in head.metadata.items()
            if not name.startswith(OWN_PREFIX)
        ),
        *headers.items(),
        *((f"tag {key}", text) for key, value in tags.items() for text in (key, value)),
    ]
