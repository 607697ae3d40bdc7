"""`keyturn ls` and `keyturn inspect`: what the bucket itself says (SPEC 4.3, 4.5 to 4.7).

Both need the bucket alone and no key: everything shown is a claim of metadata, which
only the wraps and the header can prove (`keyturn download`).
They must never print a wrap, only its length.
"""

import asyncio
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Final

import typer

from keyturn import metadata as object_metadata
from keyturn.crypto import HEADER_BYTES, SALT_BYTES, V0_OVERHEAD_BYTES, ChunkError, plaintext_size
from keyturn.errors import CorruptObjectError, NotFoundError, UnknownAlgorithmError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import COBBLESTONE, Plaintext, Tombstone, V0Wraps, Wraps
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import AsJson, Key, Project
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import ObjectHead, ObjectSummary, Storage

_HEADS_AT_ONCE: Final = 16
_SHORT: Final = ("key", "stored_bytes", "modified")
_LONG: Final = (
    *_SHORT,
    "kind",
    "algorithm",
    "plaintext_bytes",
    "generation",
    "kek_id",
    "master_key",
)


def ls(
    project: Project,
    prefix: Annotated[str, typer.Argument(help="Only keys that begin so.")] = "",
    long: Annotated[
        bool, typer.Option("-l", "--long", help="Ask each object for its metadata, too.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many objects.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List a project's objects."""
    rows, more = asyncio.run(_ls(S3Settings.read(), project, prefix, limit, long=long))
    if as_json:
        print_json(rows)
    else:
        columns = _LONG if long else _SHORT
        print_table(columns, ([row.get(column) for column in columns] for row in rows))
    if not long and any(row["stored_bytes"] == 0 for row in rows):
        note("what has no bytes was deleted for good, or is empty plaintext: --long tells")
    if more:
        note(f"there are more than {limit}; --limit shows them")


async def _ls(
    settings: S3Settings, project: str, prefix: str, limit: int, *, long: bool
) -> tuple[list[dict[str, Any]], bool]:
    async with open_bucket(settings, max_connections=_HEADS_AT_ONCE + 1) as storage:
        whole = object_s3_key(project, prefix)
        found = [row async for row in storage.list(whole, limit=limit + 1)]
        shown = list(islice(found, limit))
        slots = asyncio.Semaphore(_HEADS_AT_ONCE)

        async def row_of(listed: ObjectSummary) -> dict[str, Any]:
            key = listed.key.removeprefix(f"{project}/")
            short = {
                "key": key,
                "stored_bytes": listed.size_bytes,
                "modified": listed.last_modified.isoformat(timespec="seconds"),
            }
            if not long:
                return short
            async with slots:
                return short | await _claims(storage, listed.key)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(row_of(listed)) for listed in shown]
        return [task.result() for task in tasks], len(found) > limit


async def _claims(storage: Storage, s3_key: str) -> dict[str, Any]:
    try:
        head = await storage.head(s3_key)
    except MissingError:
        return {"kind": "gone"}  # between the listing and this look
    return claims(head.metadata, head.size_bytes)


def claims(metadata: Mapping[str, str], stored_bytes: int) -> dict[str, Any]:
    """What an object's metadata and length claim it to be. Pure; proves nothing."""
    algorithm = metadata.get(object_metadata.ALGO)
    try:
        envelope = object_metadata.parse(metadata)
    except UnknownAlgorithmError as exc:
        return {"kind": "unknown", "code": exc.code, "detail": exc.detail, "algorithm": algorithm}
    except CorruptObjectError as exc:
        return {"kind": "corrupt", "code": exc.code, "detail": exc.detail, "algorithm": algorithm}
    match envelope:
        case Plaintext():
            return {"kind": "plaintext", "algorithm": None, "plaintext_bytes": stored_bytes}
        case Tombstone(sealed):
            return {"kind": "tombstone", "algorithm": algorithm, "wrap_bytes_admin": len(sealed)}
        case V0Wraps(user, admin):
            return {
                "kind": "v0",
                "algorithm": algorithm,
                "plaintext_bytes": max(stored_bytes - V0_OVERHEAD_BYTES, 0),
                "wrap_bytes_user": None if user is None else len(user),
                "wrap_bytes_admin": None if admin is None else len(admin),
            }
        case Wraps():
            return {
                "kind": "encrypted",
                "algorithm": algorithm,
                "plaintext_bytes": _plaintext_bytes(envelope.algorithm, stored_bytes),
                "generation": envelope.generation,
                "kek_id": envelope.kek_id,
                "master_key": envelope.master_key,
                "wrap_bytes_user": len(envelope.user),
                "wrap_bytes_admin": len(envelope.admin),
            }


def _plaintext_bytes(algorithm: str, stored_bytes: int) -> int | None:
    if algorithm != COBBLESTONE:
        return max(stored_bytes - V0_OVERHEAD_BYTES, 0)
    try:
        return plaintext_size(stored_bytes)
    except ChunkError:
        return None  # no sealed body has this length


def inspect(project: Project, key: Key, as_json: AsJson = False) -> None:
    """Show what an object's metadata says.

    No key is needed, and no secret is shown.
    """
    report = asyncio.run(_inspect(S3Settings.read(), project, key))
    if as_json:
        print_json(report)
        return
    caller = report.pop("metadata")
    rows = [*report.items(), *((f"metadata: {name}", value) for name, value in caller.items())]
    print_table(("field", "value"), rows)


async def _inspect(settings: S3Settings, project: str, key: str) -> dict[str, Any]:
    async with open_bucket(settings, max_connections=2) as storage:
        try:
            head, start = await storage.read_start(object_s3_key(project, key), HEADER_BYTES)
        except MissingError as exc:
            raise NotFoundError(key) from exc
        return {"project": project, "key": key} | _report(head, start)


def _report(head: ObjectHead, start: bytes) -> dict[str, Any]:
    committed = head.metadata.get(object_metadata.ALGO) == COBBLESTONE
    whole = committed and len(start) == HEADER_BYTES
    return {
        **claims(head.metadata, head.size_bytes),
        "commitment": start[SALT_BYTES:].hex() if whole else None,
        "stored_bytes": head.size_bytes,
        "content_type": head.headers.content_type,
        "upload_id": head.metadata.get(object_metadata.UPLOAD),
        "etag": head.etag,
        "modified": head.last_modified.isoformat(timespec="seconds"),
        "tags": head.tag_count,
        "metadata": object_metadata.decode_caller_metadata(head.metadata),
    }
