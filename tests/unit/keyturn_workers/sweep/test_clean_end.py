"""Evidence says what was proven, and an end that is resumed says what its evidence says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from keyturn.crypto import SigningKey
from keyturn.evidence import Statement, parse, sign
from keyturn.messages import RequestOrigin
from keyturn_workers.sweep.clean_end import end_with, has_all_dates, statement_of
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import KeptEnvelope, OpenPage, Plan, State, SweepRequest
from tests.unit.keyturn_workers.sweep.sweeping import AT, SWEEP_ID

KEY = SigningKey.from_seed(bytes(32))
OLD_KEY = SigningKey.from_seed(bytes([1]) * 32)
TURNED_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
STATE = State(3, "9f86d081884c7d65", "m1", plaintext=False, etag="k1")
COUNTS = Counts(objects=5, current=4, deleted=1, rewrapped=3, encrypted=2)
PLAN = Plan(
    SweepRequest("rotation", SWEEP_ID, "acme", AT),
    STATE,
    TURNED_AT,
    TURNED_AT,
    proven=COUNTS.without_writes(),
    written=COUNTS.writes(),
    origins=(None, RequestOrigin("billing", "a" * 64), RequestOrigin("other", "b" * 64)),
    lease_s=15,
    next_page=2,
    proven_from=TURNED_AT + timedelta(seconds=31),
    proven_to=TURNED_AT + timedelta(seconds=45),
    dated_pages=2,
)


def statement(plan: Plan = PLAN, **changes: Any) -> Statement:
    more: dict[str, Any] = {
        "previous": None,
        "previous_evidence": None,
        "key_id": KEY.id,
        "held": frozenset({KEY.id}),
        "late_writes_refused": True,
        "version": "0.7.0",
    }
    return statement_of(plan, "test", **(more | changes))


def test_evidence_says_what_was_proven_and_for_whom() -> None:
    made = statement()
    predicate = made.predicate
    assert (made.deployment, made.project) == ("test", "acme")
    assert (predicate.sweep_id, predicate.kind) == (SWEEP_ID, "rotation")
    assert (predicate.publisher, predicate.request) == ("billing", "a" * 64)
    assert (predicate.generation, predicate.kek_id, predicate.master_key) == (
        3,
        "9f86d081884c7d65",
        "m1",
    )
    assert predicate.turned_at == "2026-11-24T10:00:00.000000Z"
    assert predicate.proven_from == "2026-11-24T10:00:31.000000Z"
    assert predicate.proven_to == "2026-11-24T10:00:45.000000Z"
    assert (predicate.lease_s, predicate.pages, predicate.version) == (15, 2, "0.7.0")
    assert predicate.late_writes_refused
    assert predicate.counts.model_dump() == {**COUNTS.to_json(), "clean": True}
    assert (predicate.previous, predicate.event_keys) == (None, [])


def test_a_record_that_names_no_publisher_gives_evidence_without_one() -> None:
    predicate = statement(replace(PLAN, origins=(None,))).predicate
    assert (predicate.publisher, predicate.request) == (None, None)


def test_evidence_follows_another_and_lists_its_key() -> None:
    before = parse(sign(statement(), OLD_KEY))
    predicate = statement(previous=before.digest, previous_evidence=before).predicate
    (use,) = predicate.event_keys
    assert predicate.previous == before.digest
    assert (use.keyid, use.last, use.retired) == (OLD_KEY.id, before.digest, True)
    held = frozenset({KEY.id, OLD_KEY.id})
    (use,) = statement(
        previous=before.digest, previous_evidence=before, held=held
    ).predicate.event_keys
    assert not use.retired


def test_evidence_whose_predecessor_is_lost_names_it_all_the_same() -> None:
    predicate = statement(previous="c" * 64).predicate
    assert (predicate.previous, predicate.event_keys) == ("c" * 64, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"proven_from": TURNED_AT + timedelta(seconds=30)},
        {"proven_from": None},
        {"lease_s": None},
        {"proven": Counts(objects=1, failed=1)},
    ],
    ids=str,
)
def test_no_evidence_is_made_of_a_proof_that_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        statement(replace(PLAN, **changes))


def test_dates_that_a_worker_of_0_6_did_not_record_are_missed() -> None:
    assert has_all_dates(PLAN)
    assert not has_all_dates(replace(PLAN, dated_pages=1))


def test_an_end_says_what_its_evidence_says_whatever_became_of_the_plan() -> None:
    evidence = parse(sign(statement(), KEY))
    kept = KeptEnvelope(evidence.envelope.decode(), STATE)
    later = replace(
        PLAN,
        state=replace(STATE, generation=4, etag="k2"),
        turned_at=TURNED_AT + timedelta(days=1),
        proven=Counts(),
        written=Counts(rewrapped=99),
        live=(OpenPage(0, "", "", seen=Counts(objects=9)),),
        envelope=kept,
    )
    ended = end_with(later, kept, evidence)
    assert (ended.state, ended.turned_at, ended.counts) == (STATE, TURNED_AT, COUNTS)
    assert (ended.evidence, ended.late_writes_refused) == (evidence.digest, True)
    assert ended.envelope == kept
