"""Checks of stolen keyrings: nothing was done by one, and the marks name the newest (SPEC 5.5)."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from tools.chaos.evidence import event_ids
from tools.chaos.keyring_file import KeyringFile
from tools.chaos.operator import ROLLED_BACK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyturn.messages import KeyringMarked
    from tools.chaos.evidence import Evidence
    from tools.chaos.thief import Theft


def thefts(evidence: Evidence) -> list[str]:
    """What was done by a stolen keyring, and thefts that did not happen or were not refused."""
    found = [f"{_named(theft)}: {one}" for theft in evidence.thefts for one in theft.problems]
    by_id = {theft.request.request_id: theft for theft in evidence.thefts}
    found += [
        f"{_named(by_id[request_id])}: the thief's rotation caused {event}"
        for event in evidence.broker.events
        if event["type"] != "rotation.rejected"
        for request_id in event_ids(event) & by_id.keys()
    ]
    found += [
        f"{_named(theft)}: the rotation was answered by {theft.answer or 'nothing'}"
        for theft in evidence.thefts
        if theft.answer != ROLLED_BACK
    ]
    planned = Counter(
        (action.to, action.kind)
        for action in evidence.plan.actions
        if action.what == "steal keyring"
    )
    done = Counter((theft.project, theft.kind) for theft in evidence.thefts)
    found += [f"the keyring of {one[0]} was not {one[1]}" for one in planned - done]
    if planned and not any(theft.refusals["upload"] for theft in evidence.thefts):
        found.append("no upload was refused while a keyring was stolen")
    if planned and not any(theft.responses for theft in evidence.thefts):
        found.append("the gateway answered no thief")
    return found


def _named(theft: Theft) -> str:
    return (
        f"{theft.project}, {theft.kind}, generation {theft.generation} in place of {theft.newest}"
    )


def marks(evidence: Evidence) -> list[str]:
    """Keyrings in the bucket that are not the ones that the stream of marks names."""
    found = []
    for project, tenant in evidence.tenants.items():
        highest, problems = _highest(m for m in evidence.broker.marks if m.project == project)
        found += [f"{project}: {problem}" for problem in problems]
        present = KeyringFile.of(tenant).find()
        shown = None if present is None else hashlib.sha256(present).hexdigest()
        if shown != (None if highest is None else highest.digest):
            found.append(f"{project}: the keyring in the bucket is not the one of {highest}")
    return found


def _highest(of_project: Iterable[KeyringMarked]) -> tuple[KeyringMarked | None, list[str]]:
    """The highest mark: of those with one serial the first counts."""
    highest: KeyringMarked | None = None
    problems = []
    for mark in of_project:
        if highest is None or mark.serial > highest.serial:
            if highest is not None and mark.generation < highest.generation:
                problems.append(f"the generation goes down from {highest} to {mark}")
            highest = mark
        elif mark.serial == highest.serial and mark.digest != highest.digest:
            problems.append(f"two states have one serial: {highest} and {mark}")
    return highest, problems
