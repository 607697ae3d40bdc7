"""The checks after a run; each returns descriptions of its violations.

Those of messages (SPEC 6.2, 6.7), of attacks and of stolen keyrings (SPEC 5.5) are here, those of
the bucket in `bucket_checks`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

from keyturn import topology
from keyturn.identifiers import ALL_PROJECTS
from tools.chaos.attackers import digest
from tools.chaos.bucket_checks import inspect_bucket, leaks
from tools.chaos.drop_checks import drops, is_letter_of_drop
from tools.chaos.drops import INGEST
from tools.chaos.evidence import event_ids, events_by_request, honest, stored_ids
from tools.chaos.key_outages import OTHERS
from tools.chaos.operator import ROLLED_BACK, KeyringFile
from tools.chaos.plan import (
    FLAWS_WITHOUT_EVENT,
    RIVAL,
    SOURCED_PROJECT,
    STORED,
    UNKNOWN_PROJECT,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyturn.messages import KeyringMarked
    from keyturn.publisher.requests import SignedRequest
    from tools.chaos.evidence import Evidence, Letter
    from tools.chaos.plan import Upload
    from tools.chaos.thief import Theft

# Delivered again after its refusal, since the acknowledgment was lost, and after its key's delete.
_REFUSED_AGAIN: Final = {"already_exists", "deleted_key"}
# The projects of each restricted publisher; `api` may use every project.
_GRANTED = {
    RIVAL: {RIVAL},
    "narrow": {"other"},
    INGEST: {SOURCED_PROJECT, UNKNOWN_PROJECT},
}
_BODILESS = frozenset({"already_exists", "deleted_key", "body_too_large"})
_ENDS = {
    "enroll.requested": {"project.enrolled"},
    "upload.requested": {"upload.stored"},
    "rotation.requested": {"rotation.completed"},
    "sweep.requested": {"sweep.completed"},
    "delete.requested": {"object.deleted"},
}

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
ANSWERED = "each signed request has an event, of hostile publishers too"
MISLED = "each caller under attack received the outcome of its own request"
UNSIGNED = "unsigned messages caused no event, and are only among the unsigned dead letters"
POISON = "poison is only among the dead letters of the queue that it was sent to"
LETTERS = "every dead letter was sent, and keeps no body that cannot be replayed"

SOURCES = "each object of a source is stored once with its bytes, or is there with its code"

STOLEN = "nothing was done by a keyring that a thief had rolled back, and each thief was refused"
OUTAGES = "uploads waited while their customer key was away, and others' were stored meanwhile"

MARKS = "each keyring is the one that its highest mark names"


def run_checks(evidence: Evidence) -> dict[str, list[str]]:
    """Every check with its violations; an empty list means that it holds."""
    report = inspect_bucket(evidence)
    evidence.counts["objects inspected"] = report.objects
    return {
        SETTLED: evidence.unsettled,
        ENDS: ends(evidence),
        EVENTS: events(evidence),
        OPENED: report.not_opened,
        OLD_KEYS: report.opened_by_old,
        LEFTOVERS: report.left,
        QUEUES: queues(evidence),
        SECRETS: leaks(evidence, report),
        PROCESSES: [*evidence.unexpected_exits, *evidence.statuses],
        BUGS: _bugs(evidence),
        GATEWAY: evidence.misread,
        CONSOLE: evidence.misreported,
        TRESPASSES: trespasses(evidence),
        UNREQUESTED: unrequested(evidence),
        ANSWERED: unanswered(evidence),
        MISLED: misled_callers(evidence),
        UNSIGNED: unsigned(evidence),
        POISON: poison(evidence),
        LETTERS: dead_letters(evidence),
        SOURCES: drops(evidence),
        STOLEN: thefts(evidence),
        OUTAGES: key_outages(evidence),
        MARKS: marks(evidence),
    }


def _bugs(evidence: Evidence) -> list[str]:
    return [
        f"{path.name}: {line[:200]} … {line[-500:]}"
        for path in sorted((evidence.folder / "logs").iterdir())
        for line in path.read_text().splitlines()
        if _UNEXPECTED in line
    ]


def _named(upload: Upload) -> str:
    flaw = f", {upload.flaw}" if upload.flaw else ""
    return f"upload {upload.upload_id} of {upload.project}/{upload.key}{flaw}"


def _letters(evidence: Evidence) -> dict[str, set[str]]:
    by_id: dict[str, set[str]] = defaultdict(set)
    for letter in evidence.broker.letters:
        if is_attack_letter(evidence, letter):
            continue
        by_id[letter.request_id].add(letter.code)
    return by_id


def is_attack_letter(evidence: Evidence, letter: Letter) -> bool:
    """Whether an attack left this dead letter in a queue where it is expected."""
    forged = evidence.attacks.forged.get(letter.digest, ())
    if any(one.dead_queue == letter.queue for one in forged):
        return True
    stolen = [theft.request for theft in evidence.thefts]
    own = {digest(signed.body): signed.type for signed in (*evidence.attacks.signed, *stolen)}
    if letter.digest not in own:
        return False
    uploads = own[letter.digest] in topology.UPLOAD_REQUESTS
    queue = topology.UPLOAD_QUEUE if uploads else topology.CONTROL_QUEUE
    return letter.queue == topology.dead_letter_name(queue)


def ends(evidence: Evidence) -> list[str]:
    """Each confirmed request is completed, or a dead letter with an expected code."""
    letters, stored, found = _letters(evidence), stored_ids(evidence), list[str]()
    pairs: dict[int, list[str]] = defaultdict(list)
    for upload in evidence.plan.load.uploads:
        if upload.upload_id not in evidence.confirmed:
            continue
        ended = letters.get(upload.upload_id, set()) | (
            {STORED} if upload.upload_id in stored else set()
        )
        if not ended or not ended <= upload.may_end:
            found.append(f"{_named(upload)}: ended as {sorted(ended)}, not {set(upload.may_end)}")
        if len(ended) > 1 and not upload.deleted and ended != _REFUSED_AGAIN:
            found.append(f"{_named(upload)}: ended twice, as {sorted(ended)}")
        if upload.pair is not None:
            pairs[upload.pair] += sorted(ended)
    found += [
        f"pair {pair}: ended as {both}, not once stored and once rejected"
        for pair, both in pairs.items()
        if sorted(both) != ["already_exists", STORED]
    ]
    return found + _unexpected_letters(evidence)


def _unexpected_letters(evidence: Evidence) -> list[str]:
    ours = {upload.upload_id for upload in evidence.plan.load.uploads}
    return [
        f"unexpected dead letter: {letter}"
        for letter in evidence.broker.letters
        if not is_attack_letter(evidence, letter)
        and not _is_of_theft(evidence, letter)
        and (
            not (letter.request_id in ours or is_letter_of_drop(evidence, letter))
            or letter.queue != _expected_queue(letter)
        )
    ]


def _is_of_theft(evidence: Evidence, letter: Letter) -> bool:
    """Whether the operator's request, or a copy of it, was refused while a keyring was stolen."""
    requested = {request.request_id for request in evidence.requested}
    control = topology.dead_letter_name(topology.CONTROL_QUEUE)
    is_refusal = (letter.queue, letter.code) == (control, ROLLED_BACK)
    return bool(evidence.thefts) and is_refusal and letter.request_id in requested


