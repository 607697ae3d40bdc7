"""`keyturn ls` and `keyturn inspect`: what metadata says (SPEC 4.3, 4.5 to 4.7).

Both need only the bucket and no key. What they show is what metadata claims; only opening
the wraps and the body proves it (`keyturn download`). They must never print a wrap, only its
length.
"""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from keyturn import metadata as object_metadata
from keyturn.crypto import HEADER_BYTES, SALT_BYTES, V0_OVERHEAD_BYTES, ChunkError, plaintext_size
from keyturn.errors import CorruptObjectError, NotFoundError, UnknownAlgorithmError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import COBBLESTONE, Plaintext, Tombstone, V0Wraps, Wraps
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import AsJson, ObjectKey, Project
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_rows, print_table
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import ObjectHead, ObjectSummary, Storage

_CONCURRENCY: Final = 16
_SHORT_COLUMNS: Final = ("key", "stored_bytes", "modified")
_LONG_COLUMNS: Final = (
    *_SHORT_COLUMNS,
    "kind",
    "algorithm",
    "plaintext_bytes",
    "generation",
    "kek_id",
    "master_key",
)


def ls(
    project: Project,
    prefix: Annotated[str, typer.Argument(help="Only keys with this prefix.")] = "",
    long: Annotated[
        bool, typer.Option("-l", "--long", help="Also read each object's metadata.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of objects.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List a project's objects."""
    rows, more = asyncio.run(_ls(S3Settings.read(), project, prefix, limit, long=long))
    print_rows(_LONG_COLUMNS if long else _SHORT_COLUMNS, rows, as_json=as_json)
    if not long and any(row["stored_bytes"] == 0 for row in rows):
        note("objects with 0 bytes are deleted or empty plaintext; --long shows which")
    if more:
        note(f"there are more objects; raise --limit (now {limit}) to see them")


async def _ls(
    settings: S3Settings, project: str, prefix: str, limit: int, *, long: bool
) -> tuple[list[dict[str, Any]], bool]:
    async with open_bucket(settings, max_connections=_CONCURRENCY + 1) as storage:
        s3_prefix = object_s3_key(project, prefix)
        listed = [row async for row in storage.list(s3_prefix, limit=limit + 1)]
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def describe(row: ObjectSummary) -> dict[str, Any]:
            short = {
                "key": row.key.removeprefix(f"{project}/"),
                "stored_bytes": row.size_bytes,
                "modified": row.last_modified.isoformat(timespec="seconds"),
            }
            if not long:
                return short
            async with slots:
                return short | await _read_claims(storage, row.key)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(describe(row)) for row in listed[:limit]]
        return [task.result() for task in tasks], len(listed) > limit


async def _read_claims(storage: Storage, s3_key: str) -> dict[str, Any]:
    try:
        head = await storage.head(s3_key)
    except MissingError:
        return {"kind": "gone"}  # deleted since it was listed
    return claims(head.metadata, head.size_bytes)


def claims(metadata: Mapping[str, str], stored_bytes: int) -> dict[str, Any]:
    """What an object's metadata and length claim. Pure; proves nothing."""
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
        return None  # no encrypted body has this length


def inspect(project: Project, key: ObjectKey, as_json: AsJson = False) -> None:
    """Show an object's metadata.

    Needs no key and shows no secret.
    """
    report = asyncio.run(_inspect(S3Settings.read(), project, key))
    if as_json:
        print_json(report)
        return
    metadata = report.pop("metadata")
    rows = [*report.items(), *((f"metadata: {name}", value) for name, value in metadata.items())]
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
    is_complete = committed and len(start) == HEADER_BYTES
    return {
        **claims(head.metadata, head.size_bytes),
        "commitment": start[SALT_BYTES:].hex() if is_complete else None,
        "stored_bytes": head.size_bytes,
        "content_type": head.headers.content_type,
        "upload_id": head.metadata.get(object_metadata.UPLOAD),
        "etag": head.etag,
        "modified": head.last_modified.isoformat(timespec="seconds"),
        "tags": head.tag_count,
        "metadata": object_metadata.decode_caller_metadata(head.metadata),
    }
