"""`keyturn ls` and `inspect`: the objects of a project (SPEC 4.3, 4.5, 4.6, 9.3).

`ls` asks a gateway, with the API key. `inspect` and `ls --as-operator` need only the bucket, and no
key. They show the claims of metadata; only opening the wraps and the body proves them (`keyturn
download`). They must never print a wrap, only its length. In the bucket, `ls` reads the metadata of
each object, since no listing of S3 has the size of a plaintext.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, Final, Literal

import typer

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import HEADER_BYTES, SALT_BYTES, plaintext_size
from keyturn.errors import (
    ChunkError,
    CorruptObjectError,
    MalformedRequestError,
    NotFoundError,
    UnknownAlgorithmError,
    UnknownProjectError,
)
from keyturn.gateway.listing import PAGE_MAX_ENTRIES, ListedObject, ListedPrefix
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import COBBLESTONE, Plaintext, Tombstone, Wraps
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    GatewayUrl,
    ObjectKey,
    Project,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.gateway_access import (
    GatewayAccess,
    gateway_access,
    gateway_client,
    refuse_gateway_options,
)
from keyturn_workers.cli.output import print_json, print_rows, print_table, to_seconds
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import PAGE_KEYS, ObjectHead, ObjectSummary

_CONCURRENCY: Final = 32
_COLUMNS: Final = ("key", "plaintext_bytes", "changed_at")
_LONG_COLUMNS: Final = (
    *_COLUMNS,
    "kind",
    "generation",
    "kek_id",
    "master_key",
    "algorithm",
    "stored_bytes",
)
_DELETED: Final = ("tombstone", "gone")


def ls(
    project: Project,
    prefix: Annotated[str, typer.Argument(help="Only keys with this prefix.")] = "",
    long: Annotated[
        bool,
        typer.Option(
            "-l", "--long", help="Also show each object's metadata. Requires --as-operator."
        ),
    ] = False,
    all_objects: Annotated[
        bool,
        typer.Option(
            "-a",
            "--all",
            help="Also list deleted objects: their tombstones. Requires --as-operator.",
        ),
    ] = False,
    folders: Annotated[
        bool,
        typer.Option("--folders", help="List one level: keys below a / as one folder."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of objects.")] = 1000,
    as_operator: Annotated[
        bool,
        typer.Option(
            "--as-operator",
            help="List the bucket (KEYTURN_S3_…) instead of asking the gateway. Needs no key.",
        ),
    ] = False,
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """List a project's objects.

    Asks a gateway, with the project's API key. An operator may list the bucket instead
    (--as-operator), which also has the metadata of each object (--long) and deleted ones (--all).
    """
    request = _Request(project, prefix, limit, folders=folders, with_deleted=all_objects)
    if as_operator:
        refuse_gateway_options(gateway, api_key_file)
        rows, more = asyncio.run(_ls_as_operator(S3Settings.read(), request))
    elif long or all_objects:
        raise typer.BadParameter("--long and --all require --as-operator")
    else:
        access = gateway_access(project, gateway, api_key_file)
        rows, more = asyncio.run(_ls_by_gateway(access, request))
    columns = _LONG_COLUMNS if long else (*_COLUMNS, "kind") if all_objects else _COLUMNS
    if not long:
        rows = [{name: row.get(name) for name in columns} for row in rows]
    print_rows(columns, rows, as_json=as_json)
    if more:
        note(f"there are more objects; raise --limit (now {limit}) to see them")


@dataclass(frozen=True, slots=True)
class _Request:
    """The listing to make."""

    project: str
    prefix: str
    limit: int
    folders: bool
    with_deleted: bool

    @property
    def delimiter(self) -> Literal["/"] | None:
        return "/" if self.folders else None


async def _ls_by_gateway(
    access: GatewayAccess, request: _Request
) -> tuple[list[dict[str, Any]], bool]:
    rows: list[dict[str, Any]] = []
    async with gateway_client(access) as client:
        try:
            listing = client.list(
                request.project,
                prefix=request.prefix,
                delimiter=request.delimiter,
                page_size=min(request.limit + 1, PAGE_MAX_ENTRIES),
            )
        except MalformedRequestError as exc:
            raise typer.BadParameter(str(exc)) from exc
        async with aclosing(listing):
            async for entry in listing:
                if len(rows) == request.limit:
                    return rows, True
                rows.append(_gateway_row(entry))
    return rows, False


def _gateway_row(entry: ListedObject | ListedPrefix) -> dict[str, Any]:
    if isinstance(entry, ListedPrefix):
        return {"key": entry.prefix, "plaintext_bytes": None, "changed_at": None}
    changed_at = to_seconds(entry.changed_at)
    return {"key": entry.key, "plaintext_bytes": entry.size_bytes, "changed_at": changed_at}


async def _ls_as_operator(
    settings: S3Settings, request: _Request
) -> tuple[list[dict[str, Any]], bool]:
    async with open_bucket(settings, max_connections=_CONCURRENCY + 1) as storage:
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def describe(entry: ObjectSummary | str) -> dict[str, Any]:
            if isinstance(entry, str):
                return {"key": entry.removeprefix(f"{request.project}/")}
            async with slots:
                claimed = await read_claims(storage, entry.key)
            return {
                "key": entry.key.removeprefix(f"{request.project}/"),
                "stored_bytes": entry.size_bytes,
                "changed_at": to_seconds(entry.last_modified),
                **claimed,
            }

        rows: list[dict[str, Any]] = []
        listed = 0
        async for page in _pages(storage, request):
            listed += len(page)
            described = await asyncio.gather(*map(describe, page))
            rows += [
                row for row in described if request.with_deleted or row.get("kind") not in _DELETED
            ]
            if len(rows) > request.limit:
                break
        if not listed:
            await require_enrolled(storage, request.project)
    if request.folders:
        rows.sort(key=itemgetter("key"))  # objects and folders were listed separately
    return rows[: request.limit], len(rows) > request.limit


async def require_enrolled(storage: Storage, project: str) -> None:
    """Distinguish a project without objects from one that does not exist."""
    try:
        await storage.head(keyring_s3_key(project))
    except MissingError as exc:
        raise UnknownProjectError.of(project) from exc


async def _pages(storage: Storage, request: _Request) -> AsyncIterator[list[ObjectSummary | str]]:
    """Yield objects and folders (as text) in the storage's order, no more at once than needed."""
    limit = min(max(request.limit + 1, _CONCURRENCY), PAGE_KEYS)
    after: str | None = ""
    while after is not None:
        page = await storage.list_entries(
            object_s3_key(request.project, request.prefix),
            delimiter=request.delimiter or "",
            after=after,
            limit=limit,
        )
        yield [*page.prefixes, *page.objects]
        after = page.next_after


