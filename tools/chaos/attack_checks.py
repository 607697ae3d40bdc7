"""Checks of answers under attack: each one names a request that was really sent (SPEC 6.3, 6.7).

And what nobody signed changed nothing, and lies where it pushes out nothing that was signed.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from keyturn import topology
from keyturn.identifiers import ALL_PROJECTS
from tools.chaos.attackers import digest
from tools.chaos.evidence import event_ids
from tools.chaos.load import UNTOLD
from tools.chaos.message_checks import attackers_letter
from tools.chaos.schedule import RIVAL

if TYPE_CHECKING:
    from keyturn.publisher.requests import SignedRequest
    from tools.chaos.evidence import Evidence

# What each publisher of a run may touch; `api` may do everything.
_GRANTED = {RIVAL: RIVAL, "narrow": "other"}
_BODILESS = frozenset({"already_exists", "deleted_key", "body_too_large"})
_ENDS = {
    "enroll.requested": {"project.enrolled"},
    "upload.requested": {"upload.stored"},
    "rotation.requested": {"rotation.completed"},
    "sweep.requested": {"sweep.completed"},
    "delete.requested": {"object.deleted"},
}


def _sent(evidence: Evidence) -> dict[tuple[str, str], SignedRequest]:
    """Every request that its publisher signed, by that and its digest."""
    forged = {upload.upload_id for upload in evidence.plan.load.uploads if upload.flaw in UNTOLD}
    every = [
        one for tries in evidence.sent.values() for one in tries if one.request_id not in forged
    ]
    return {
        (str(signed.headers[topology.PUBLISHER_HEADER]), digest(signed.body)): signed
        for signed in (*every, *evidence.attacks.signed)
    }


def trespasses(evidence: Evidence) -> list[str]:
    """Events of a publisher in a project that it has no grant for."""
    return [
        f"{event['publisher']} in a project of others: {event}"
        for event in evidence.broker.events
        if event.get("publisher") in _GRANTED
        and event["project"] not in {None, _GRANTED[event["publisher"]]}
    ]


def unasked(evidence: Evidence) -> list[str]:
    """Events that do not name publisher and digest of a request that was sent, or another's id."""
    sent = _sent(evidence)
    return [
        f"no request that was sent: {event}"
        for event in evidence.broker.events
        if not _answers(event, sent.get((str(event.get("publisher")), str(event.get("request")))))
    ]


def _answers(event: dict[str, Any], signed: SignedRequest | None) -> bool:
    if signed is None or signed.request_id not in event_ids(event):
        return False
    project = json.loads(signed.body)["project"]
    if event["project"] is None:
        return bool(event["type"] == topology.REJECTED_EVENTS[signed.type])
    return bool(project in {event["project"], ALL_PROJECTS})


def unheard(evidence: Evidence) -> list[str]:
    """Callers whose request was attacked, and who heard nothing, or of another request."""
    sent = _sent(evidence)
    uploads = {upload.upload_id: upload for upload in evidence.plan.load.uploads}
    found = []
    for waited in evidence.attacks.waited:
        said = f'{waited.request_id} under "{waited.attack}"'
        if (event := waited.event) is None:
            found.append(f"{said}: its caller heard nothing")
            continue
        signed = sent.get((str(event["publisher"]), str(event["request"])))
        own = evidence.sent.get(waited.request_id, ())
        if signed is None or signed not in own or not _answers(event, signed):
            found.append(f"{said}: its caller heard of another request: {event}")
            continue
        upload = uploads.get(waited.request_id)
        if upload is None or upload.is_plain:
            if event["type"] not in _ENDS[signed.type]:
                found.append(f"{said}: its caller heard {event}")
        elif (event.get("code") or "stored") not in upload.may_end:
            found.append(f"{said}: its caller heard {event}")
    return found


def unsigned(evidence: Evidence) -> list[str]:
    """What nobody signed: nothing published of it, and dead in its own queue alone."""
    attacks, found = evidence.attacks, list[str]()
    for event in evidence.broker.events:
        if event.get("request") in attacks.junk:
            found.append(f"published of what nobody signed: {event}")
    lies_in: dict[str, Counter[str]] = {}
    for letter in evidence.broker.letters:
        lies_in.setdefault(letter.digest, Counter())[letter.queue] += 1
    for of_body, forged in attacks.forged.items():
        named, there = forged[0].attack, lies_in.get(of_body, Counter())
        wanted = {one.lies_in for one in forged}
        if not wanted <= there.keys():
            found.append(f"{named} {of_body}: not in {sorted(wanted - there.keys())}")
        if of_body in attacks.junk and there.keys() - wanted:
            found.append(f"{named} {of_body}: in {sorted(there.keys() - wanted)}")
    return found


def letters(evidence: Evidence) -> list[str]:
    """Dead letters are bounded by what was sent, and keep no body that cannot be replayed."""
    sent = {digest(one.body) for tries in evidence.sent.values() for one in tries}
    return [
        f"nobody sent what this letter holds: {letter}"
        for letter in evidence.broker.letters
        if letter.digest not in sent and not attackers_letter(evidence, letter)
    ] + [
        f"its body was kept: {letter}"
        for letter in evidence.broker.letters
        if letter.code in _BODILESS and letter.whole
    ]
