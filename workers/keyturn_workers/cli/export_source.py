"""Reading every object of a project, for `keyturn export` and `keyturn copy` (SPEC 14).

The objects come from a gateway, or with `--as-operator` from the bucket, as for `keyturn download`.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Self

from keyturn.errors import CodedError, GatewayError, TransientError
from keyturn.gateway.listing import ListedObject
from keyturn.identifiers import object_s3_key
from keyturn.settings import S3Settings
from keyturn_workers.cli.audit import command_audit
from keyturn_workers.cli.bucket import open_bucket, optional_task
from keyturn_workers.cli.download import check_access_options, operator_access
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.gateway_access import GatewayAccess, gateway_access, gateway_client
from keyturn_workers.cli.objects import plaintext_bytes, require_enrolled
from keyturn_workers.cli.output import (
    TransferProgress,
    print_line,
    print_rows,
    transfer_progress,
)
from keyturn_workers.cli.publishing import Outcomes, showing_waits
from keyturn_workers.core.errors import first_error
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.offline.download import OperatorAccess, open_object
from keyturn_workers.offline.export.run import Destination, Export, ExportReport, Source
from keyturn_workers.process.settings import AuditSettings, OperatorSettings

_COLUMNS: Final = ("key", "code", "detail")


class Reading(NamedTuple):
    """Which project a command reads, and how.

    Attributes:
        command: The command's name, for the audit trail.
        project: The project.
        concurrency: How many objects it reads at once.
        gateway: The gateway and the API key; None for the operator, who reads the bucket.
        operator: The operator's settings; None for a reader through a gateway.
        reason: The operator's reason.
        secrets: The customer secrets that were given to the operator.
    """

    command: str
    project: str
    concurrency: int
    gateway: GatewayAccess | None
    operator: tuple[OperatorSettings, AuditSettings] | None
    reason: str | None
    secrets: GivenSecrets

    @classmethod
    def of(
        cls,
        command: str,
        project: str,
        concurrency: int,
        *,
        as_operator: bool,
        reason: str | None,
        customer_secret_file: Path | None,
        gateway: str | None,
        api_key_file: Path | None,
    ) -> Self:
        """Return what the options of a command ask for.

        Raises:
            typer.BadParameter: options contradict each other, or a file is malformed.
            SettingsError: the settings for it are missing.
        """
        secrets = check_access_options(
            reason, gateway, api_key_file, customer_secret_file, as_operator=as_operator
        )
        access, operator = None, None
        if as_operator:
            operator = OperatorSettings.read(), AuditSettings.read()
        else:
            access = gateway_access(project, gateway, api_key_file)
        return cls(command, project, concurrency, access, operator, reason, secrets)


@asynccontextmanager
async def open_source(reading: Reading) -> AsyncIterator[Source]:
    """Yield the project's objects.

    Raises:
        CommandError: the audit trail cannot be written.
        UnknownProjectError: the project is not enrolled, and has no object.
        UnauthorizedError: the gateway refuses the API key.
    """
    if reading.operator is not None:
        opening = _bucket_source(reading, *reading.operator)
    elif reading.gateway is not None:
        opening = _gateway_source(reading.project, reading.gateway)
    else:
        raise TypeError("nothing to read with")
    async with opening as source:
        yield source


@asynccontextmanager
async def _bucket_source(
    reading: Reading, settings: OperatorSettings, audit_settings: AuditSettings
) -> AsyncIterator[Source]:
    project = reading.project
    async with (
        command_audit(audit_settings, reading.command, reading.reason) as audit,
        _source_bucket(settings, reading) as storage,
        operator_access(settings, storage, audit, project, reading.secrets) as access,
        # One record for all objects of the project.
        audit.act("object.opened_as_operator", project=project),
    ):
        yield _source_of(storage, access)


@asynccontextmanager
async def _gateway_source(project: str, access: GatewayAccess) -> AsyncIterator[Source]:
    async with gateway_client(access) as client:

        def listing(after: str) -> AsyncGenerator[ListedObject, None]:
            return client.list(project, after=after)

        # A refusal ends the command before it creates anything. The run itself retries transient
        # errors.
        with suppress(TransientError, GatewayError):
            async with aclosing(listing("")) as first:
                await anext(first, None)
        yield Source(listing, partial(client.open, project))


@asynccontextmanager
async def _source_bucket(settings: S3Settings, reading: Reading) -> AsyncIterator[Storage]:
    # An object and its keyring are read in parallel; plus two listings.
    async with open_bucket(settings, max_connections=2 * reading.concurrency + 2) as storage:
        if not [row async for row in storage.list(object_s3_key(reading.project, ""), limit=1)]:
            await require_enrolled(storage, reading.project)
        yield storage


def _source_of(storage: Storage, access: OperatorAccess) -> Source:
    async def listing(after: str) -> AsyncGenerator[ListedObject, None]:
        prefix = object_s3_key(access.project, "")
        async for row in storage.list(prefix, after=f"{prefix}{after}" if after else ""):
            size_bytes = plaintext_bytes(row.size_bytes)
            yield ListedObject(row.key.removeprefix(prefix), size_bytes, row.last_modified)

    return Source(listing, lambda key: open_object(storage, key, access))


async def transfer(
    source: Source,
    destination: Destination,
    concurrency: int,
    *,
    waits: Outcomes | None = None,
    as_json: bool = False,
) -> ExportReport:
    """Store every object of a source in a destination, with a progress bar; return the outcomes.

    With `waits`, it shows for how long workers have not answered.

    Raises:
        ExceptionGroup: the first error that is not about a single object.
    """
    with transfer_progress() as progress:
        counting = partial(_count, source, progress) if sys.stderr.isatty() else None
        exporting = Export(source, destination, progress.advance)
        try:
            showing = (
                nullcontext()
                if waits is None
                else showing_waits(waits, progress.label, as_json=as_json)
            )
            async with optional_task(counting), showing:
                await exporting.run(concurrency)
        except BaseException as exc:
            first = first_error(exc)
            if isinstance(first, TransientError) or not isinstance(first, CodedError):
                report = exporting.report
                done = report.exported + report.already_there
                note(f"not finished after {done:,} objects: run the same command again to continue")
            raise
    return exporting.report


async def _count(source: Source, progress: TransferProgress) -> None:
    objects = size_bytes = 0
    async for entry in source.list(""):
        objects += 1
        size_bytes += entry.size_bytes or 0
    progress.expect(objects, size_bytes)


def print_failures(report: ExportReport) -> None:
    """Print a table of the objects that failed, and an empty line; nothing without any."""
    if report.failed:
        print_rows(_COLUMNS, report.failures)
        print_line("")


def check_complete(report: ExportReport) -> None:
    """Fail if an object failed.

    Raises:
        CommandError: how many did, with their codes.
    """
    failed = report.failed.total()
    if omitted := failed - len(report.failures):
        note(f"{omitted} more failures are not listed")
    if failed:
        of = report.exported + report.already_there + failed
        codes = ", ".join(f"{code} {count}" for code, count in report.failed.most_common())
        raise CommandError(f"{failed} of {of} objects failed: {codes}")
