"""`keyturn export`: every object of a project, decrypted, in a folder or a bucket (SPEC 14).

The objects come from a gateway, or with `--as-operator` from the bucket, as for `keyturn download`.
Exported objects are neither read nor written again.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer
from pydantic import ValidationError
from rich.filesize import decimal

from keyturn.errors import SettingsError
from keyturn.identifiers import has_control_characters
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    CustomerSecretFile,
    GatewayUrl,
    Project,
    Reason,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.download import (
    AsOperator,
)
from keyturn_workers.cli.export_source import (
    Reading,
    check_complete,
    open_source,
    print_failures,
    transfer,
)
from keyturn_workers.cli.output import (
    print_json,
    print_line,
)
from keyturn_workers.offline.export.folder import Folder
from keyturn_workers.offline.export.run import Destination, ExportReport
from keyturn_workers.offline.export.s3_prefix import PREFIX_MAX_BYTES, S3Prefix

_S3: Final = "s3://"
_DEFAULT_REGION: Final = "us-east-1"


class _Bucket(NamedTuple):
    """A bucket as the destination; `prefix` is empty, or ends with a `/`."""

    settings: S3Settings
    prefix: str


class _Run(NamedTuple):
    """What one export reads, and its destination."""

    reading: Reading
    target: Path | _Bucket


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
    target = _parse_target(destination, endpoint_url)
    reading = Reading.of(
        "export",
        project,
        concurrency,
        as_operator=as_operator,
        reason=reason,
        customer_secret_file=customer_secret_file,
        gateway=gateway,
        api_key_file=api_key_file,
    )
    report = asyncio.run(_export(_Run(reading, target)))
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


@asynccontextmanager
async def _open_target(run: _Run) -> AsyncIterator[Destination]:
    if isinstance(run.target, Path):
        with Folder.open(run.target, run.reading.project) as folder:
            yield folder
        return
    try:
        async with (
            open_bucket(
                run.target.settings, max_connections=run.reading.concurrency + 1
            ) as storage,
            S3Prefix.open(storage, run.target.prefix, run.reading.project) as prefix,
        ):
            yield prefix
    except SettingsError as exc:  # it names the settings of Keyturn's own bucket
        raise SettingsError(
            "no credentials for the destination: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or provide credentials through the standard AWS chain"
        ) from exc


async def _export(run: _Run) -> ExportReport:
    async with open_source(run.reading) as source, _open_target(run) as destination:
        return await transfer(source, destination, run.reading.concurrency)


def _print(report: ExportReport, project: str, destination: str, *, as_json: bool) -> None:
    there = report.exported + report.already_there
    if as_json:
        counted = asdict(report) | {"failed": dict(report.failed)}
        print_json({"project": project, "destination": destination, **counted})
    else:
        print_failures(report)
        deleted = f", {report.deleted} deleted" if report.deleted else ""
        print_line(
            f"{there} objects with {decimal(report.size_bytes)} in {destination}: "
            f"{report.exported} new, {report.already_there} already there{deleted}"
        )
    check_complete(report)