def _expected_queue(letter: Letter) -> str:
    if letter.code == "bad_signature":
        return topology.UNSIGNED_DEAD_QUEUE
    return topology.dead_letter_name(topology.UPLOAD_QUEUE)


def events(evidence: Evidence) -> list[str]:
    """Each outcome has at least one correct, signed event, and there are no other events."""
    letters, by_id, found = _letters(evidence), events_by_request(evidence.broker), list[str]()
    for upload in evidence.plan.load.uploads:
        if upload.flaw in FLAWS_WITHOUT_EVENT:
            continue
        codes = letters.get(upload.upload_id, set())
        expected = {f"upload.rejected {code}" for code in codes}
        published = set(by_id.get(upload.upload_id, ()))
        # If a worker is killed between the dead letter and its event, the request is refused again.
        certain = {"upload.rejected deleted_key"} if codes == _REFUSED_AGAIN else expected
        if not certain <= published or published - expected - {"upload.stored"} or not published:
            found.append(
                f"{_named(upload)}: events {sorted(published)}, expected {sorted(expected)}"
            )
    for request in evidence.requested:
        if request.expected_event not in by_id.get(request.request_id, ()):
            published = set(by_id.get(request.request_id, ()))
            found.append(
                f"{request.request_id} of {request.project}: {published}, "
                f"no {request.expected_event}"
            )
    unsigned = set(evidence.broker.unverified) - evidence.attacks.false_events
    found += [f"an event without a signature that verifies: {one}" for one in sorted(unsigned)]
    return found + _wrong_events(evidence) + _unexpected_events(evidence)


def _wrong_events(evidence: Evidence) -> list[str]:
    """Events of stored uploads that do not match the upload."""
    uploads = {upload.upload_id: upload for upload in evidence.plan.load.uploads}
    return [
        f"wrong event: {event}"
        for event in honest(evidence.broker)
        if event["type"] == "upload.stored"
        and (upload := uploads.get(event["upload_id"])) is not None
        and (event["project"], event["key"], event["size"])
        != (upload.project, upload.key, upload.size_bytes)
    ]


def _unexpected_events(evidence: Evidence) -> list[str]:
    ours = {
        upload.upload_id
        for upload in evidence.plan.load.uploads
        if upload.flaw not in FLAWS_WITHOUT_EVENT
    }
    ours |= {request.request_id for request in evidence.requested}
    ours |= {theft.request.request_id for theft in evidence.thefts}
    ours |= evidence.written.ids
    return [
        f"unexpected event: {event}"
        for event in honest(evidence.broker)
        # A sweep of all projects starts one sweep per project, with its own id.
        if not event_ids(event) & ours
    ]


