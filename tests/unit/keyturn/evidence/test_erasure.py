"""Evidence of an erasure names every secret, and rests on a proof (SPEC 15.1, 15.2)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from pydantic import ValidationError

from keyturn.errors import EvidenceError, MalformedEvidenceError
from keyturn.evidence import (
    ErasurePredicate,
    Statement,
    keys_before,
    parse,
    sign,
    verify_chain,
)
from tests.unit.keyturn.evidence.shared import (
    CUSTOMER_KEY,
    FIRST_KEY,
    PUBLIC_KEYS,
    chain_of,
    follow,
)

_FIRST: dict[str, Any] = {
    **CUSTOMER_KEY,
    "generations": [3],
    "answer": "disabled",
    "answered_at": "2026-11-24T10:00:00.000000Z",
}
_SECOND: dict[str, Any] = {
    **_FIRST,
    "secret_id": "9f0c1a7be2d94386",
    "generations": [4, 5],
    "answer": "missing",
    "answered_at": "2026-11-24T10:00:02.000000Z",
}
_USE = {"keyid": "0" * 16, "last": "c" * 64, "retired": False}


def _fields(**changes: Any) -> dict[str, Any]:
    return {
        "request_id": "e7a5e000-0000-4000-8000-000000000001",
        "publisher": "billing",
        "request": "ab" * 32,
        "reason": "the end",
        "generation": 5,
        "keys": [_FIRST, _SECOND],
        "proven_by": "d" * 64,
        "not_shown": ["That nobody kept a copy."],
        "version": "1.0.0",
        "event_keys": [],
        "previous": "d" * 64,
        **changes,
    }


def _statement(**changes: Any) -> Statement:
    return Statement("default", "acme", ErasurePredicate.model_validate(_fields(**changes)))


def _erased(chain: list[bytes], **changes: Any) -> bytes:
    """The next file of a chain, which rests on its last proof."""
    files = [parse(each) for each in chain]
    proofs = [each.digest for each in files if not isinstance(each.predicate, ErasurePredicate)]
    previous = files[-1] if files else None
    uses = keys_before(previous, FIRST_KEY.id, frozenset({FIRST_KEY.id}))
    defaults: dict[str, Any] = {
        "request_id": f"e7a5e000-0000-4000-8000-{len(chain) + 1:012}",
        "proven_by": proofs[-1] if proofs else None,
        "previous": previous and previous.digest,
        "event_keys": [use.model_dump() for use in uses],
    }
    return sign(_statement(**{**defaults, **changes}), FIRST_KEY)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keys": [_FIRST], "proven_by": None, "previous": None},
        {"keys": [{**_FIRST, "answer": "pending_deletion"}], "event_keys": [_USE]},
    ],
)
def test_a_payload_reads_back(changes: dict[str, Any]) -> None:
    made = _statement(**changes)
    assert Statement.from_payload(made.to_payload()) == made


def test_the_subject_has_every_secret_that_nobody_gets() -> None:
    made = _statement()
    payload = json.loads(made.to_payload())
    state = b'{"erased":["5f0c1a7be2d94386","9f0c1a7be2d94386"],"generation":5}'
    assert payload["predicateType"] == "urn:keyturn:evidence:erasure:v1"
    assert payload["subject"] == [
        {"name": "default/acme", "digest": {"sha256": hashlib.sha256(state).hexdigest()}}
    ]
    assert made.predicate.at == _SECOND["answered_at"]
    with pytest.raises(TypeError):
        made.proof  # noqa: B018  # it is no proof


@pytest.mark.parametrize("missing", _fields())
def test_every_field_is_required(missing: str) -> None:
    fields = _fields()
    del fields[missing]
    with pytest.raises(ValidationError):
        ErasurePredicate.model_validate(fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"request_id": "A" * 36},
        {"publisher": "Billing"},
        {"request": "AB" * 32},
        {"reason": ""},
        {"reason": "two\nlines"},
        {"generation": 0},
        {"keys": []},
        {"keys": [_SECOND, _FIRST]},
        {"keys": [_FIRST, _FIRST]},
        {"keys": [{**_FIRST, "answer": "given"}]},
        {"keys": [{**_FIRST, "answer": "undecided"}]},
        {"keys": [{**_FIRST, "answered_at": "yesterday"}]},
        {"keys": [{**_FIRST, "generations": []}]},
        {"keys": [{**_FIRST, "wrapped": ""}]},
        {"keys": [{**_FIRST, "secret_id": "5F0C1A7BE2D94386"}]},
        {"proven_by": "d" * 63},
        {"previous": 7},
        {"event_keys": [_USE, _USE]},
        {"version": "one two"},
    ],
    ids=repr,
)
def test_malformed_fields_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ErasurePredicate.model_validate(_fields(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"predicateType": "urn:keyturn:evidence:rotation:v1"},
        {"predicateType": "urn:keyturn:evidence:erasure:v2"},
        {"predicateType": None},
        {"subject": [{"name": "default/acme", "digest": {"sha256": "0" * 64}}]},
    ],
    ids=repr,
)
def test_other_statements_are_refused(changes: dict[str, Any]) -> None:
    document = json.loads(_statement().to_payload()) | changes
    with pytest.raises(MalformedEvidenceError):
        Statement.from_payload(json.dumps(document).encode())


@pytest.mark.parametrize("proofs", [0, 1, 3])
def test_erasures_follow_the_last_proof_of_a_chain(proofs: int) -> None:
    chain = chain_of(*[FIRST_KEY] * proofs)
    chain.append(_erased(chain))
    chain.append(_erased(chain, keys=[{**_FIRST, "answer": "missing"}]))
    verified = verify_chain(chain, PUBLIC_KEYS, deployment="default", project="acme")
    assert [each.envelope for each in verified] == chain


def test_an_erasure_rests_on_the_last_proof_and_no_other() -> None:
    chain = chain_of(FIRST_KEY, FIRST_KEY)
    for proven_by in (None, parse(chain[0]).digest, "0" * 64):
        _refused([*chain, _erased(chain, proven_by=proven_by)], 2, "proven_by")
    _refused([_erased([], proven_by="0" * 64)], 0, "proven_by")
    erased = [*chain, _erased(chain)]
    again = _erased(erased, proven_by=parse(erased[-1]).digest)
    _refused([*erased, again], 3, "proven_by")


def test_no_rotation_follows_an_erasure() -> None:
    chain = chain_of(FIRST_KEY)
    chain.append(_erased(chain))
    chain.append(follow(chain, generation=6))
    _refused(chain, 2, "after the erasure")


def test_an_erasure_at_a_lower_generation_is_refused() -> None:
    chain = chain_of(FIRST_KEY, generation=3)
    _refused([*chain, _erased(chain, generation=2)], 1, "generation")


def _refused(files: list[bytes], index: int, problem: str) -> None:
    with pytest.raises(EvidenceError, match=problem) as caught:
        verify_chain(files, PUBLIC_KEYS)
    assert type(caught.value) is MalformedEvidenceError
    assert caught.value.index == index
