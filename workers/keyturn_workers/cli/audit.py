"""`keyturn audit`: follow, export and verify the audit trail (SPEC 15.3).

Reading needs only the broker's password: signatures are verified with the public event keys.
`verify` needs no broker.

Other commands write to the trail:

    async with command_audit(AuditSettings.read(), "download", reason) as audit:
        async with audit.act("object.opened_as_operator", project="acme", object_key="a.pdf"):
            ...  # the broker has the record

A command that dies is not repeated. So it records its intention, and acts only once the broker has
the record. If the act then fails, it records the code as the outcome.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated, Any, Final

import typer
from aio_pika.exceptions import AMQPException
from pydantic import Field

from keyturn.audit import AuditChains, Finding, Problem
from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.signatures import EventVerifier
from keyturn.errors import CodedError, MalformedRequestError, PublisherError
from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages.audit import STARTED, AuditAction, AuditRecorded
from keyturn.messages.fields import StrictModel
from keyturn.messages.json_text import load_json
from keyturn.publisher.connection import BrokerAddress, BrokerConnection, describe_broker_failure
from keyturn.publisher.event_stream import Start, StreamRecord, follow, last_offset
from keyturn.topology import AUDIT_STREAM, EVENT_KEY_HEADER, SIGNATURE_HEADER, audit_queue
from keyturn_workers.cli.arguments import MOMENT_FORM, AsJson, AsJsonText, parse_moment
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import Row, command_group, print_json, print_line, print_rows
from keyturn_workers.cli.settings import AuditReaderSettings, AuditVerifySettings
from keyturn_workers.keys.audit.trail import (
    AuditProcess,
    AuditPublisher,
    AuditTrail,
    declare_missing,
)
from keyturn_workers.keys.master_keys.port import KekDerived
from keyturn_workers.process.settings import AuditSettings

TIMEOUT_S: Final = 10.0
FAILED: Final = "failed"
"""The outcome of a failure without a code."""

app = command_group("audit", "Follow, export or verify the audit trail.")
_STDIO: Final = Path("-")
_PROCESS_COLUMNS: Final = ("process", "role", "host", "first", "last", "records")
_TIMEOUT_S: Final = 30.0
# A stream is searched by the broker's clock; a record has its process's time.
_CLOCK_SKEW: Final = timedelta(minutes=5)
# A reader's wait for the next record, if it does not know which is the last.
_SILENCE_S: Final = 5.0


class _Headers(StrictModel):
    signature: str = Field(alias=SIGNATURE_HEADER)
    event_key: str = Field(alias=EVENT_KEY_HEADER)


class _Line(StrictModel):
    offset: Annotated[int, Field(ge=0)]
    body: str
    headers: _Headers


def to_line(record: StreamRecord) -> bytes:
    """Return the record's line in the file, with the line break."""
    headers = {SIGNATURE_HEADER: record.signature, EVENT_KEY_HEADER: record.key_id}
    document = {"offset": record.offset, "body": to_base64(record.body), "headers": headers}
    return json.dumps(document).encode() + b"\n"


def read_lines(file: IO[bytes]) -> Iterator[StreamRecord]:
    """Return the records of a file.

    Raises:
        CommandError: a line is not a record.
    """
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _parse(number, line)


def _parse(number: int, line: bytes) -> StreamRecord:
    try:
        exported = _Line.model_validate(load_json(line))
        body = from_base64(exported.body)
    except (MalformedRequestError, ValueError):
        raise CommandError(f"line {number} is not an exported audit record") from None
    return StreamRecord(
        exported.offset, body, exported.headers.signature, exported.headers.event_key
    )


def is_of_project(record: AuditRecorded | None, project: str) -> bool:
    """Return whether the record is about this project, or about all of them."""
    return record is not None and record.project in (project, ALL_PROJECTS)


