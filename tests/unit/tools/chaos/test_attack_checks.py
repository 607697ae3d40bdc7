"""The attack checks of `make chaos`: each one fails when it should."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn import topology
from keyturn.publisher.requests import SignedRequest
from tools.chaos import attack_checks, message_checks
from tools.chaos.attackers import Attacks, ForgedMessage, VictimOutcome, digest
from tools.chaos.evidence import Evidence, Letter, OnBroker
from tools.chaos.load import Load, Upload
from tools.chaos.operator import OperatorRequest
from tools.chaos.schedule import RIVAL, Plan

if TYPE_CHECKING:
    from pathlib import Path

UPLOAD = Upload(0, "the upload's id", "amber", "a.bin", 3)
ROTATION = "the rotation's id"
JUNK = b"unsigned"
UNSIGNED = topology.UNSIGNED_DEAD_QUEUE
Change = Callable[[Evidence], Evidence]


def _signed(request_type: str, request_id: str, project: str, publisher: str) -> SignedRequest:
    field = topology.REQUEST_ID_FIELDS[request_type]
    document = {"type": request_type, field: request_id, "project": project, "of": publisher}
    body = json.dumps(document).encode()
    return SignedRequest(request_id, request_type, body, {topology.PUBLISHER_HEADER: publisher})


HONEST = _signed("upload.requested", UPLOAD.upload_id, "amber", "api")
TURNED = _signed("rotation.requested", ROTATION, "amber", "api")
HOSTILE = _signed("sweep.requested", ROTATION, RIVAL, RIVAL)
REFUSED = _signed("upload.requested", UPLOAD.upload_id, "amber", RIVAL)


def _event(event_type: str, signed: SignedRequest, project: str | None, **more: Any) -> Any:
    return {
        "type": event_type,
        topology.REQUEST_ID_FIELDS[signed.type]: signed.request_id,
        "project": project,
        "publisher": signed.headers[topology.PUBLISHER_HEADER],
        "request": digest(signed.body),
        **more,
    }


STORED = _event("upload.stored", HONEST, "amber", key="a.bin", size=3)
COMPLETED = _event("rotation.completed", TURNED, "amber", clean=True)
SWEPT = _event("sweep.completed", HOSTILE, RIVAL, clean=True)
REJECTED = _event("upload.rejected", REFUSED, None, code="not_permitted")


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    """The evidence of a failed attack."""
    attacks = Attacks(
        signed=[HOSTILE, REFUSED],
        forged={digest(JUNK): [ForgedMessage("unsigned request", UNSIGNED)]},
        junk={digest(JUNK)},
        false_events={"digest of a false event"},
        waited=[
            VictimOutcome(UPLOAD.upload_id, "x", STORED),
            VictimOutcome(ROTATION, "x", COMPLETED),
        ],
    )
    letters = [
        Letter(UNSIGNED, UPLOAD.upload_id, "bad_signature", digest(JUNK)),
        Letter("keyturn.upload.dead", UPLOAD.upload_id, "not_permitted", digest(REFUSED.body)),
    ]
    broker = OnBroker(
        [STORED, COMPLETED, SWEPT, REJECTED], ["digest of a false event"], letters, {UNSIGNED: 1}
    )
    nothing: Any = None
    return Evidence(
        Plan(1, 1, Load((UPLOAD,)), ()),
        nothing,
        tmp_path,
        {},
        {},
        frozenset({UPLOAD.upload_id}),
        {UPLOAD.upload_id: [HONEST], ROTATION: [TURNED]},
        [],
        {},
        broker,
        attacks,
    )


def _with_event(event: dict[str, Any]) -> Change:
    def change(evidence: Evidence) -> Evidence:
        events = [*evidence.broker.events, event]
        return replace(evidence, broker=replace(evidence.broker, events=events))

    return change


def _with_letters(*letters: Letter) -> Change:
    return lambda evidence: replace(evidence, broker=replace(evidence.broker, letters=[*letters]))


def _heard(request_id: str, event: dict[str, Any] | None) -> Change:
    def change(evidence: Evidence) -> Evidence:
        waited = [*evidence.attacks.waited, VictimOutcome(request_id, "x", event)]
        return replace(evidence, attacks=replace(evidence.attacks, waited=waited))

    return change


ALL = (
    attack_checks.trespasses,
    attack_checks.unrequested,
    attack_checks.misled_callers,
    attack_checks.unsigned,
    attack_checks.letters,
    message_checks.queues,
    message_checks.ends,
)


@pytest.mark.parametrize("check", ALL)
def test_a_failed_attack_breaks_no_check(
    evidence: Evidence, check: Callable[[Evidence], list[str]]
) -> None:
    assert check(evidence) == []


@pytest.mark.parametrize("project", ["amber", "cedar"])
def test_an_event_in_a_project_without_a_grant_is_found(evidence: Evidence, project: str) -> None:
    """Such as the refusal of a malformed body, in the project that the body named."""
    event = {**REJECTED, "project": project}
    (message,) = attack_checks.trespasses(_with_event(event)(evidence))
    assert project in message


@pytest.mark.parametrize(
    "event",
    [
        {**STORED, "request": digest(b"never sent")},
        {**STORED, "publisher": "narrow"},
        {**STORED, "upload_id": "another's id"},
        {**STORED, "project": "cedar"},
        {**STORED, "project": None},
        {name: value for name, value in STORED.items() if name not in {"publisher", "request"}},
    ],
    ids=["bytes", "publisher", "id", "project", "no project", "none"],
)
def test_an_event_without_a_sent_request_is_found(
    evidence: Evidence, event: dict[str, Any]
) -> None:
    (message,) = attack_checks.unrequested(_with_event(event)(evidence))
    assert message.startswith("no request that was sent")


def test_an_event_of_a_forged_upload_is_found(evidence: Evidence) -> None:
    """A body that no publisher signed is no request, although it was sent."""
    forged = replace(UPLOAD, flaw="forged")
    plan = replace(evidence.plan, load=Load((forged,)))
    (message,) = attack_checks.unrequested(replace(evidence, plan=plan))
    assert "upload.stored" in message


@pytest.mark.parametrize(
    ("request_id", "event", "message"),
    [
        (ROTATION, None, "received nothing"),
        (ROTATION, SWEPT, "received an event of another request"),
        (UPLOAD.upload_id, REJECTED, "received an event of another request"),
        (
            UPLOAD.upload_id,
            {**STORED, "request": "of no try"},
            "received an event of another request",
        ),
        (
            UPLOAD.upload_id,
            _event("upload.rejected", HONEST, "amber", code="malformed_request"),
            "received {'type': 'upload.rejected'",
        ),
        (
            ROTATION,
            _event("rotation.failed", TURNED, "amber", code="not_found"),
            "received {'type': 'rotation.failed'",
        ),
    ],
    ids=["nothing", "a sweep", "a refusal", "other bytes", "a refusal of its own", "a failure"],
)
def test_a_misled_caller_is_found(
    evidence: Evidence, request_id: str, event: dict[str, Any] | None, message: str
) -> None:
    """Such as one whose wait for a rotation ended with another publisher's sweep."""
    (found,) = attack_checks.misled_callers(_heard(request_id, event)(evidence))
    assert message in found


