"""The checks after a run; each returns descriptions of its violations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.chaos import (
    attack_checks,
    bucket_checks,
    message_checks,
    secrecy_checks,
    theft_checks,
)

if TYPE_CHECKING:
    from tools.chaos.evidence import Evidence

_UNEXPECTED = "unexpected failure"

SETTLED = "everything completed in time"
ENDS = "each confirmed request is completed, or a dead letter with its code"
EVENTS = "each outcome has a signed event, and there are no other events"
OPENED = "each object opens with both current keys to the uploaded bytes"
OLD_KEYS = "no old key opens a wrap, and no keyring contains an old key"
LEFTOVERS = "no staged body, no open multipart upload, no record of a running sweep"
QUEUES = "all queues are empty"
SECRETS = "no key and no plaintext on the broker's disk, in logs or in metrics"
PROCESSES = "no process exited by itself, and each shut down cleanly on SIGTERM"
BUGS = "no unexpected failure in any log"
GATEWAY = "the gateway served the uploaded bytes, and only to current keys"
CONSOLE = "the console shows the end of each rotation and sweep, although it was killed"

TRESPASSES = "no event in a project for which its publisher has no grant"
UNREQUESTED = "each event names the publisher and digest of a request that was sent"
MISLED = "each caller under attack received the outcome of its own request"
UNSIGNED = "unsigned messages caused no event, and are only among the unsigned dead letters"
LETTERS = "every dead letter was sent, and keeps no body that cannot be replayed"

STOLEN = "nothing was done by a keyring that a thief had rolled back, and each thief was refused"
MARKS = "each keyring is the one that its highest mark names"


def run_checks(evidence: Evidence) -> dict[str, list[str]]:
    """Every check with its violations; an empty list means that it holds."""
    report = bucket_checks.inspect_bucket(evidence)
    evidence.counts["objects inspected"] = report.objects
    return {
        SETTLED: evidence.unsettled,
        ENDS: message_checks.ends(evidence),
        EVENTS: message_checks.events(evidence),
        OPENED: report.not_opened,
        OLD_KEYS: report.opened_by_old,
        LEFTOVERS: report.left,
        QUEUES: message_checks.queues(evidence),
        SECRETS: secrecy_checks.leaks(evidence, report),
        PROCESSES: [*evidence.unexpected_exits, *evidence.statuses],
        BUGS: _bugs(evidence),
        GATEWAY: evidence.misread,
        CONSOLE: evidence.misreported,
        TRESPASSES: attack_checks.trespasses(evidence),
        UNREQUESTED: attack_checks.unrequested(evidence),
        MISLED: attack_checks.misled_callers(evidence),
        UNSIGNED: attack_checks.unsigned(evidence),
        LETTERS: attack_checks.letters(evidence),
        STOLEN: theft_checks.thefts(evidence),
        MARKS: theft_checks.marks(evidence),
    }


def _bugs(evidence: Evidence) -> list[str]:
    return [
        f"{path.name}: {line[:200]} … {line[-500:]}"
        for path in sorted((evidence.folder / "logs").iterdir())
        for line in path.read_text().splitlines()
        if _UNEXPECTED in line
    ]
