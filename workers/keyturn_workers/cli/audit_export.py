"""The file of an exported audit trail: one signed record a line (SPEC 15.3).

    {"offset": 17, "body": "base64",
     "headers": {"keyturn-signature": "base64", "keyturn-event-key": "16 hex digits"}}

`body` is the record exactly as it was signed, so anybody with the public event keys can verify a
line. The offset is the record's place in the stream, and is not signed.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Annotated, Any

from pydantic import Field

from keyturn.audit import AuditChains, Finding, Problem
from keyturn.crypto import EventVerifier, from_base64, to_base64
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import AuditRecorded, load_json
from keyturn.messages.fields import StrictModel
from keyturn.publisher.event_stream import StreamRecord
from keyturn.topology import EVENT_KEY_HEADER, SIGNATURE_HEADER
from keyturn_workers.cli.errors import CommandError


class _Headers(StrictModel):
    signature: str = Field(alias=SIGNATURE_HEADER)
    event_key: str = Field(alias=EVENT_KEY_HEADER)


class _Line(StrictModel):
    offset: Annotated[int, Field(ge=0)]
    body: str
    headers: _Headers


def to_line(record: StreamRecord) -> bytes:
    """One line of the file, with its line break."""
    headers = {SIGNATURE_HEADER: record.signature, EVENT_KEY_HEADER: record.key_id}
    document = {"offset": record.offset, "body": to_base64(record.body), "headers": headers}
    return json.dumps(document).encode() + b"\n"


def read_lines(file: IO[bytes]) -> Iterator[StreamRecord]:
    """The records of a file.

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
    """Whether the record is about this project, or about all of them."""
    return record is not None and record.project in (project, ALL_PROJECTS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check of many records found."""

    records: int
    repeated: int
    processes: list[dict[str, Any]]
    findings: list[Finding]

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        findings = [finding_document(finding) for finding in self.findings]
        return {
            "records": self.records,
            "repeated": self.repeated,
            "processes": self.processes,
            "findings": findings,
        }

    def check(self) -> None:
        """Fail unless nothing was found.

        Raises:
            CommandError: how much is wrong, and what first.
        """
        if self.findings:
            count = len(self.findings)
            problems = "1 problem" if count == 1 else f"{count} problems"
            raise CommandError(f"{problems} in the audit trail; first: {self.findings[0]}")


class Inspection:
    """Checks records one by one, and sums up what was found.

    Args:
        signatures: Verifies the records.
        project: All records must be about it, or about all projects: others were left out, so that
            gaps mean nothing. None for a whole trail.
    """

    def __init__(self, signatures: EventVerifier, project: str | None = None) -> None:
        self._signatures = signatures
        self._project = project
        self._chains: AuditChains | None = None
        self._about: dict[str, AuditRecorded] = {}
        self._records = self._repeated = 0
        self.findings: list[Finding] = []

    def add(self, record: StreamRecord) -> tuple[AuditRecorded | None, tuple[Finding, ...]]:
        """Check the next record; return it, if it is genuine, and what is wrong with it."""
        if self._chains is None:
            # Offset 0 is the first message that the stream ever had.
            self._chains = AuditChains(
                self._signatures,
                is_whole=record.offset == 0,
                is_filtered=self._project is not None,
            )
        checked = self._chains.add(record.body, record.signature, record.key_id)
        findings = checked.findings
        self._records += 1
        self._repeated += checked.is_repeated
        if checked.record is not None:
            self._about.setdefault(checked.record.process, checked.record)
        if self._project is not None and not is_of_project(checked.record, self._project):
            findings += (Finding(Problem.UNREADABLE, f"not a record of {self._project}"),)
        self.findings += findings
        return checked.record, findings

    def verdict(self) -> Verdict:
        """What was found."""
        chains = () if self._chains is None else self._chains.chains
        processes = [
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
        return Verdict(self._records, self._repeated, processes, self.findings)


def finding_document(finding: Finding) -> dict[str, Any]:
    """A finding as JSON."""
    return {
        "finding": str(finding.problem),
        "detail": finding.detail,
        "process": finding.process,
        "counter": finding.counter,
    }
