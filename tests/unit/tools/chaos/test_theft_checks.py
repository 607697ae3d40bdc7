"""The checks of stolen keyrings of `make chaos`: each one fails when it should (SPEC 5.5)."""

from __future__ import annotations

import hashlib
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
from tools.chaos import attack_checks, message_checks, theft_checks
from tools.chaos.attackers import Attacks, VictimOutcome, digest
from tools.chaos.evidence import Evidence, Letter, OnBroker
from tools.chaos.load import Load
from tools.chaos.operator import ROLLED_BACK, OperatorRequest
from tools.chaos.schedule import Action, Plan
from tools.chaos.thief import Theft

if TYPE_CHECKING:
    from pathlib import Path

NEWEST = b"the keyring of generation 2"
OLD = b"the keyring of generation 1"
CONTROL_DEAD = topology.dead_letter_name(topology.CONTROL_QUEUE)
Change = Callable[[Evidence], Evidence]


def _signed(request_id: str, body: bytes) -> SignedRequest:
    headers = {topology.PUBLISHER_HEADER: "api"}
    return SignedRequest(request_id, "rotation.requested", body, headers)


OF_THIEF = _signed("the thief's", b'{"project": "amber", "of": "the thief"}')
HONEST = _signed("the operator's", b'{"project": "amber"}')


def _event(event_type: str, signed: SignedRequest, **more: Any) -> dict[str, Any]:
    return {
        "type": event_type,
        "rotation_id": signed.request_id,
        "project": "amber",
        "publisher": "api",
        "request": digest(signed.body),
        **more,
    }


REFUSED = _event("rotation.rejected", OF_THIEF, code=ROLLED_BACK)
COMPLETED = _event("rotation.completed", HONEST, clean=True)


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
    """The evidence of a theft that was refused everywhere."""
    theft = Theft(
        "amber",
        "rolled back",
        1,
        2,
        OF_THIEF,
        answer=ROLLED_BACK,
        responses=Counter({"read: 503": 1}),
        refusals=Counter({"upload": 2, "control": 1}),
    )
    tenant: Any = SimpleNamespace(
        project="amber", client=s3, deployment=SimpleNamespace(bucket="bucket")
    )
    nothing: Any = None
    return Evidence(
        Plan(1, 1, Load(()), (Action(5, "steal keyring", "amber", kind="rolled back"),)),
        nothing,
        tmp_path,
        {"amber": tenant},
        {},
        frozenset(),
        {HONEST.request_id: [HONEST]},
        [OperatorRequest(HONEST.request_id, "rotation.completed", "amber")],
        {},
        OnBroker(
            [REFUSED, COMPLETED],
            letters=[Letter(CONTROL_DEAD, "the thief's", ROLLED_BACK, digest(OF_THIEF.body))],
            marks=[_mark(1, OLD, 1), _mark(2, NEWEST, 2)],
        ),
        Attacks(),
        thefts=[theft],
    )


ALL = (
    theft_checks.thefts,
    theft_checks.marks,
    attack_checks.unrequested,
    attack_checks.misled_callers,
    attack_checks.letters,
    message_checks.ends,
    message_checks.events,
)


@pytest.mark.parametrize("check", ALL)
def test_a_theft_that_was_refused_breaks_no_check(
    evidence: Evidence, check: Callable[[Evidence], list[str]]
) -> None:
    assert check(evidence) == []


@pytest.mark.parametrize("event_type", ["rotation.accepted", "rotation.completed"])
def test_an_accepted_rotation_of_the_thief_is_found(evidence: Evidence, event_type: str) -> None:
    evidence.broker.events.append(_event(event_type, OF_THIEF))
    (message,) = theft_checks.thefts(evidence)
    assert f"the thief's rotation caused {{'type': '{event_type}'" in message


def _changed(**changes: Any) -> Change:
    return lambda evidence: replace(evidence, thefts=[replace(evidence.thefts[0], **changes)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed(problems=["a.bin was written"]), "a.bin was written"),
        (_changed(answer="generation_mismatch"), "was answered by generation_mismatch"),
        (_changed(answer=""), "was answered by nothing"),
        (_changed(kind="removed"), "the keyring of amber was not rolled back"),
        (_changed(refusals=Counter({"control": 1})), "no upload was refused"),
        (_changed(responses=Counter()), "the gateway answered no thief"),
    ],
    ids=["problem", "another refusal", "no answer", "not done", "no refusal", "no response"],
)
def test_what_a_theft_shows_is_reported(evidence: Evidence, change: Change, message: str) -> None:
    (found,) = theft_checks.thefts(change(evidence))
    assert message in found


def test_a_run_without_its_thefts_is_found(evidence: Evidence) -> None:
    """Otherwise it would prove nothing."""
    missing, refusals, responses = theft_checks.thefts(replace(evidence, thefts=[]))
    assert missing == "the keyring of amber was not rolled back"
    assert refusals == "no upload was refused while a keyring was stolen"
    assert responses == "the gateway answered no thief"


def _with_marks(*marks: KeyringMarked) -> Change:
    return lambda evidence: replace(evidence, broker=replace(evidence.broker, marks=[*marks]))


def test_of_two_marks_with_one_serial_the_first_counts(evidence: Evidence) -> None:
    again = _with_marks(_mark(2, NEWEST, 2), _mark(2, NEWEST, 2), _mark(1, OLD, 1))
    assert theft_checks.marks(again(evidence)) == []
    branch = _with_marks(_mark(2, NEWEST, 2), _mark(2, b"another", 2))
    (message,) = theft_checks.marks(branch(evidence))
    assert message.startswith("amber: two states have one serial")


@pytest.mark.parametrize("present", [OLD, None], ids=["rolled back", "removed"])
def test_a_keyring_that_its_mark_does_not_name_is_found(
    evidence: Evidence, s3: FakeS3, present: bytes | None
) -> None:
    s3.body = present
    (message,) = theft_checks.marks(evidence)
    assert message.startswith("amber: the keyring in the bucket is not the one of")


def test_a_mark_of_a_lower_generation_is_found(evidence: Evidence) -> None:
    """As if a worker had continued a keyring that was rolled back."""
    lower = _with_marks(_mark(1, OLD, 2), _mark(2, NEWEST, 1))
    (message,) = theft_checks.marks(lower(evidence))
    assert message.startswith("amber: the generation goes down")


def test_an_operators_request_that_was_refused_meanwhile_is_no_violation(
    evidence: Evidence,
) -> None:
    """It was sent again. Without a theft nothing may be refused so."""
    letter = Letter(CONTROL_DEAD, HONEST.request_id, ROLLED_BACK, digest(HONEST.body))
    event = _event("rotation.rejected", HONEST, code=ROLLED_BACK)
    evidence.broker.letters.append(letter)
    evidence.broker.events.append(event)
    evidence.attacks.waited.append(VictimOutcome(HONEST.request_id, "x", event))
    for check in ALL:
        assert check(evidence) == []
    plan = replace(evidence.plan, actions=())
    without = replace(evidence, plan=plan, thefts=[])
    assert any("unexpected dead letter" in one for one in message_checks.ends(without))
    assert any("its caller received" in one for one in attack_checks.misled_callers(without))
