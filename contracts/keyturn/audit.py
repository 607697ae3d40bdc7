"""Checks an audit trail for missing, changed, moved and forged records (SPEC 15.3). Pure; no I/O.

    chains = AuditChains(EventVerifier("default", public_event_keys))
    for record in stream:
        checked = chains.add(record.body, record.signature, record.key_id)
        for finding in checked.findings:
            print(finding)

Each process numbers its records from 1, each record holds the digest of the one before, and all are
signed. So a removed record leaves a gap, a changed one is not signed, and a moved one arrives out
of order. Delivery is at least once: the same bytes twice are not a finding. A stream drops its
oldest records for their age or size, so a chain may begin after 1.

It cannot detect that the *newest* records of a process are missing: nothing follows them. Anyone
who has the event key can write a chain of their own, but cannot change one that was exported
before.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from keyturn.crypto.signatures import EventVerifier
from keyturn.errors import MalformedRequestError
from keyturn.messages.audit import (
    AuditLink,
    AuditRecorded,
    body_digest,
    parse_audit,
    parse_audit_link,
)

REMEMBERED: Final = 10_000
"""The number of a process's records among which repetitions are recognized."""


class Problem(StrEnum):
    """The kinds of problems of a trail."""

    FORGED = "forged"
    UNREADABLE = "unreadable"
    MISSING = "missing"
    OUT_OF_ORDER = "out_of_order"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem of a trail.

    Attributes:
        problem: Its kind.
        detail: One line for people.
        process: The chain; None if no signature proves it.
        counter: The record at which it was noticed.
    """

    problem: Problem
    detail: str
    process: str | None = None
    counter: int | None = None

    def __str__(self) -> str:
        where = "" if self.process is None else f" (process {self.process})"
        return f"{self.problem.replace('_', ' ').upper()}: {self.detail}{where}"


@dataclass(frozen=True, slots=True)
class Checked:
    """One record, and its problems.

    Attributes:
        record: None if it is forged, or of a later version of Keyturn.
        link: None if it is forged, or not of an audit trail.
        findings: Its problems; empty for a repeated record.
        is_repeated: True if the same bytes came before.
    """

    record: AuditRecorded | None = None
    link: AuditLink | None = None
    findings: tuple[Finding, ...] = ()
    is_repeated: bool = False


@dataclass(slots=True)
class Chain:
    """The records of one process so far.

    Attributes:
        process: The id of the run.
        first: The lowest counter. Above 1, earlier records were dropped, or are not in this part.
        last: The highest counter.
        records: The number of different records.
    """

    process: str
    first: int
    last: int = 0
    records: int = 0
    digests: OrderedDict[int, str] = field(default_factory=OrderedDict, repr=False)

    def remember(self, counter: int, digest: str) -> None:
        """Note a new record."""
        self.first, self.last = min(self.first, counter), max(self.last, counter)
        self.records += 1
        self.digests[counter] = digest
        if len(self.digests) > REMEMBERED:
            self.digests.popitem(last=False)


class AuditChains:
    """The chains of all processes, given the records in the order of the stream.

    Args:
        signatures: Verifies the records.
        is_whole: True if the first record given is the first that the stream ever had, so that each
            chain must begin at 1.
        is_filtered: True if records were left out on purpose (of other projects), so that a gap
            means nothing.
    """

    def __init__(
        self, signatures: EventVerifier, *, is_whole: bool = False, is_filtered: bool = False
    ) -> None:
        self._signatures = signatures
        self._is_whole = is_whole
        self._is_filtered = is_filtered
        self._chains: dict[str, Chain] = {}

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chain of each process, in the order in which they began."""
        return tuple(self._chains.values())

    def add(self, body: bytes, signature: str, key_id: str = "") -> Checked:
        """Check the next record.

        Args:
            body: Its bytes as signed.
            signature: Header `keyturn-signature`.
            key_id: Header `keyturn-event-key`.
        """
        if not self._signatures.is_signed(body, signature, key_id):
            return _refused(Problem.FORGED, "a record not signed by a known event key")
        try:
            link = parse_audit_link(body)
        except MalformedRequestError:
            # A genuine event that an attacker put here, or a trail of a later version.
            return _refused(Problem.UNREADABLE, "a signed message that is not an audit record")
        digest = body_digest(body)
        chain = self._chains.get(link.process)
        if chain is None:
            chain = self._chains[link.process] = Chain(link.process, link.counter)
            findings = self._begin(link)
        elif chain.digests.get(link.counter) == digest:
            return Checked(_record(body), link, is_repeated=True)
        else:
            findings = self._continue(chain, link)
        chain.remember(link.counter, digest)
        return Checked(_record(body), link, tuple(findings))

    def _begin(self, link: AuditLink) -> list[Finding]:
        if link.counter == 1 or not self._is_whole or self._is_filtered:
            return []
        return [_missing(link, 1)]

    def _continue(self, chain: Chain, link: AuditLink) -> list[Finding]:
        counter, findings = link.counter, []
        if counter in chain.digests:
            text = f"two different records have the counter {counter}"
            return [_finding(Problem.CHANGED, text, link)]
        if counter < chain.last:
            text = f"record {counter} comes after record {chain.last}"
            findings.append(_finding(Problem.OUT_OF_ORDER, text, link))
        elif counter > chain.last + 1 and not self._is_filtered:
            findings.append(_missing(link, chain.last + 1))
        if chain.digests.get(counter - 1, link.previous) != link.previous:
            text = f"record {counter} does not match record {counter - 1}"
            findings.append(_finding(Problem.CHANGED, text, link))
        return findings


def _record(body: bytes) -> AuditRecorded | None:
    try:
        return parse_audit(body)
    except MalformedRequestError:
        return None  # with an action of a later version; its place in the chain is checked


def _missing(link: AuditLink, first: int) -> Finding:
    last = link.counter - 1
    which = f"record {first} is" if first == last else f"records {first} to {last} are"
    return _finding(Problem.MISSING, f"{which} missing before record {link.counter}", link)


def _finding(problem: Problem, detail: str, link: AuditLink) -> Finding:
    return Finding(problem, detail, link.process, link.counter)


def _refused(problem: Problem, detail: str) -> Checked:
    return Checked(findings=(Finding(problem, detail),))