def test_an_expected_rejection_is_a_valid_outcome(evidence: Evidence) -> None:
    refused = frozenset({"already_exists"})
    plan = replace(evidence.plan, load=Load((replace(UPLOAD, may_end=refused),)))
    event = _event("upload.rejected", HONEST, "amber", code="already_exists")
    own = replace(evidence.attacks, waited=[VictimOutcome(UPLOAD.upload_id, "x", event)])
    assert attack_checks.misled_callers(replace(evidence, plan=plan, attacks=own)) == []
    event["code"] = "bad_seal"
    assert len(attack_checks.misled_callers(replace(evidence, plan=plan, attacks=own))) == 1


def test_an_event_for_an_unsigned_message_is_found(evidence: Evidence) -> None:
    event = {**REJECTED, "request": digest(JUNK)}
    (message,) = attack_checks.unsigned(_with_event(event)(evidence))
    assert message.startswith("event for an unsigned message")


def test_an_unsigned_message_among_signed_dead_letters_is_found(evidence: Evidence) -> None:
    """There, a flood of them would evict signed dead letters."""
    letter = Letter("keyturn.upload.dead", "id", "bad_signature", digest(JUNK))
    lost, displaced = attack_checks.unsigned(_with_letters(letter)(evidence))
    assert "not in ['keyturn.unsigned.dead']" in lost
    assert "in ['keyturn.upload.dead']" in displaced
    unsigned = Letter(UNSIGNED, "id", "bad_signature", digest(JUNK))
    assert len(attack_checks.unsigned(_with_letters(letter, unsigned)(evidence))) == 1


def test_a_dead_letter_that_was_never_sent_is_found(evidence: Evidence) -> None:
    letter = Letter(UNSIGNED, "id", "bad_signature", digest(b"never sent"))
    change = _with_letters(*evidence.broker.letters, letter)
    (message,) = attack_checks.letters(change(evidence))
    assert message.startswith("the content of this dead letter was never sent")
    assert len(message_checks.ends(change(evidence))) == 1


def test_a_dead_letter_with_an_unreplayable_body_is_found(evidence: Evidence) -> None:
    """A refused upload would keep 256 KiB there."""
    code, of_body = "already_exists", digest(HONEST.body)
    without = Letter("keyturn.upload.dead", UPLOAD.upload_id, code, of_body, has_body=False)
    change = _with_letters(*evidence.broker.letters, without)
    assert attack_checks.letters(change(evidence)) == []
    change = _with_letters(*evidence.broker.letters, replace(without, has_body=True))
    (message,) = attack_checks.letters(change(evidence))
    assert message.startswith("this dead letter keeps its body")


def test_an_unsigned_event_that_no_attack_published_is_found(evidence: Evidence) -> None:
    requested = [OperatorRequest(ROTATION, "rotation.completed", "amber")]
    evidence = replace(evidence, requested=requested)
    assert message_checks.events(evidence) == []
    broker = replace(evidence.broker, unverified=["digest of another"])
    (message,) = message_checks.events(replace(evidence, broker=broker))
    assert message.endswith("digest of another")


def test_an_attack_does_not_hide_its_victims_outcome(evidence: Evidence) -> None:
    """The hostile publisher's dead letters and events with the victim's id do not count."""
    broker = replace(evidence.broker, events=[REJECTED, SWEPT])
    lost = message_checks.ends(replace(evidence, broker=broker))
    assert UPLOAD.upload_id in "".join(lost)
    letter = Letter("keyturn.upload.dead", UPLOAD.upload_id, "bad_seal", digest(HONEST.body))
    refused = message_checks.ends(_with_letters(*evidence.broker.letters, letter)(evidence))
    assert UPLOAD.upload_id in "".join(refused)
