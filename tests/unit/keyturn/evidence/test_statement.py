"""A statement says what was proven, about one project, and contradicts nothing (SPEC 15.1)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from keyturn.errors import MalformedEvidenceError
from keyturn.evidence import EventKeyUse, Predicate, Statement
from tests.unit.keyturn.evidence.shared import COUNTS, CUSTOMER_KEY, ORIGIN, fields, statement

OTHER = "0" * 16
USE = {"keyid": OTHER, "last": "c" * 64, "retired": False}


def document(**changes: Any) -> dict[str, Any]:
    """The JSON of a payload, with changes at its top."""
    return {**json.loads(statement().to_payload()), **changes}


def test_the_subject_is_the_project_at_its_generation() -> None:
    payload = json.loads(statement().to_payload())
    state = b'{"generation":3,"kek_id":"9f86d081884c7d65","master_key":"main"}'
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["predicateType"] == "urn:keyturn:evidence:rotation:v1"
    assert payload["subject"] == [
        {"name": "default/acme", "digest": {"sha256": hashlib.sha256(state).hexdigest()}}
    ]


def test_the_subject_has_the_customer_secret_that_the_wraps_need() -> None:
    payload = json.loads(statement(customer_key=CUSTOMER_KEY).to_payload())
    state = (
        b'{"generation":3,"kek_id":"9f86d081884c7d65","master_key":"main",'
        b'"secret_id":"5f0c1a7be2d94386"}'
    )
    assert payload["subject"][0]["digest"] == {"sha256": hashlib.sha256(state).hexdigest()}
    assert payload["predicate"]["customer_key"] == CUSTOMER_KEY


def test_without_a_customer_key_a_statement_is_what_it_was() -> None:
    assert document()["predicate"] == fields()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"customer_key": CUSTOMER_KEY},
        {"customer_key": {**CUSTOMER_KEY, "key": "acme", "wrapped": "vault:v12:AQIDBA=="}},
        {"publisher": None, "request": None, "previous": "d" * 64, "event_keys": [USE]},
        {"origins": [ORIGIN, {**ORIGIN, "kind": "rotation"}], "origin_count": 70},
    ],
)
def test_a_payload_reads_back(changes: dict[str, Any]) -> None:
    made = statement(**changes)
    assert Statement.from_payload(made.to_payload()) == made


def test_fields_that_a_later_version_adds_are_ignored() -> None:
    later = document()
    later["predicate"]["added_later"] = 1
    assert Statement.from_payload(json.dumps(later).encode()) == statement()


@pytest.mark.parametrize("missing", sorted(fields()))
def test_every_field_is_required(missing: str) -> None:
    payload = document()
    del payload["predicate"][missing]
    with pytest.raises(MalformedEvidenceError):
        Statement.from_payload(json.dumps(payload).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"sweep_id": "2F6C9A0E-0000-4000-8000-000000000001"},
        {"kind": "upload"},
        {"publisher": None},
        {"request": None},
        {"publisher": "Billing"},
        {"request": "ab" * 31},
        {"origins": None},
        {"origins": []},
        {"origins": [{**ORIGIN, "kind": "part"}]},
        {"origins": [{**ORIGIN, "id": "x"}]},
        {"origins": [{**ORIGIN, "publisher": "Billing"}]},
        {"origins": [{**ORIGIN, "request": "ab" * 31}]},
        {"origins": [{"kind": "sweep", "id": ORIGIN["id"]}]},
        {"origins": [ORIGIN] * 65},
        {"origin_count": -1},
        {"origin_count": None},
        {"generation": 0},
        {"generation": "3"},
        {"generation": True},
        {"kek_id": "9F86d081884c7d65"},
        {"master_key": "main key"},
        {"customer_key": {**CUSTOMER_KEY, "store": "Acme"}},
        {"customer_key": {**CUSTOMER_KEY, "key": ""}},
        {"customer_key": {**CUSTOMER_KEY, "key": "a\n"}},
        {"customer_key": {**CUSTOMER_KEY, "key": "a" * 2049}},
        {"customer_key": {**CUSTOMER_KEY, "secret_id": "5f0c1a7be2d9438"}},
        {"customer_key": {**CUSTOMER_KEY, "wrapped": None}},
        {"customer_key": {**CUSTOMER_KEY, "wrapped": "vault:AQIDBA=="}},
        {"customer_key": {**CUSTOMER_KEY, "wrapped": "A" * 8193}},
        {"turned_at": "2026-11-24T10:00:00+00:00"},
        {"proven_from": "2026-11-24T09:59:59Z"},
        {"proven_from": "2026-11-24T10:00:41Z"},
        {"proven_from": "2026-11-24T10:00:30Z"},  # two leases, and not later
        {"lease_s": 0},
        {"lease_s": 10**9},
        {"late_writes_refused": None},
        {"counts": {**COUNTS, "clean": False}},
        {"counts": {**COUNTS, "failed": 1}},
        {"counts": {**COUNTS, "noncurrent_stale": 1}},
        {"counts": {**COUNTS, "objects": -1}},
        {"pages": -1},
        {"version": ""},
        {"version": "0.7 "},
        {"previous": "D" * 64},
        {"event_keys": [{**USE, "keyid": "x"}]},
        {"event_keys": [{**USE, "last": None}]},
        {"event_keys": [{**USE, "retired": 1}]},
        {"event_keys": [USE, USE]},
        {"event_keys": [{**USE, "keyid": "1" * 16}, USE]},
        {"event_keys": [{**USE, "keyid": f"{number:016}"} for number in range(257)]},
    ],
    ids=str,
)
def test_malformed_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Predicate.model_validate(fields(**changes))
    payload = document(predicate=fields(**changes))
    with pytest.raises(MalformedEvidenceError):
        Statement.from_payload(json.dumps(payload).encode())


def test_an_empty_project_has_no_page_to_wait_for() -> None:
    moment = "2026-11-24T10:00:00Z"
    predicate = Predicate.model_validate(fields(pages=0, proven_from=moment, proven_to=moment))
    assert predicate.pages == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"predicate": None},
        {"subject": []},
        {"subject": None},
        {"subject": document()["subject"] * 2},
        {"subject": [{**document()["subject"][0], "uri": "x"}]},
        {"subject": [{**document()["subject"][0], "name": "default"}]},
        {"subject": [{**document()["subject"][0], "name": "default/Acme"}]},
        {"subject": [{**document()["subject"][0], "name": "default/acme/x"}]},
        {"subject": [{**document()["subject"][0], "digest": {"sha256": "0" * 64}}]},
        # Another state than the predicate names.
        {"predicate": fields(generation=4)},
        {"predicate": fields(kek_id="0" * 16)},
        {"predicate": fields(master_key="other")},
        {"predicate": fields(customer_key=CUSTOMER_KEY)},
    ],
    ids=str,
)
def test_other_statements_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvidenceError):
        Statement.from_payload(json.dumps(document(**changes)).encode())


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b'{"_type": 1, "_type": 2}', b"\xff"])
def test_what_is_not_strict_json_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedEvidenceError):
        Statement.from_payload(payload)


def test_errors_repeat_no_value() -> None:
    payload = document(predicate=fields(kek_id="canary"))
    with pytest.raises(MalformedEvidenceError) as caught:
        Statement.from_payload(json.dumps(payload).encode())
    assert "canary" not in str(caught.value)
    assert "kek_id" in str(caught.value)


def test_uses_of_event_keys_read_strictly() -> None:
    assert EventKeyUse.model_validate(USE).keyid == OTHER
