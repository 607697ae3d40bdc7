"""The checks of messages, attacks and thefts of `make chaos`: each one fails when it should."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn import topology
from keyturn.messages import KeyringMarked
from keyturn.publisher.requests import SignedRequest
from tests.unit.tools.chaos.fake_keyring import FakeS3
from tools.chaos import checks
from tools.chaos.attackers import Attacks, ForgedMessage, VictimOutcome, digest
from tools.chaos.evidence import Evidence, Letter, OnBroker
from tools.chaos.key_outages import OTHERS, KeyOutage
from tools.chaos.operator import ROLLED_BACK, OperatorRequest
from tools.chaos.plan import RIVAL, Action, Load, Plan, Upload
from tools.chaos.thief import Theft

if TYPE_CHECKING:
    from pathlib import Path

UPLOAD = Upload(0, "the upload's id", "amber", "a.bin", 3)
ROTATION, STOLEN = "the rotation's id", "the id of the thief's rotation"
JUNK = b"unsigned"
NEWEST, OLD = b"the keyring of generation 2", b"the keyring of generation 1"
UNSIGNED = topology.UNSIGNED_DEAD_QUEUE
UPLOAD_DEAD = topology.dead_letter_name(topology.UPLOAD_QUEUE)
CONTROL_DEAD = topology.dead_letter_name(topology.CONTROL_QUEUE)
Change = Callable[[Evidence], Evidence]
Check = Callable[[Evidence], list[str]]


def _signed(
    request_type: str, request_id: str, publisher: str, project: str = "amber"
) -> SignedRequest:
    field = topology.REQUEST_ID_FIELDS[request_type]
    document = {"type": request_type, field: request_id, "project": project, "of": publisher}
    body = json.dumps(document).encode()
    return SignedRequest(request_id, request_type, body, {topology.PUBLISHER_HEADER: publisher})


HONEST = _signed("upload.requested", UPLOAD.upload_id, "api")
TURNED = _signed("rotation.requested", ROTATION, "api")
OF_THIEF = _signed("rotation.requested", STOLEN, "api")
HOSTILE = _signed("sweep.requested", ROTATION, RIVAL, RIVAL)
REFUSED = _signed("upload.requested", UPLOAD.upload_id, RIVAL)


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
THIEF_REFUSED = _event("rotation.rejected", OF_THIEF, "amber", code=ROLLED_BACK)


def _mark(serial: int, record: bytes, generation: int) -> KeyringMarked:
    return KeyringMarked(
        project="amber",
        serial=serial,
        digest=hashlib.sha256(record).hexdigest(),
        generation=generation,
        kek_id="0" * 16,
        master_key="m1",
        at="2026-11-29T10:00:00.000000Z",
    )


@pytest.fixture
def s3() -> FakeS3:
    """The bucket after the thief has put the newest keyring back."""
    return FakeS3(NEWEST)


@pytest.fixture
def evidence(tmp_path: Path, s3: FakeS3) -> Evidence:
    """The evidence of attacks and a theft that failed."""
    attacks = Attacks(
        signed=[HOSTILE, REFUSED],
        forged={digest(JUNK): [ForgedMessage("unsigned request", UNSIGNED)]},
        junk={digest(JUNK)},
        false_events={"digest of a false event"},
        poison=Counter({topology.UPLOAD_QUEUE: 1, topology.NOTIFICATIONS: 1}),
        waited=[
            VictimOutcome(UPLOAD.upload_id, "x", STORED),
            VictimOutcome(ROTATION, "x", COMPLETED),
        ],
    )
    broker = OnBroker(
        [STORED, COMPLETED, SWEPT, REJECTED, THIEF_REFUSED],
        ["digest of a false event"],
        [
            Letter(UNSIGNED, UPLOAD.upload_id, "bad_signature", digest(JUNK)),
            Letter(UPLOAD_DEAD, UPLOAD.upload_id, "not_permitted", digest(REFUSED.body)),
            Letter(CONTROL_DEAD, STOLEN, ROLLED_BACK, digest(OF_THIEF.body)),
        ],
        {UNSIGNED: 1},
        [_mark(1, OLD, 1), _mark(2, NEWEST, 2)],
        Counter({UPLOAD_DEAD: 1}),
    )
    theft = Theft("amber", "rolled back", 1, 2, OF_THIEF, answer=ROLLED_BACK)
    outage = KeyOutage("key denied", "fir", 1, 2, put_off=1, others=OTHERS)
    theft.responses, theft.refusals = Counter({"read: 503": 1}), Counter({"upload": 2})
    bucket = SimpleNamespace(bucket="bucket")
    tenant: Any = SimpleNamespace(project="amber", client=s3, deployment=bucket)
    nothing: Any = None
    return Evidence(
        Plan(
            1,
            1,
            Load((UPLOAD,)),
            (
                Action(5, "steal keyring", "amber", kind="rolled back"),
                Action(6, "customer key away", "fir", kind="key denied"),
            ),
        ),
        nothing,
        tmp_path,
        {"amber": tenant},
        {},
        frozenset({UPLOAD.upload_id}),
        {UPLOAD.upload_id: [HONEST], ROTATION: [TURNED]},
        [OperatorRequest(ROTATION, "rotation.completed", "amber")],
        {},
        broker,
        attacks,
        thefts=[theft],
        key_outages=[outage],
    )


ALL = (
    checks.trespasses,
    checks.unrequested,
    checks.unanswered,
    checks.misled_callers,
    checks.unsigned,
    checks.poison,
    checks.dead_letters,
    checks.queues,
    checks.ends,
    checks.events,
    checks.thefts,
    checks.key_outages,
    checks.marks,
)


@pytest.mark.parametrize("check", ALL)
def test_what_failed_breaks_no_check(evidence: Evidence, check: Check) -> None:
    assert check(evidence) == []


# What breaks a check.


def _broker(**changes: Any) -> Change:
    return lambda evidence: replace(evidence, broker=replace(evidence.broker, **changes))


def _event_more(event: dict[str, Any]) -> Change:
    return lambda evidence: _broker(events=[*evidence.broker.events, event])(evidence)


def _letter_more(*letter: Any, **more: Any) -> Change:
    made = Letter(*letter, **more)
    return lambda evidence: _broker(letters=[*evidence.broker.letters, made])(evidence)


def _heard(request_id: str, event: dict[str, Any] | None) -> Change:
    outcome = VictimOutcome(request_id, "x", event)
    return lambda evidence: replace(
        evidence, attacks=replace(evidence.attacks, waited=[*evidence.attacks.waited, outcome])
    )


def _theft(**changes: Any) -> Change:
    return lambda evidence: replace(evidence, thefts=[replace(evidence.thefts[0], **changes)])


def _outage(**changes: Any) -> Change:
    return lambda evidence: replace(
        evidence, key_outages=[replace(evidence.key_outages[0], **changes)]
    )


def _forged_upload(evidence: Evidence) -> Evidence:
    return replace(
        evidence, plan=replace(evidence.plan, load=Load((replace(UPLOAD, flaw="forged"),)))
    )


def _own_rejection(code: str) -> dict[str, Any]:
    rejection: dict[str, Any] = _event("upload.rejected", HONEST, "amber", code=code)
    return rejection


_NOT_SENT, _OF_ANOTHER = "no request that was sent", "received an event of another request"
_NAMELESS = {name: value for name, value in STORED.items() if name not in ("publisher", "request")}
_FAILED = _event("rotation.failed", TURNED, "amber", code="not_found")
_ACCEPTED = _event("rotation.accepted", OF_THIEF, "amber")


@pytest.mark.parametrize(
    ("check", "change", "message"),
    [
        # Such as the refusal of a malformed body, in the project that the body named.
        (checks.trespasses, _event_more({**REJECTED, "project": "amber"}), "without a grant"),
        (checks.trespasses, _event_more({**REJECTED, "project": "cedar"}), "without a grant"),
        (checks.unrequested, _event_more({**STORED, "request": digest(b"not sent")}), _NOT_SENT),
        (checks.unrequested, _event_more({**STORED, "publisher": "narrow"}), _NOT_SENT),
        (checks.unrequested, _event_more({**STORED, "upload_id": "another's id"}), _NOT_SENT),
        (checks.unrequested, _event_more({**STORED, "project": "cedar"}), _NOT_SENT),
        (checks.unrequested, _event_more({**STORED, "project": None}), _NOT_SENT),
        (checks.unrequested, _event_more(_NAMELESS), _NOT_SENT),
        (checks.unanswered, _broker(events=[COMPLETED, SWEPT, REJECTED]), UPLOAD.upload_id),
        # The hostile publisher's own sweep, under the id of another's rotation.
        (checks.unanswered, _broker(events=[STORED, COMPLETED, REJECTED]), "sweep.requested"),
        (checks.poison, _broker(poison=Counter()), "0 letters cannot be read; 1 sent"),
        (checks.poison, _broker(poison=Counter({UPLOAD_DEAD: 1, CONTROL_DEAD: 1})), CONTROL_DEAD),
        # A body that no publisher signed is no request, although it was sent.
        (checks.unrequested, _forged_upload, _NOT_SENT),
        (checks.misled_callers, _heard(ROTATION, None), "received nothing"),
        # The wait for a rotation ended with another publisher's sweep.
        (checks.misled_callers, _heard(ROTATION, SWEPT), _OF_ANOTHER),
        (checks.misled_callers, _heard(UPLOAD.upload_id, REJECTED), _OF_ANOTHER),
        (checks.misled_callers, _heard(UPLOAD.upload_id, {**STORED, "request": "x"}), _OF_ANOTHER),
        (
            checks.misled_callers,
            _heard(UPLOAD.upload_id, _own_rejection("malformed_request")),
            "received {'type': 'upload.rejected'",
        ),
        (checks.misled_callers, _heard(ROTATION, _FAILED), "received {'type': 'rotation.failed'"),
        (
            checks.unsigned,
            _event_more({**REJECTED, "request": digest(JUNK)}),
            "event for an unsigned message",
        ),
        # There, a flood of them would evict signed dead letters.
        (
            checks.unsigned,
            _letter_more(UPLOAD_DEAD, "id", "bad_signature", digest(JUNK)),
            "in ['keyturn.upload.dead']",
        ),
        (checks.unsigned, _broker(letters=[]), "not in ['keyturn.unsigned.dead']"),
        (
            checks.dead_letters,
            _letter_more(UNSIGNED, "id", "bad_signature", digest(b"never sent")),
            "the content of this dead letter was never sent",
        ),
        # A refused upload would keep 256 KiB there.
        (
            checks.dead_letters,
            _letter_more(UPLOAD_DEAD, UPLOAD.upload_id, "already_exists", digest(HONEST.body)),
            "this dead letter keeps its body",
        ),
        (
            checks.ends,
            _letter_more(UNSIGNED, "id", "bad_signature", digest(b"never sent")),
            "unexpected dead letter",
        ),
        # The hostile publisher's dead letters and events with the victim's id do not count.
        (checks.ends, _broker(events=[REJECTED, SWEPT]), UPLOAD.upload_id),
        (
            checks.ends,
            _letter_more(UPLOAD_DEAD, UPLOAD.upload_id, "bad_seal", digest(HONEST.body)),
            "ended as ['bad_seal', 'stored']",
        ),
        (checks.events, _broker(unverified=["digest of another"]), "digest of another"),
        (checks.thefts, _event_more(_ACCEPTED), "the thief's rotation caused"),
        (checks.thefts, _theft(problems=["a.bin was written"]), "a.bin was written"),
        (checks.thefts, _theft(answer="generation_mismatch"), "answered by generation_mismatch"),
        (checks.thefts, _theft(answer=""), "was answered by nothing"),
        (checks.thefts, _theft(kind="removed"), "the keyring of amber was not rolled back"),
        (checks.thefts, _theft(refusals=Counter({"control": 1})), "no upload was refused"),
        (checks.thefts, _theft(responses=Counter()), "the gateway answered no thief"),
        (checks.key_outages, _outage(kind="store stopped"), "key denied: did not happen"),
        (checks.key_outages, _outage(put_off=0), "no upload of fir was put off"),
        (checks.key_outages, _outage(others=1), "1 uploads of others were stored"),
        (
            checks.marks,
            _broker(marks=[_mark(2, NEWEST, 2), _mark(2, b"another", 2)]),
            "two states have one serial",
        ),
        # As if a worker had continued a keyring that was rolled back.
        (
            checks.marks,
            _broker(marks=[_mark(1, OLD, 2), _mark(2, NEWEST, 1)]),
            "the generation goes down",
        ),
    ],
)
def test_what_breaks_a_check_is_found(
    evidence: Evidence, check: Check, change: Change, message: str
) -> None:
    assert message in "\n".join(check(change(evidence)))


def test_a_dead_letter_without_its_body_is_as_it_must_be(evidence: Evidence) -> None:
    of_body = digest(HONEST.body)
    change = _letter_more(UPLOAD_DEAD, UPLOAD.upload_id, "already_exists", of_body, has_body=False)
    assert checks.dead_letters(change(evidence)) == []


def test_an_expected_rejection_is_a_valid_outcome(evidence: Evidence) -> None:
    load = Load((replace(UPLOAD, may_end=frozenset({"already_exists"})),))
    refused = replace(evidence, plan=replace(evidence.plan, load=load))
    for code, problems in (("already_exists", 0), ("bad_seal", 1)):
        refused.attacks.waited[:] = [VictimOutcome(UPLOAD.upload_id, "x", _own_rejection(code))]
        assert len(checks.misled_callers(refused)) == problems


def test_a_run_without_its_thefts_is_found(evidence: Evidence) -> None:
    """Otherwise it would prove nothing."""
    assert len(checks.thefts(replace(evidence, thefts=[]))) == 3


def test_a_mark_that_is_repeated_counts_once(evidence: Evidence) -> None:
    again = [_mark(2, NEWEST, 2), _mark(2, NEWEST, 2), _mark(1, OLD, 1)]
    assert checks.marks(_broker(marks=again)(evidence)) == []


@pytest.mark.parametrize("present", [OLD, None], ids=["rolled back", "removed"])
def test_a_keyring_that_its_mark_does_not_name_is_found(
    evidence: Evidence, s3: FakeS3, present: bytes | None
) -> None:
    s3.body = present
    (message,) = checks.marks(evidence)
    assert message.startswith("amber: the keyring in the bucket is not the one of")


def test_an_operators_request_that_was_refused_meanwhile_is_no_violation(
    evidence: Evidence,
) -> None:
    """It was sent again. Without a theft nothing may be refused so."""
    event = _event("rotation.rejected", TURNED, "amber", code=ROLLED_BACK)
    letter = _letter_more(CONTROL_DEAD, ROTATION, ROLLED_BACK, digest(TURNED.body))
    refused = letter(_event_more(event)(_heard(ROTATION, event)(evidence)))
    for check in ALL:
        assert check(refused) == []
    without = replace(refused, plan=replace(refused.plan, actions=()), thefts=[])
    assert any("unexpected dead letter" in one for one in checks.ends(without))
    assert any("its caller received" in one for one in checks.misled_callers(without))
