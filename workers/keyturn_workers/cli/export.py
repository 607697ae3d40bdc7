"""`keyturn export`: every object of a project, decrypted, in a folder or a bucket (SPEC 14).

The objects come from a gateway, or with `--as-operator` from the bucket, as for `keyturn download`.
Exported objects are neither read nor written again.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from pydantic import ValidationError
from rich.filesize import decimal

from keyturn.errors import CodedError, GatewayError, SettingsError, TransientError
from keyturn.gateway.listing import ListedObject
from keyturn.identifiers import has_control_characters, object_s3_key
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    CustomerSecretFile,
    GatewayUrl,
    Project,
    Reason,
)
from keyturn_workers.cli.audit import command_audit
from keyturn_workers.cli.bucket import open_bucket, optional_task
from keyturn_workers.cli.download import (
    AsOperator,
    check_access_options,
    operator_access,
)
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.gateway_access import GatewayAccess, gateway_access, gateway_client
from keyturn_workers.cli.objects import plaintext_bytes, require_enrolled
from keyturn_workers.cli.output import (
    TransferProgress,
    print_json,
    print_line,
    print_rows,
    transfer_progress,
)
from keyturn_workers.core.errors import first_error
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.offline.download import OperatorAccess, open_object
from keyturn_workers.offline.export.folder import Folder
from keyturn_workers.offline.export.run import Destination, Export, ExportReport, Source
from keyturn_workers.offline.export.s3_prefix import PREFIX_MAX_BYTES, S3Prefix
from keyturn_workers.process.settings import AuditSettings, OperatorSettings

_S3: Final = "s3://"
_COLUMNS: Final = ("key", "code", "detail")
_DEFAULT_REGION: Final = "us-east-1"


class _Bucket(NamedTuple):
    """A bucket as the destination; `prefix` is empty, or ends with a `/`."""

    settings: S3Settings
    prefix: str


class _Run(NamedTuple):
    """The project of one export, its destination, and the number of objects read at once."""

    project: str
    target: Path | _Bucket
    concurrency: int


def export(
    project: Project,
    destination: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER | s3://BUCKET/PREFIX",
            help="A new or empty folder or prefix, or that of an export to continue.",
        ),
    ],
    as_operator: AsOperator = False,
    reason: Reason = None,
    customer_secret_file: CustomerSecretFile = None,
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    endpoint_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="AWS_ENDPOINT_URL",
            help="The server of the destination's bucket, if not AWS. Its credentials come from "
            "the standard AWS chain (AWS_ACCESS_KEY_ID, AWS_PROFILE, ...).",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="How many objects to read at once.")
    ] = 16,
    as_json: AsJson = False,
) -> None:
    """Decrypt all objects of a project into a folder or another bucket.

    Reads through a gateway, with the project's API key. An operator may read the bucket instead,
    with the master keys (--as-operator).

    Run it again to continue after an interruption, or to add new objects. The manifest (JSON
    lines) has each object's key, path, size, SHA-256, content type and metadata. Exits with 0 only
    if every object was opened to its end and has the expected size.
    """
    secrets = check_access_options(
        reason, gateway, api_key_file, customer_secret_file, as_operator=as_operator
    )
    run = _Run(project, _parse_target(destination, endpoint_url), concurrency)
    if as_operator:
        report = asyncio.run(_export_as_operator(OperatorSettings.read(), run, reason, secrets))
    else:
        access = gateway_access(project, gateway, api_key_file)
        report = asyncio.run(_export_by_gateway(access, run))
    _print(report, project, destination, as_json=as_json)


def _parse_target(destination: str, endpoint_url: str | None) -> Path | _Bucket:
    if not destination.startswith(_S3):
        return Path(destination)
    bucket, _, path = destination.removeprefix(_S3).partition("/")
    prefix = f"{path.strip('/')}/" if path.strip("/") else ""
    if len(prefix.encode()) > PREFIX_MAX_BYTES or has_control_characters(prefix):
        raise typer.BadParameter(
            f"a prefix has at most {PREFIX_MAX_BYTES} bytes, without control characters"
        )
    try:
        # All of them: missing ones would come from the settings of Keyturn's own bucket.
        settings = S3Settings(
            s3_endpoint_url=endpoint_url,
            s3_region=os.environ.get("AWS_REGION")
            or os.environ.get("AWS_DEFAULT_REGION")
            or _DEFAULT_REGION,
            s3_bucket=bucket,
            s3_access_key_id=None,
            s3_secret_access_key=None,
            s3_ca_file=None,
            s3_cert_file=None,
            s3_key_file=None,
        )
    except ValidationError:
        raise typer.BadParameter(
            "an S3 destination is s3://BUCKET/PREFIX, and --endpoint-url http://… or https://…"
        ) from None
    return _Bucket(settings, prefix)


async def _export_as_operator(
    settings: OperatorSettings, run: _Run, reason: str | None, secrets: GivenSecrets
) -> ExportReport:
    async with (
        command_audit(AuditSettings.read(), "export", reason) as audit,
        _source_bucket(settings, run) as storage,
        operator_access(settings, storage, audit, run.project, secrets) as access,
        # One record for all objects of the project.
        audit.act("object.opened_as_operator", project=run.project),
    ):
        return await _export(_bucket_source(storage, access), run)


async def _export_by_gateway(access: GatewayAccess, run: _Run) -> ExportReport:
    async with gateway_client(access) as client:

        def listing(after: str) -> AsyncGenerator[ListedObject, None]:
            return client.list(run.project, after=after)

        # A refusal ends the command before it creates a folder. The export itself retries
        # transient errors.
        with suppress(TransientError, GatewayError):
            async with aclosing(listing("")) as first:
                await anext(first, None)
        return await _export(Source(listing, partial(client.open, run.project)), run)


@asynccontextmanager
async def _source_bucket(settings: S3Settings, run: _Run) -> AsyncIterator[Storage]:
    # An object and its keyring are read in parallel; plus two listings.
    async with open_bucket(settings, max_connections=2 * run.concurrency + 2) as storage:
        if not [row async for row in storage.list(object_s3_key(run.project, ""), limit=1)]:
            await require_enrolled(storage, run.project)
        yield storage


def _bucket_source(storage: Storage, access: OperatorAccess) -> Source:
    async def listing(after: str) -> AsyncGenerator[ListedObject, None]:
        prefix = object_s3_key(access.project, "")
        async for row in storage.list(prefix, after=f"{prefix}{after}" if after else ""):
            size_bytes = plaintext_bytes(row.size_bytes)
            yield ListedObject(row.key.removeprefix(prefix), size_bytes, row.last_modified)

    return Source(listing, lambda key: open_object(storage, key, access))


@asynccontextmanager
async def _open_target(run: _Run) -> AsyncIterator[Destination]:
    if isinstance(run.target, Path):
        with Folder.open(run.target, run.project) as folder:
            yield folder
        return
    try:
        async with (
            open_bucket(run.target.settings, max_connections=run.concurrency + 1) as storage,
            S3Prefix.open(storage, run.target.prefix, run.project) as prefix,
        ):
            yield prefix
    except SettingsError as exc:  # it names the settings of Keyturn's own bucket
        raise SettingsError(
            "no credentials for the destination: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or provide credentials through the standard AWS chain"
        ) from exc


async def _export(source: Source, run: _Run) -> ExportReport:
    async with _open_target(run) as destination:
        with transfer_progress() as progress:
            counting = partial(_count, source, progress) if sys.stderr.isatty() else None
            exporting = Export(source, destination, progress.advance)
            try:
                async with optional_task(counting):
                    await exporting.run(run.concurrency)
            except BaseException as exc:
                first = first_error(exc)
                if isinstance(first, TransientError) or not isinstance(first, CodedError):
                    note("not finished: run the same command again to continue")
                raise
    return exporting.report


async def _count(source: Source, progress: TransferProgress) -> None:
    objects = size_bytes = 0
    async for entry in source.list(""):
        objects += 1
        size_bytes += entry.size_bytes or 0
    progress.expect(objects, size_bytes)


def _print(report: ExportReport, project: str, destination: str, *, as_json: bool) -> None:
    failed = report.failed.total()
    there = report.exported + report.already_there
    if as_json:
        counted = asdict(report) | {"failed": dict(report.failed)}
        print_json({"project": project, "destination": destination, **counted})
    else:
        if failed:
            print_rows(_COLUMNS, report.failures)
            print_line("")
        deleted = f", {report.deleted} deleted" if report.deleted else ""
        print_line(
            f"{there} objects with {decimal(report.size_bytes)} in {destination}: "
            f"{report.exported} new, {report.already_there} already there{deleted}"
        )
    if omitted := failed - len(report.failures):
        note(f"{omitted} more failures are not listed")
    if failed:
        codes = ", ".join(f"{code} {count}" for code, count in report.failed.most_common())
        raise CommandError(f"{failed} of {there + failed} objects failed: {codes}")
