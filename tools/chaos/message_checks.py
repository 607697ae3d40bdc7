"""Checks of messages: each request has its expected outcome and event (SPEC 6.2, 6.7)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from keyturn import topology
from tools.chaos.attackers import digest
from tools.chaos.evidence import event_ids, events_by_request, honest
from tools.chaos.load import FLAWS_WITHOUT_EVENT, STORED
from tools.chaos.operator import ROLLED_BACK

if TYPE_CHECKING:
    from tools.chaos.evidence import Evidence, Letter
    from tools.chaos.load import Upload


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


def stored_ids(evidence: Evidence) -> set[str]:
    """The uploads that were reported as stored."""
    return {
        event["upload_id"] for event in honest(evidence.broker) if event["type"] == "upload.stored"
    }


# Delivered again after its refusal, since the acknowledgment was lost, and after its key's delete.
_REFUSED_AGAIN: Final = {"already_exists", "deleted_key"}


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
        and (letter.request_id not in ours or letter.queue != _expected_queue(letter))
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