async def read_claims(storage: Storage, s3_key: str) -> dict[str, Any]:
    """Return the claims of the metadata of the object at this S3 key; `gone` if missing."""
    try:
        head = await storage.head(s3_key)
    except MissingError:
        return {"kind": "gone"}  # deleted since the listing
    return claims(head.metadata, head.size_bytes)


def claims(metadata: Mapping[str, str], stored_bytes: int) -> dict[str, Any]:
    """Return the claims of an object's metadata and length. Pure; proves nothing."""
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
        case Wraps():
            return {
                "kind": "encrypted",
                "algorithm": algorithm,
                "plaintext_bytes": plaintext_bytes(stored_bytes),
                "generation": envelope.generation,
                "kek_id": envelope.kek_id,
                "master_key": envelope.master_key,
                "wrap_bytes_user": len(envelope.user),
                "wrap_bytes_admin": len(envelope.admin),
            }


def plaintext_bytes(stored_bytes: int) -> int | None:
    """Return the bytes of a stored body's plaintext; None if no plaintext has that length."""
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
        "stored_at": to_seconds(
            object_metadata.stored_at(head.metadata, head.last_modified) or head.last_modified
        ),
        "changed_at": to_seconds(head.last_modified),
        "tags": head.tag_count,
        "metadata": object_metadata.decode_caller_metadata(head.metadata),
    }
