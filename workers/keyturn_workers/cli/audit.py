"""`keyturn audit`: follow, export and verify the audit trail (SPEC 15.3).

Reading needs no secret but the broker's password: signatures are verified with the public event
keys. `verify` needs no broker either.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer

from keyturn.audit import Finding
from keyturn.crypto import EventVerifier
from keyturn.identifiers import parse_time
from keyturn.messages import AuditRecorded, load_json
from keyturn.publisher.connection import BrokerAddress, BrokerConnection
from keyturn.publisher.event_stream import Start, StreamRecord, follow, last_offset
from keyturn.topology import AUDIT_STREAM
from keyturn_workers.cli.arguments import MOMENT_FORM, AsJson, parse_moment
from keyturn_workers.cli.audit_export import (
    Inspection,
    finding_document,
    is_of_project,
    read_lines,
    to_line,
)
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_line, print_rows
from keyturn_workers.cli.settings import AuditReaderSettings, AuditVerifySettings

app = typer.Typer(name="audit", help="Follow, export or verify the audit trail.")

_STDIO: Final = Path("-")
_PROCESS_COLUMNS: Final = ("process", "role", "host", "first", "last", "records")
_TIMEOUT_S: Final = 30.0
# A stream finds a moment by the broker's clock, a record has its process's.
_CLOCK_SKEW: Final = timedelta(minutes=5)
# How long a reader waits for the next record, if it does not know which is the last.
_SILENCE_S: Final = 5.0


@app.command()
def tail(
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_moment,
            metavar="TIME",
            help=f"Begin with the records since then: {MOMENT_FORM}. Default: new ones only.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Follow the audit trail, and check it: a line for each record, and for each problem."""
    settings = AuditReaderSettings.read()
    asyncio.run(_tail(settings, since, as_json=as_json))


async def _tail(settings: AuditReaderSettings, since: datetime | None, *, as_json: bool) -> None:
    inspection = Inspection(EventVerifier(settings.deployment, settings.event_public_key))
    start = datetime.now(UTC) if since is None else since - _CLOCK_SKEW
    connection = _connection(settings)
    try:
        async with aclosing(follow(connection, start, AUDIT_STREAM)) as records:
            async for record in records:
                audit, findings = inspection.add(record)
                _show_findings(findings, as_json=as_json)
                if since is None or audit is None or parse_time(audit.at) >= since:
                    _show(record, audit, as_json=as_json)
    finally:
        await connection.close()


def _connection(settings: AuditReaderSettings) -> BrokerConnection:
    return BrokerConnection(BrokerAddress.of(settings), publish_timeout_s=_TIMEOUT_S)


def _show_findings(findings: tuple[Finding, ...], *, as_json: bool) -> None:
    for finding in findings:
        if as_json:
            _print_json_line(finding_document(finding))
        else:
            print_line(f"!!! {finding}")


def _show(record: StreamRecord, audit: AuditRecorded | None, *, as_json: bool) -> None:
    if audit is None:
        return  # forged, or of a later version: its finding was shown, or its place is right
    if as_json:
        _print_json_line({"offset": record.offset} | load_json(record.body))
        return
    what = "/".join(filter(None, (audit.project, audit.object_key)))
    parts = (audit.at, audit.action, audit.request_type, what, audit.outcome, "by", audit.actor)
    reason = None if audit.reason is None else f"({audit.reason})"
    print_line(" ".join(filter(None, (*parts, reason))))
    sys.stdout.flush()


def _print_json_line(document: dict[str, Any]) -> None:
    print_line(json.dumps(document))
    sys.stdout.flush()


@dataclass(slots=True)
class _Wanted:
    """Which records to export."""

    since: datetime | None
    until: datetime | None
    project: str | None
    at: datetime | None = None

    @property
    def start(self) -> Start:
        """Where in the stream the first of them is, or a little earlier."""
        return "first" if self.since is None else self.since - _CLOCK_SKEW

    def includes(self, audit: AuditRecorded | None) -> bool:
        """Whether to export the next record of the stream.

        What is forged has no time of its own; it has its place after the genuine one before.
        """
        if audit is not None:
            self.at = parse_time(audit.at)
        if self.project is not None and not is_of_project(audit, self.project):
            return False
        if self.since is not None and (self.at is None or self.at < self.since):
            return False
        return self.until is None or self.at is None or self.at < self.until


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="New file (mode 0600), or - for standard output.")],
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_moment,
            metavar="TIME",
            help=f"Only records since then: {MOMENT_FORM}. Default: all.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(parser=parse_moment, metavar="TIME", help="Only records before then."),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="Only records of this project, or of all projects at once. Gaps in such a file "
            "mean nothing: verify it with --project too."
        ),
    ] = None,
) -> None:
    """Export signed records as JSON lines, for `keyturn audit verify` or another verifier.

    The trail is checked during the export. Exit status 1: the file is complete, but the trail
    has a problem.
    """
    settings = AuditReaderSettings.read()
    inspection = Inspection(EventVerifier(settings.deployment, settings.event_public_key))
    wanted = _Wanted(since, until, project)
    if file == _STDIO:
        count = asyncio.run(_export(settings, inspection, sys.stdout.buffer, wanted))
        sys.stdout.buffer.flush()
    else:
        with _new_file(file) as target:
            count = asyncio.run(_export(settings, inspection, target, wanted))
    note(f"{count} records exported")
    for finding in inspection.findings:
        note(str(finding))
    inspection.verdict().check()


def _new_file(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


async def _export(
    settings: AuditReaderSettings, inspection: Inspection, target: IO[bytes], wanted: _Wanted
) -> int:
    count = 0
    connection = _connection(settings)
    try:
        async with aclosing(_until_now(connection, wanted.start)) as records:
            async for record in records:
                audit, _ = inspection.add(record)
                if wanted.includes(audit):
                    target.write(to_line(record))
                    count += 1
    finally:
        await connection.close()
    return count


async def _until_now(
    connection: BrokerConnection, start: Start
) -> AsyncGenerator[StreamRecord, None]:
    """The records from `start` to the newest of this moment."""
    last = await last_offset(connection, AUDIT_STREAM)
    async with aclosing(follow(connection, start, AUDIT_STREAM)) as records:
        while True:
            try:
                async with asyncio.timeout(_SILENCE_S if last is None else None):
                    record = await anext(records)
            except TimeoutError:
                return
            yield record
            if last is not None and record.offset >= last:
                return


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An exported file, or - for standard input.")],
    project: Annotated[
        str | None, typer.Option(help="The --project that the file was exported with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an exported file offline, with the public event keys alone.

    Exit status 1 if a record is missing, changed, out of order or forged. Records before the first
    of a process, and after its last, may exist outside the file.
    """
    settings = AuditVerifySettings.read()
    signatures = EventVerifier(settings.deployment, settings.event_public_key)
    inspection = Inspection(signatures, project)
    if file == _STDIO:
        _inspect(inspection, sys.stdin.buffer)
    else:
        with file.open("rb") as source:
            _inspect(inspection, source)
    verdict = inspection.verdict()
    if as_json:
        print_json(verdict.document())
    else:
        print_rows(_PROCESS_COLUMNS, verdict.processes)
        for finding in verdict.findings:
            note(str(finding))
    verdict.check()


def _inspect(inspection: Inspection, source: IO[bytes]) -> None:
    for record in read_lines(source):
        inspection.add(record)
