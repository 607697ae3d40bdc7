"""`keyturn ls` and `inspect`: the objects of a project (SPEC 4.3, 4.5 to 4.7, 9.3).

Both `ls` and `inspect` need only the bucket and no key. What they show is what metadata claims;
only opening the wraps and the body proves it (`keyturn download`). They must never print a wrap,
only its length. `ls` works through a gateway too, with only the API key.
"""

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import typer
from pydantic import SecretStr

from keyturn import metadata as object_metadata
from keyturn.crypto import HEADER_BYTES, SALT_BYTES, V0_OVERHEAD_BYTES, ChunkError, plaintext_size
from keyturn.errors import (
    CorruptObjectError,
    MalformedRequestError,
    NotFoundError,
    UnknownAlgorithmError,
    UnknownProjectError,
)
from keyturn.gateway import (
    Client,
    ListedObject,
    ListedPrefix,
    UnencryptedGatewayWarning,
)
from keyturn.gateway.listing import PAGE_MAX_ENTRIES
from keyturn.gateway.transport import is_unencrypted
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.metadata import COBBLESTONE, Plaintext, Tombstone, V0Wraps, Wraps
from keyturn.settings import S3Settings
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
from keyturn_workers.cli.output import print_json, print_rows, print_table
from keyturn_workers.cli.secrets import read_api_key
from keyturn_workers.cli.settings import GatewayTlsSettings, GatewayUrlSettings
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import PAGE_KEYS, ObjectHead, ObjectSummary, Storage

_CONCURRENCY: Final = 16
_SHORT_COLUMNS: Final = ("key", "stored_bytes", "changed_at")
_GATEWAY_COLUMNS: Final = ("key", "plaintext_bytes", "changed_at")
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
    need no S3 settings, deleted objects are left out, and sizes are those of the plaintext.
    --long always reads the bucket.
    """
    if long and gateway is not None:
        raise typer.BadParameter("--long and --gateway cannot be used together")
    request = _Request(project, prefix, limit, folders=folders)
    if not long and (url := configured_gateway(gateway)):
        api_key = read_api_key(api_key_file, project, confirm=False)
        rows, more = asyncio.run(_ls_through_gateway(url, api_key, request))
        print_rows(_GATEWAY_COLUMNS, rows, as_json=as_json)
    elif api_key_file is not None:
        raise typer.BadParameter("--api-key-file needs --gateway or KEYTURN_GATEWAY_URL")
    else:
        rows, more = asyncio.run(_ls(S3Settings.read(), request, long=long))
        print_rows(_LONG_COLUMNS if long else _SHORT_COLUMNS, rows, as_json=as_json)
        if not long and any(row["stored_bytes"] == 0 for row in rows):
            note("objects with 0 bytes are deleted or empty plaintext; --long shows which")
    if more:
        note(f"there are more objects; raise --limit (now {limit}) to see them")


@dataclass(frozen=True, slots=True)
class _Request:
    """What to list."""

    project: str
    prefix: str
    limit: int
    folders: bool

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
    changed_at = entry.changed_at.isoformat(timespec="seconds")
    return {"key": entry.key, "plaintext_bytes": entry.size_bytes, "changed_at": changed_at}


async def _ls(
    settings: S3Settings, request: _Request, *, long: bool
) -> tuple[list[dict[str, Any]], bool]:
    async with open_bucket(settings, max_connections=_CONCURRENCY + 1) as storage:
        listed = await _list(storage, request)
        if not listed:
            await require_enrolled(storage, request.project)
        slots = asyncio.Semaphore(_CONCURRENCY)

        async def describe(row: ObjectSummary | str) -> dict[str, Any]:
            if isinstance(row, str):
                key = row.removeprefix(f"{request.project}/")
                return {"key": key, "stored_bytes": None, "changed_at": None}
            short = {
                "key": row.key.removeprefix(f"{request.project}/"),
                "stored_bytes": row.size_bytes,
                "changed_at": row.last_modified.isoformat(timespec="seconds"),
            }
            if not long:
                return short
            async with slots:
                return short | await read_claims(storage, row.key)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(describe(row)) for row in listed[: request.limit]]
        return [task.result() for task in tasks], len(listed) > request.limit


async def require_enrolled(storage: Storage, project: str) -> None:
    """Distinguish a project without objects from one that does not exist."""
    try:
        await storage.head(keyring_s3_key(project))
    except MissingError as exc:
        raise UnknownProjectError.of(project) from exc


async def _list(storage: Storage, request: _Request) -> list[ObjectSummary | str]:
    """Objects and folders (each as text), with one more than the limit if there are more."""
    s3_prefix, wanted = object_s3_key(request.project, request.prefix), request.limit + 1
    if not request.folders:
        return [row async for row in storage.list(s3_prefix, limit=wanted)]
    listed: list[ObjectSummary | str] = []
    after: str | None = ""
    while after is not None and len(listed) < wanted:
        page = await storage.list_entries(
            s3_prefix, delimiter="/", after=after, limit=min(wanted - len(listed), PAGE_KEYS)
        )
        listed += page.prefixes
        listed += page.objects
        after = page.next_after
    return sorted(listed, key=lambda row: row if isinstance(row, str) else row.key)


async def read_claims(storage: Storage, s3_key: str) -> dict[str, Any]:
    """What the metadata of the object at this S3 key claim, as `claims`; `gone` without one."""
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
                "plaintext_bytes": plaintext_bytes(envelope.algorithm, stored_bytes),
                "generation": envelope.generation,
                "kek_id": envelope.kek_id,
                "master_key": envelope.master_key,
                "wrap_bytes_user": len(envelope.user),
                "wrap_bytes_admin": len(envelope.admin),
            }


def plaintext_bytes(algorithm: str, stored_bytes: int) -> int | None:
    """Bytes of the plaintext of a stored body; None if no plaintext has that length."""
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
        "stored_at": (
            object_metadata.stored_at(head.metadata, head.last_modified) or head.last_modified
        ).isoformat(timespec="seconds"),
        "changed_at": head.last_modified.isoformat(timespec="seconds"),
        "tags": head.tag_count,
        "metadata": object_metadata.decode_caller_metadata(head.metadata),
    }


# Through a gateway: with only the API key, without bucket, broker or pepper (SPEC 9).


def configured_gateway(option: str | None) -> str | None:
    """The gateway's URL: of the option, else of the settings; None to work without one.

    Raises:
        SettingsError: the setting is not a gateway's URL.
    """
    return option or GatewayUrlSettings.read().gateway_url


def _context() -> ssl.SSLContext | None:
    ca = GatewayTlsSettings.read().gateway_ca_file
    # A redirect may lead to a storage with a certificate of a public authority.
    return None if ca is None else client_context(GATEWAY, ca, with_system=True)


@asynccontextmanager
async def gateway_client(url: str, api_key: SecretStr) -> AsyncIterator[Client]:
    """A client, with one line instead of a warning where the API key is sent unencrypted."""
    if is_unencrypted(url):
        note("the API key is sent to the gateway unencrypted; use https://")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnencryptedGatewayWarning)  # see the note above
        async with Client.connect(url, api_key, tls=_context()) as client:
            yield client