class Inspection:
    """Checks records one by one, and sums up the findings.

    With `project`, all records must be about it, or about all projects: others were left out, so
    gaps mean nothing. None is for a whole trail.

    Attributes:
        records: The number of records.
        findings: The problems.
    """

    def __init__(self, signatures: EventVerifier, project: str | None = None) -> None:
        self._signatures = signatures
        self._project = project
        self._chains: AuditChains | None = None
        self._about: dict[str, AuditRecorded] = {}
        self.records = self._repeated = 0
        self.findings: list[Finding] = []

    def add(self, record: StreamRecord) -> tuple[AuditRecorded | None, tuple[Finding, ...]]:
        """Check the next record; return it, if genuine, and its problems."""
        if self._chains is None:
            # Offset 0 is the first message that the stream ever had.
            self._chains = AuditChains(
                self._signatures,
                is_whole=record.offset == 0,
                is_filtered=self._project is not None,
            )
        checked = self._chains.add(record.body, record.signature, record.key_id)
        findings = checked.findings
        self.records += 1
        self._repeated += checked.is_repeated
        if checked.record is not None:
            self._about.setdefault(checked.record.process, checked.record)
        if self._project is not None and not is_of_project(checked.record, self._project):
            findings += (Finding(Problem.UNREADABLE, f"not a record of {self._project}"),)
        self.findings += findings
        return checked.record, findings

    def processes(self) -> list[Row]:
        """Return a row for each process with a chain of records."""
        chains = () if self._chains is None else self._chains.chains
        return [
            {
                "process": chain.process,
                "role": about.role if (about := self._about.get(chain.process)) else None,
                "host": about.host if about else None,
                "first": chain.first,
                "last": chain.last,
                "records": chain.records,
            }
            for chain in chains
        ]

    def document(self) -> dict[str, Any]:
        """Return the inspection as JSON."""
        return {
            "records": self.records,
            "repeated": self._repeated,
            "processes": self.processes(),
            "findings": [finding_document(finding) for finding in self.findings],
        }

    def check(self) -> None:
        """Fail if there is a finding.

        Raises:
            CommandError: the number of findings, and the first.
        """
        if self.findings:
            count = len(self.findings)
            problems = "1 problem" if count == 1 else f"{count} problems"
            raise CommandError(f"{problems} in the audit trail; first: {self.findings[0]}")


def finding_document(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON."""
    return {
        "finding": str(finding.problem),
        "detail": finding.detail,
        "process": finding.process,
        "counter": finding.counter,
    }


@app.command()
def tail(
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_moment,
            metavar="TIME",
            help=f"Start at this time: {MOMENT_FORM}. Default: new ones only.",
        ),
    ] = None,
    as_json: AsJsonText = False,
) -> None:
    """Follow the audit trail, and check it.

    Prints a line for each record, and for each problem.
    """
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
    part = "" if audit.first_object is None else f", from number {audit.first_object}"
    count = None if audit.object_count is None else f"(objects: {audit.object_count}{part})"
    parts = (audit.at, audit.action, audit.request_type, what, count, audit.outcome)
    reason = None if audit.reason is None else f"({audit.reason})"
    print_line(" ".join(filter(None, (*parts, "by", audit.actor, reason))))
    sys.stdout.flush()


def _print_json_line(document: dict[str, Any]) -> None:
    print_line(json.dumps(document))
    sys.stdout.flush()


@dataclass(slots=True)
class _Wanted:
    """The records to export."""

    since: datetime | None
    until: datetime | None
    project: str | None
    at: datetime | None = None

    @property
    def start(self) -> Start:
        """The position of the first record in the stream, or a little earlier."""
        return "first" if self.since is None else self.since - _CLOCK_SKEW

    def includes(self, audit: AuditRecorded | None) -> bool:
        """Return whether to export the next record of the stream.

        A forged record has no time of its own; it follows the genuine one before it.
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
            help=f"Start at this time: {MOMENT_FORM}. Default: all.",
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_moment, metavar="TIME", help="Only records from before this time."
        ),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="Only records of this project, or of all projects at once. Gaps in such a file "
            "mean nothing: verify it with --project too."
        ),
    ] = None,
) -> None:
    """Export signed records as JSON lines.

    For `keyturn audit verify` or another verifier. The trail is checked during the export. Exits
    with 1 if the trail has a problem; the file is complete even then.
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
    inspection.check()


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
    """Return the records from `start` to the newest of this moment."""
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

    Exit status 1 if a record is missing, changed, out of order or forged, or if the file has none.
    A process may have more records, outside the file, before its first one and after its last.
    """
    settings = AuditVerifySettings.read()
    signatures = EventVerifier(settings.deployment, settings.event_public_key)
    inspection = Inspection(signatures, project)
    if file == _STDIO:
        _inspect(inspection, sys.stdin.buffer)
    else:
        with file.open("rb") as source:
            _inspect(inspection, source)
    if as_json:
        print_json(inspection.document())
    else:
        print_rows(_PROCESS_COLUMNS, inspection.processes())
        for finding in inspection.findings:
            note(str(finding))
    inspection.check()
    if inspection.records == 0:
        raise CommandError("the file has no record, so nothing was verified")


