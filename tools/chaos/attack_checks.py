"""Checks under attack: each event names a request that was really sent (SPEC 6.3, 6.7).

Unsigned messages had no effect, and are dead-lettered where they evict no signed dead letter.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from keyturn import topology
from keyturn.identifiers import ALL_PROJECTS
from tools.chaos.attackers import digest
from tools.chaos.evidence import event_ids
from tools.chaos.load import FLAWS_WITHOUT_EVENT
from tools.chaos.message_checks import is_attack_letter
from tools.chaos.operator import ROLLED_BACK
from tools.chaos.schedule import RIVAL

if TYPE_CHECKING:
    from keyturn.publisher.requests import SignedRequest
    from tools.chaos.evidence import Evidence

# The project of each restricted publisher; `api` may use every project.
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
    """Every request signed by its publisher, by publisher and digest."""
    forged = {
        upload.upload_id
        for upload in evidence.plan.load.uploads
        if upload.flaw in FLAWS_WITHOUT_EVENT
    }
    every = [
        one for tries in evidence.sent.values() for one in tries if one.request_id not in forged
    ]
    return {
        (str(signed.headers[topology.PUBLISHER_HEADER]), digest(signed.body)): signed
        for signed in (*every, *evidence.attacks.signed, *_of_thief(evidence))
    }


def _of_thief(evidence: Evidence) -> list[SignedRequest]:
    return [theft.request for theft in evidence.thefts]


def trespasses(evidence: Evidence) -> list[str]:
    """Events of a publisher in a project for which it has no grant."""
    return [
        f"{event['publisher']} in a project without a grant: {event}"
        for event in evidence.broker.events
        if event.get("publisher") in _GRANTED
        and event["project"] not in {None, _GRANTED[event["publisher"]]}
    ]


def unrequested(evidence: Evidence) -> list[str]:
    """Events that do not name the publisher, digest and id of a request that was sent."""
    sent = _sent(evidence)
    return [
        f"no request that was sent: {event}"
        for event in evidence.broker.events
        if not _is_about(event, sent.get((str(event.get("publisher")), str(event.get("request")))))
    ]


def _is_about(event: dict[str, Any], signed: SignedRequest | None) -> bool:
    if signed is None or signed.request_id not in event_ids(event):
        return False
    project = json.loads(signed.body)["project"]
    if event["project"] is None:
        return bool(event["type"] == topology.REJECTED_EVENTS[signed.type])
    return bool(project in {event["project"], ALL_PROJECTS})


def misled_callers(evidence: Evidence) -> list[str]:
    """Callers under attack who received no event, or one of another request."""
    sent = _sent(evidence)
    uploads = {upload.upload_id: upload for upload in evidence.plan.load.uploads}
    found = []
    for waited in evidence.attacks.waited:
        message = f'{waited.request_id} under "{waited.attack}"'
        if (event := waited.event) is None:
            found.append(f"{message}: its caller received nothing")
            continue
        signed = sent.get((str(event["publisher"]), str(event["request"])))
        own = evidence.sent.get(waited.request_id, ())
        if signed is None or signed not in own or not _is_about(event, signed):
            found.append(f"{message}: its caller received an event of another request: {event}")
            continue
        upload = uploads.get(waited.request_id)
        if upload is None and event.get("code") == ROLLED_BACK and evidence.thefts:
            continue  # refused while a thief had rolled the keyring back
        if upload is None or upload.is_plain:
            if event["type"] not in _ENDS[signed.type]:
                found.append(f"{message}: its caller received {event}")
        elif (event.get("code") or "stored") not in upload.may_end:
            found.append(f"{message}: its caller received {event}")
    return found


def unsigned(evidence: Evidence) -> list[str]:
    """Unsigned messages caused no event, and are only in their own dead-letter queue."""
    attacks, found = evidence.attacks, list[str]()
    for event in evidence.broker.events:
        if event.get("request") in attacks.junk:
            found.append(f"event for an unsigned message: {event}")
    dead_queue: dict[str, Counter[str]] = {}
    for letter in evidence.broker.letters:
        dead_queue.setdefault(letter.digest, Counter())[letter.queue] += 1
    for of_body, forged in attacks.forged.items():
        named, present = forged[0].attack, dead_queue.get(of_body, Counter())
        expected = {one.dead_queue for one in forged}
        if not expected <= present.keys():
            found.append(f"{named} {of_body}: not in {sorted(expected - present.keys())}")
        if of_body in attacks.junk and present.keys() - expected:
            found.append(f"{named} {of_body}: in {sorted(present.keys() - expected)}")
    return found


def letters(evidence: Evidence) -> list[str]:
    """Every dead letter was sent, and none keeps a body that cannot be replayed."""
    sent = {digest(one.body) for tries in evidence.sent.values() for one in tries}
    return [
        f"the content of this dead letter was never sent: {letter}"
        for letter in evidence.broker.letters
        if letter.digest not in sent and not is_attack_letter(evidence, letter)
    ] + [
        f"this dead letter keeps its body: {letter}"
        for letter in evidence.broker.letters
        if letter.code in _BODILESS and letter.has_body
    ]
