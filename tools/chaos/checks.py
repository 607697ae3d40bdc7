"""What must hold after a run, one named check each; each gives what breaks it, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.chaos import attack_checks, bucket_checks, message_checks, secrecy_checks

if TYPE_CHECKING:
    from tools.chaos.evidence import Evidence

_UNEXPECTED = "unexpected failure"

SETTLED = "everything settled in time"
ENDS = "each confirmed request is done, or a dead letter with its code"
EVENTS = "each end was told, signed, and nothing else was"
OPENED = "each object opens by both current keys to the bytes that were sent"
OLD_KEYS = "no old key opens a wrap, and no keyring holds one"
LEFTOVERS = "nothing in staging, no open multipart upload, no record of a sweep under way"
QUEUES = "all queues are empty"
SECRETS = "no key and no plaintext on the broker's disk, in logs or in metrics"
PROCESSES = "no process ended by itself, and SIGTERM ended each in order"
BUGS = "no unexpected failure in any log"
GATEWAY = "the gateway served what was sent, to current keys, and to nobody else"

TRESPASSES = "no event in a project whose publisher has no grant there"
UNASKED = "each event names publisher and digest of a request that was sent"
UNHEARD = "each caller under attack heard the end of its own request"
UNSIGNED = "what nobody signed published nothing, and is among the unsigned dead letters alone"
LETTERS = "dead letters are of what was sent, and keep no body that cannot be replayed"


def judge(evidence: Evidence) -> dict[str, list[str]]:
    """Every check, with what breaks it; an empty list is a check that holds."""
    looked = bucket_checks.look(evidence)
    evidence.counts["objects looked at"] = looked.objects
    return {
        SETTLED: evidence.unsettled,
        ENDS: message_checks.ends(evidence),
        EVENTS: message_checks.events(evidence),
        OPENED: looked.not_opened,
        OLD_KEYS: looked.opened_by_old,
        LEFTOVERS: looked.left,
        QUEUES: message_checks.queues(evidence),
        SECRETS: secrecy_checks.leaks(evidence, looked),
        PROCESSES: [*evidence.fallen, *evidence.statuses],
        BUGS: _bugs(evidence),
        GATEWAY: evidence.misread,
        TRESPASSES: attack_checks.trespasses(evidence),
        UNASKED: attack_checks.unasked(evidence),
        UNHEARD: attack_checks.unheard(evidence),
        UNSIGNED: attack_checks.unsigned(evidence),
        LETTERS: attack_checks.letters(evidence),
    }


def _bugs(evidence: Evidence) -> list[str]:
    return [
        f"{path.name}: {line[:200]} … {line[-500:]}"
        for path in sorted((evidence.folder / "logs").iterdir())
        for line in path.read_text().splitlines()
        if _UNEXPECTED in line
    ]
