"""Checks of messages: each request ended once and as it must, each end was told (SPEC 6.2, 6.7)."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from keyturn import topology
from tools.chaos.attackers import digest
from tools.chaos.evidence import event_ids, honest, told
from tools.chaos.load import STORED, UNTOLD

if TYPE_CHECKING:
    from tools.chaos.evidence import Evidence, Letter
    from tools.chaos.load import Upload


def _named(upload: Upload) -> str:
    flaw = f", {upload.flaw}" if upload.flaw else ""
    return f"upload {upload.upload_id} of {upload.project}/{upload.key}{flaw}"


def _letters(evidence: Evidence) -> dict[str, set[str]]:
    by_id: dict[str, set[str]] = defaultdict(set)
    for letter in evidence.broker.letters:
        if attackers_letter(evidence, letter):
            continue
        by_id[letter.request_id].add(letter.code)
    return by_id


def attackers_letter(evidence: Evidence, letter: Letter) -> bool:
    """Whether this is what an attack left, and lies where that may lie."""
    forged = evidence.attacks.forged.get(letter.digest, ())
    if any(one.lies_in == letter.queue for one in forged):
        return True
    own = {digest(signed.body): signed.type for signed in evidence.attacks.signed}
    if letter.digest not in own:
        return False
    uploads = own[letter.digest] in topology.UPLOAD_REQUESTS
    queue = topology.UPLOAD_QUEUE if uploads else topology.CONTROL_QUEUE
    return letter.queue == topology.dead_letter_name(queue)


def stored_ids(evidence: Evidence) -> set[str]:
    """The uploads that were told as stored."""
    return {
        event["upload_id"] for event in honest(evidence.broker) if event["type"] == "upload.stored"
    }


def ends(evidence: Evidence) -> list[str]:
    """Each confirmed request is done, or a dead letter with a code that it may have."""
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
        if len(ended) > 1 and not upload.deleted:
            found.append(f"{_named(upload)}: ended twice, as {sorted(ended)}")
        if upload.pair is not None:
            pairs[upload.pair] += sorted(ended)
    found += [
        f"pair {pair}: ended as {both}, not once stored and once refused"
        for pair, both in pairs.items()
        if sorted(both) != ["already_exists", STORED]
    ]
    return found + _strange_letters(evidence)


def _strange_letters(evidence: Evidence) -> list[str]:
    ours = {upload.upload_id for upload in evidence.plan.load.uploads}
    return [
        f"a dead letter of nobody's: {letter}"
        for letter in evidence.broker.letters
        if not attackers_letter(evidence, letter)
        and (letter.request_id not in ours or letter.queue != _lies_in(letter))
    ]


def _lies_in(letter: Letter) -> str:
    if letter.code == "bad_signature":
        return topology.UNSIGNED_DEAD_QUEUE
    return topology.dead_letter_name(topology.UPLOAD_QUEUE)


def events(evidence: Evidence) -> list[str]:
    """Every end was told at least once, truly, under the deployment's signature; nothing else."""
    letters, by_id, found = _letters(evidence), told(evidence.broker), list[str]()
    for upload in evidence.plan.load.uploads:
        if upload.flaw in UNTOLD:
            continue
        wanted = {f"upload.rejected {code}" for code in letters.get(upload.upload_id, ())}
        heard = set(by_id.get(upload.upload_id, ()))
        if not wanted <= heard or heard - wanted - {"upload.stored"} or not heard:
            found.append(f"{_named(upload)}: told {sorted(heard)}, it ended as {sorted(wanted)}")
    for asked in evidence.asked:
        if asked.must_be_told not in by_id.get(asked.request_id, ()):
            heard = set(by_id.get(asked.request_id, ()))
            found.append(f"{asked.request_id} of {asked.project}: {heard}, no {asked.must_be_told}")
    unsigned = set(evidence.broker.unverified) - evidence.attacks.false_events
    found += [f"an event without a signature that verifies: {one}" for one in sorted(unsigned)]
    return found + _untrue(evidence) + _strange_events(evidence)


def _untrue(evidence: Evidence) -> list[str]:
    """Events of stored uploads that tell another object than was sent."""
    uploads = {upload.upload_id: upload for upload in evidence.plan.load.uploads}
    return [
        f"told untruly: {event}"
        for event in honest(evidence.broker)
        if event["type"] == "upload.stored"
        and (upload := uploads.get(event["upload_id"])) is not None
        and (event["project"], event["key"], event["size"])
        != (upload.project, upload.key, upload.size_bytes)
    ]


def _strange_events(evidence: Evidence) -> list[str]:
    ours = {upload.upload_id for upload in evidence.plan.load.uploads if upload.flaw not in UNTOLD}
    ours |= {asked.request_id for asked in evidence.asked}
    return [
        f"an event of nobody's: {event}"
        for event in honest(evidence.broker)
        # A sweep of all starts one of each project, under its own id.
        if not event_ids(event) & ours
    ]


def queues(evidence: Evidence) -> list[str]:
    """Nothing waits anywhere, but for dead letters, which have checks of their own."""
    return [
        f"{depth} messages are left in {name}"
        for name, depth in evidence.broker.depths.items()
        if depth and name not in topology.DEAD_QUEUES
    ]