def queues(evidence: Evidence) -> list[str]:
    """All queues are empty, except for dead letters, which have their own checks."""
    return [
        f"{depth} messages are left in {name}"
        for name, depth in evidence.broker.depths.items()
        if depth and name not in topology.DEAD_QUEUES
    ]


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
        for signed in (
            *every,
            *evidence.attacks.signed,
            *(theft.request for theft in evidence.thefts),
        )
    }


def trespasses(evidence: Evidence) -> list[str]:
    """Events of a publisher in a project for which it has no grant."""
    return [
        f"{event['publisher']} in a project without a grant: {event}"
        for event in evidence.broker.events
        if event.get("publisher") in _GRANTED
        and event["project"] not in {None, *_GRANTED[event["publisher"]]}
    ]


def unrequested(evidence: Evidence) -> list[str]:
    """Events that do not name the publisher, digest and id of a request that was sent."""
    sent = _sent(evidence)
    return [
        f"no request that was sent: {event}"
        for event in evidence.broker.events
        # What ingest workers requested, only they know: `drops` checks their events.
        if event.get("publisher") != INGEST
        and not _is_about(event, sent.get((str(event.get("publisher")), str(event.get("request")))))
    ]


def _is_about(event: dict[str, Any], signed: SignedRequest | None) -> bool:
    if signed is None or signed.request_id not in event_ids(event):
        return False
    project = json.loads(signed.body)["project"]
    if event["project"] is None:
        return bool(event["type"] == topology.REJECTED_EVENTS[signed.type])
    return bool(project in {event["project"], ALL_PROJECTS})


def unanswered(evidence: Evidence) -> list[str]:
    """Signed requests without an event: of each confirmed id, at least one try must have one."""
    answered = {str(event.get("request")) for event in evidence.broker.events}
    forged = {
        upload.upload_id
        for upload in evidence.plan.load.uploads
        if upload.flaw in FLAWS_WITHOUT_EVENT
    }
    own = [
        tries
        for request_id, tries in evidence.sent.items()
        if request_id in evidence.confirmed and request_id not in forged
    ]
    each_sent = [[signed] for signed in evidence.attacks.signed]
    return [
        f"no event of this {tries[-1].type}: {tries[-1].request_id}"
        for tries in (*own, *each_sent)
        if answered.isdisjoint(digest(signed.body) for signed in tries)
    ]


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


def poison(evidence: Evidence) -> list[str]:
    """Poison messages missing from the dead letters of their queue, or among those of another.

    Notifications have no dead letters: the broker drops those that cannot be delivered.
    """
    sent = {
        topology.dead_letter_name(queue): count
        for queue, count in evidence.attacks.poison.items()
        if queue != topology.NOTIFICATIONS
    }
    # A message that was sent again, because its confirmation was lost, is there twice.
    return [
        f"{name}: {evidence.broker.poison[name]} letters cannot be read; {sent.get(name, 0)} sent"
        for name in topology.DEAD_QUEUES
        if evidence.broker.poison[name] < sent.get(name, 0)
        or (evidence.broker.poison[name] and name not in sent)
    ]


def dead_letters(evidence: Evidence) -> list[str]:
    """Every dead letter was sent, and none keeps a body that cannot be replayed."""
    sent = {digest(one.body) for tries in evidence.sent.values() for one in tries}
    return [
        f"the content of this dead letter was never sent: {letter}"
        for letter in evidence.broker.letters
        if letter.digest not in sent
        and not is_attack_letter(evidence, letter)
        and not is_letter_of_drop(evidence, letter)
    ] + [
        f"this dead letter keeps its body: {letter}"
        for letter in evidence.broker.letters
        if letter.code in _BODILESS and letter.has_body
    ]


def thefts(evidence: Evidence) -> list[str]:
    """What was done by a stolen keyring, and thefts that did not happen or were not refused."""
    found = [f"{_theft_named(theft)}: {one}" for theft in evidence.thefts for one in theft.problems]
    by_id = {theft.request.request_id: theft for theft in evidence.thefts}
    found += [
        f"{_theft_named(by_id[request_id])}: the thief's rotation caused {event}"
        for event in evidence.broker.events
        if event["type"] != "rotation.rejected"
        for request_id in event_ids(event) & by_id.keys()
    ]
    found += [
        f"{_theft_named(theft)}: the rotation was answered by {theft.answer or 'nothing'}"
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


def _theft_named(theft: Theft) -> str:
    return (
        f"{theft.project}, {theft.kind}, generation {theft.generation} in place of {theft.newest}"
    )


def key_outages(evidence: Evidence) -> list[str]:
    """Outages of customer keys that did not happen, stopped nothing, or stopped others' uploads."""
    planned = Counter(
        action.kind for action in evidence.plan.actions if action.what == "customer key away"
    )
    done = Counter(outage.kind for outage in evidence.key_outages)
    found = [f"{kind}: did not happen" for kind in planned - done]
    for outage in evidence.key_outages:
        if not outage.put_off:
            found.append(f"{outage.kind}: no upload of {outage.project} was put off")
        if outage.others < OTHERS:
            found.append(
                f"{outage.kind}: {outage.others} uploads of others were stored, not {OTHERS}"
            )
    return found


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
