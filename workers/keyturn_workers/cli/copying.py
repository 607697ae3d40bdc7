"""`keyturn copy`: every object of a project, under a data key of its own in another (SPEC 18).

The project is read as `keyturn export` reads it, and the copies are uploads like any other. The
settings are those of the target: its publisher, and its bucket.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, Final

import typer
from rich.filesize import decimal

from keyturn.publisher.client import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    CustomerSecretFile,
    GatewayUrl,
    Project,
    Reason,
    TimeoutS,
    validate_project,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.download import AsOperator
from keyturn_workers.cli.export_source import (
    Reading,
    check_complete,
    open_source,
    print_failures,
    transfer,
)
from keyturn_workers.cli.objects import require_enrolled
from keyturn_workers.cli.output import print_json, print_line, print_rows
from keyturn_workers.cli.publishing import Outcomes
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.offline.export.project import Copy, TargetKeys, TargetProject
from keyturn_workers.offline.export.run import ExportReport

_SHOWN: Final = 1000


def copy(
    project: Project,
    to_project: Annotated[
        str,
        typer.Argument(
            metavar="TO",
            help="The enrolled project that gets the copies.",
            callback=validate_project,
        ),
    ],
    as_operator: AsOperator = False,
    reason: Reason = None,
    customer_secret_file: CustomerSecretFile = None,
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the objects and bytes.")
    ] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also list the objects of the target that the project does not have."
        ),
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="How many objects to copy at once.")
    ] = 32,
    timeout_s: TimeoutS = 300,
    as_json: AsJson = False,
) -> None:
    """Copy all objects of a project to another one, under new data keys.

    Reads through a gateway, with the project's API key. An operator may read the bucket instead,
    with the master keys (--as-operator). This command keeps plaintext in memory only.

    Run it again to continue after an interruption, or to add new objects: each object is copied
    once. An object key that the target has already with other content is left alone. Exits with 0
    only if every object was copied.
    """
    if project == to_project:
        raise typer.BadParameter("a project cannot be copied to itself")
    publisher, bucket = PublisherSettings.read(), S3Settings.read()
    reading = Reading.of(
        "copy",
        project,
        concurrency,
        as_operator=as_operator,
        reason=reason,
        customer_secret_file=customer_secret_file,
        gateway=gateway,
        api_key_file=api_key_file,
    )
    of = Copy(project, to_project, publisher.deployment, timeout_s)
    command = _Copying(publisher, bucket, reading, of, compares=compare, as_json=as_json)
    if dry_run:
        _print_counts(asyncio.run(command.count()), as_json=as_json)
    else:
        report, without_original = asyncio.run(command.run())
        _print(report, without_original, of, as_json=as_json)


class _Copying:
    """One run of the command."""

    def __init__(
        self,
        publisher: PublisherSettings,
        bucket: S3Settings,
        reading: Reading,
        copy: Copy,
        *,
        compares: bool,
        as_json: bool,
    ) -> None:
        self._publisher = publisher
        self._bucket = bucket
        self._reading = reading
        self._copy = copy
        self._compares = compares
        self._as_json = as_json

    async def count(self) -> dict[str, Any]:
        """Return how many objects the project has, and how many of their keys the target has."""
        objects = size_bytes = taken = 0
        async with (
            self._open_target() as storage,
            open_source(self._reading) as source,
            TargetKeys.open(storage, self._copy.to_project) as keys,
        ):
            async for entry in source.list(""):
                objects += 1
                size_bytes += entry.size_bytes or 0
                taken += keys.has(entry.key)
        return {"objects": objects, "bytes": size_bytes, "keys_in_target": taken}

    async def run(self) -> tuple[ExportReport, list[str]]:
        """Copy; return the outcomes, and with `--compare` keys that only the target has."""
        waits = Outcomes(0)
        async with (
            self._open_target() as storage,
            open_source(self._reading) as source,
            TargetKeys.open(storage, self._copy.to_project) as keys,
            Publisher.open(self._publisher, s3=self._bucket) as publisher,
        ):
            target = TargetProject(self._copy, storage, publisher, keys, waits)
            report = await transfer(
                source, target, self._reading.concurrency, waits=waits, as_json=self._as_json
            )
            extra = list(islice(keys.without_original(), _SHOWN)) if self._compares else []
        return report, extra

    @asynccontextmanager
    async def _open_target(self) -> AsyncIterator[Storage]:
        connections = self._reading.concurrency + 1
        async with open_bucket(self._bucket, max_connections=connections) as storage:
            await require_enrolled(storage, self._copy.to_project)
            yield storage


def _print_counts(row: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(row)
        return
    print_line(
        f"{row['objects']:,} objects with {decimal(row['bytes'])} would be copied; the target has "
        f"{row['keys_in_target']:,} of their keys already"
    )


def _print(report: ExportReport, extra: list[str], copy: Copy, *, as_json: bool) -> None:
    if as_json:
        counted = asdict(report) | {"failed": dict(report.failed)}
        counted["copied"] = counted.pop("exported")
        names = {"project": copy.project, "to_project": copy.to_project}
        print_json(names | counted | {"only_in_target": extra})
    else:
        print_failures(report)
        if extra:
            print_rows(("only_in_target",), [{"only_in_target": key} for key in extra])
            print_line("")
        there = report.exported + report.already_there
        deleted = f", {report.deleted} deleted" if report.deleted else ""
        print_line(
            f"{there:,} objects with {decimal(report.size_bytes)} of {copy.project} are in "
            f"{copy.to_project}: {report.exported:,} new, {report.already_there:,} already "
            f"there{deleted}"
        )
    check_complete(report)
