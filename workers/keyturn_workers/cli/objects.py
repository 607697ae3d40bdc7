"""`keyturn ls` and `inspect`: the objects of a project (SPEC 4.3, 4.5, 4.6, 9.3).

Both need only the bucket and no key. They show the claims of metadata; only opening the wraps and
the body proves them (`keyturn download`). They must never print a wrap, only its length. `ls` reads
the metadata of each object, since no listing has the size of a plaintext. It also works through a
gateway, with only the API key.
"""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, Final, Literal

import typer
from pydantic import SecretStr

from keyturn import metadata as object_metadata
from keyturn.crypto.cobblestone import HEADER_BYTES, SALT_BYTES, plaintext_size
from keyturn.errors import (
    ChunkError,
    CorruptObjectError,
    MalformedRequestError,
    NotFoundError,
    UnencryptedGatewayWarning,
    UnknownAlgorithmError,
    UnknownProjectError,
)
from keyturn.gateway.client import Client
from keyturn.gateway.listing import PAGE_MAX_ENTRIES, ListedObject, ListedPrefix
from keyturn.gateway.transport import is_unencrypted
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import COBBLESTONE, Plaintext, Tombstone, Wraps
from keyturn.settings import GatewayClientSettings, S3Settings
from keyturn.tls import GATEWAY, client_context
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    GatewayUrl,
    ObjectKey,
    Project,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_rows, print_table, to_seconds
from keyturn_workers.cli.secrets import read_api_key
from keyturn_workers.cli.settings import GatewayUrlSettings
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
        bool, typer.Option("-l", "--long", help="Also read each object's metadata.")
    ] = False,
    all_objects: Annotated[
        bool, typer.Option("-a", "--all", help="Also list deleted objects: their tombstones.")
    ] = False,
    folders: Annotated[
        bool,
        typer.Option("--folders", help="List one level: keys below a / as one folder."),
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of objects.")] = 1000,
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """List a project's objects.

    Reads the bucket, or lists through a gateway if one is configured. Through a gateway you
    need no S3 settings. --long and --all always read the bucket.
    """
    from_bucket = long or all_objects
    if from_bucket and gateway is not None:
        raise typer.BadParameter("--long and --all cannot be used together with --gateway")
    request = _Request(project, prefix, limit, folders=folders, with_deleted=all_objects)
    if not from_bucket and (url := configured_gateway(gateway)):
        api_key = read_api_key(api_key_file, project, confirm=False)
        rows, more = asyncio.run(_ls_through_gateway(url, api_key, request))
    elif api_key_file is not None:
        raise typer.BadParameter("--api-key-file needs --gateway or KEYTURN_GATEWAY_URL")
    else:
        rows, more = asyncio.run(_ls(S3Settings.read(), request))
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


async def _ls_through_gateway(
    url: str, api_key: SecretStr, request: _Request
) -> tuple[list[dict[str, Any]], bool]:
    rows: list[dict[str, Any]] = []
    async with gateway_client(url, api_key) as client:
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


async def _ls(settings: S3Settings, request: _Request) -> tuple[list[dict[str, Any]], bool]:
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


# Through a gateway: with only the API key, without bucket, broker or pepper (SPEC 9).


def configured_gateway(option: str | None) -> str | None:
    """Return the gateway's URL from the option or the settings; None to work without one.

    Raises:
        SettingsError: the setting is not a gateway's URL.
    """
    return option or GatewayUrlSettings.read().gateway_url


def _context() -> ssl.SSLContext | None:
    ca = GatewayClientSettings.read().gateway_ca_file
    # A redirect may lead to a storage with a certificate of a public authority.
    return None if ca is None else client_context(GATEWAY, ca, with_system=True)


@asynccontextmanager
async def gateway_client(url: str, api_key: SecretStr) -> AsyncIterator[Client]:
    """Yield a client; print one line, not a warning, if the API key is sent unencrypted."""
    if is_unencrypted(url):
        note("the API key is sent to the gateway unencrypted; use https://")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnencryptedGatewayWarning)  # see the note above
        async with Client.connect(url, api_key, tls=_context()) as client:
            yield client