def _inspect(inspection: Inspection, source: IO[bytes]) -> None:
    for record in read_lines(source):
        inspection.add(record)


# The records of other commands.


class CommandAudit:
    """Records the acts of a command; gives up after a while."""

    def __init__(self, trail: AuditTrail, reason: str | None, timeout_s: float) -> None:
        self._trail = trail
        self._reason = reason
        self._timeout_s = timeout_s

    async def record(self, action: AuditAction, **fields: Any) -> None:
        """Record one use; return once the broker has it on disk.

        `fields` are further fields of `AuditRecorded`, such as `outcome` and `project`.

        Raises:
            CommandError: the broker did not confirm in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._trail.record(action, reason=self._reason, **fields)
        except TimeoutError as exc:
            raise CommandError(
                f"the audit trail was not written within {self._timeout_s:g} s"
            ) from exc

    async def kek_derived(self, derived: KekDerived) -> None:
        """Record that a provider derived a KEK; see `AuditTrail.kek_derived`."""
        await self._trail.kek_derived(derived)

    @asynccontextmanager
    async def act(self, action: AuditAction, **fields: Any) -> AsyncIterator[None]:
        """Record that the block starts, then run it; record once more if it fails.

        `fields` are further fields of `AuditRecorded`.

        Raises:
            CommandError: the broker did not confirm in time; the block did not run.
        """
        await self.record(action, outcome=STARTED, **fields)
        try:
            yield
        except Exception as exc:
            outcome = exc.code if isinstance(exc, CodedError) else FAILED
            await self.record(action, outcome=outcome, **fields)
            raise


@asynccontextmanager
async def command_audit(
    settings: AuditSettings, role: str, reason: str | None = None, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[CommandAudit]:
    """Yield the audit trail of this command. The broker is tried first.

    `role` is the command's name, `reason` the person's reason for each record. The connection, and
    each record, may take `timeout_s`.

    Raises:
        CommandError: the broker is unavailable, or the trail's stream is missing.
    """
    broker = BrokerAddress.of(settings)
    publisher = AuditPublisher(broker, settings.deployment, settings.event_key[0], timeout_s)
    stream = audit_queue(settings.audit_max_age_s, settings.audit_max_bytes)
    try:
        try:
            await publisher.connect()
            async with asyncio.timeout(timeout_s):
                await declare_missing(broker, stream)
        except (PublisherError, AMQPException, OSError) as exc:
            problem = str(exc) if isinstance(exc, PublisherError) else describe_broker_failure(exc)
            raise CommandError(
                f"the audit trail cannot be written, so nothing was done: {problem}"
            ) from exc
        # Not logged: a command prints its result or its error, and only how many records are
        # missing.
        trail = AuditTrail(AuditProcess.start(role), publisher.publish, is_logged=False)
        try:
            # Records of KEKs that a provider derived are not awaited: some may be on the way.
            async with trail.running(drain_s=timeout_s):
                yield CommandAudit(trail, reason, timeout_s)
        finally:
            if count := trail.pending:
                records = f"record{'s' * (count != 1)}"
                note(f"the broker did not confirm {count} {records} of the audit trail")
    finally:
        await publisher.close()
