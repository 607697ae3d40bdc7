"""The keyring's record: what was written is read; what was forged or moved is refused (SPEC 5)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import Secret, from_base64, record_kek, seal_record, to_base64
from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.keyring import (
    forbid_plaintext,
    retire_old_keys,
    rotate,
    rotations_to_prove,
    with_evidence,
    with_lease,
    with_master_key,
)
from keyturn_workers.core.keyring_requests import has_origin, is_same_request
from keyturn_workers.keys.master_keys.record_format import UnknownRecordError
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, generation, keyring, rotated
from tools.harness.local_keys import build_keyring, parse_keyring, parse_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.core.keyring import Keyring

_BEFORE = replace(keyring(), lease_s=20, origin=RequestOrigin("one", "1" * 64), evidence="e" * 64)
_ID = "2f6c9a0e-1111-4111-8111-111111111111"
_LATER = RequestOrigin("two", "2" * 64)


def _sealed(payload: dict[str, object], project: str = "acme") -> bytes:
    kek = record_kek(MASTER_KEYS["m1"].reveal(), project)
    sealed = seal_record(kek, keyring_s3_key(project), json.dumps(payload).encode())
    record = {"v": 1, "project": project, "master_key": "m1", "sealed": to_base64(sealed)}
    return json.dumps(record).encode()


def _payload(ring: Keyring) -> dict[str, object]:
    current, origin = ring.current, ring.origin
    assert current.kek is not None
    assert origin is not None
    return {
        "generation": current.generation,
        "kek_id": current.kek_id,
        "kek": to_base64(current.kek.reveal()),
        "rotation_id": current.rotation_id,
        "requested_at": current.requested_at,
        "at": current.at,
        "plaintext": "forbidden",
        "history": [],
        "lease_s": ring.lease_s,
        "publisher": origin.publisher,
        "request": origin.request,
    }


@given(st.integers(0, 4), st.booleans(), st.sampled_from(["m1", "m2"]))
def test_a_keyring_round_trips(turns: int, plaintext: bool, master: str) -> None:
    ring = keyring(master_key=master, plaintext=plaintext)
    for _ in range(turns):
        ring = rotated(ring)
    assert parse_keyring(build_keyring(ring, MASTER_KEYS), "acme", MASTER_KEYS) == ring


def test_origin_lease_evidence_serial_and_recovery_round_trip() -> None:
    origin, request_id = RequestOrigin("billing", "a" * 64), "2f6c9a0e-1111-4111-8111-111111111111"
    ring = replace(keyring(), origin=origin, lease_s=30, evidence="b" * 64, serial=7)
    for each in (ring, replace(ring, recovery=request_id)):
        assert parse_keyring(build_keyring(each, MASTER_KEYS), "acme", MASTER_KEYS) == each


def test_another_implementation_need_not_write_origin_and_lease() -> None:
    payload = _payload(keyring())
    for field in ("lease_s", "publisher", "request"):
        del payload[field]
    ring = parse_keyring(_sealed(payload), "acme", MASTER_KEYS)
    assert (ring.origin, ring.lease_s) == (None, 0)
    for each in (ring, with_lease(ring, 15)):
        assert parse_keyring(build_keyring(each, MASTER_KEYS), "acme", MASTER_KEYS) == each


@pytest.mark.parametrize("field", ["publisher", "request"])
def test_half_an_origin_is_refused(field: str) -> None:
    payload = _payload(keyring())
    del payload[field]
    with pytest.raises(CorruptObjectError):
        parse_keyring(_sealed(payload), "acme", MASTER_KEYS)


@pytest.mark.parametrize(
    "more",
    [
        {"serial": -1},
        {"serial": 2**63},
        {"serial": 1.0},
        {"serial": True},
        {"serial": "1"},
        {"serial": None},
        {"recovery": ""},
        {"recovery": "restored"},
        {"recovery": 7},
    ],
)
def test_odd_serials_and_recoveries_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(CorruptObjectError):
        parse_keyring(_sealed(_payload(keyring()) | more), "acme", MASTER_KEYS)


def test_a_history_entry_has_the_fields_of_the_specification_alone() -> None:
    """One of another implementation may name no request: it stays as it is, and readable."""
    ring = rotated(keyring())
    names = ["generation", "kek_id", "kek", "rotation_id", "requested_at", "at"]
    for origin, more in ((ring.origin, ["publisher", "request"]), (None, [])):
        earlier = replace(ring.history[0], origin=origin)
        body = build_keyring(replace(ring, history=(earlier,)), MASTER_KEYS)
        _, rest = parse_record(body, keyring_s3_key("acme"), "acme", MASTER_KEYS)
        (entry,) = rest["history"]
        assert sorted(entry) == sorted([*names, *more])
        assert parse_keyring(body, "acme", MASTER_KEYS).history == (earlier,)


@pytest.mark.parametrize(
    "more",
    [{"publisher": "api"}, {"publisher": "API", "request": "0" * 64}, {"publisher": None}]
    + [{"publisher": "api", "request": request} for request in ("0" * 63, None, 1)],
    ids=str,
)
def test_a_history_entry_with_an_odd_request_is_refused(more: dict[str, object]) -> None:
    ring = rotated(keyring())
    body = build_keyring(ring, MASTER_KEYS)
    _, rest = parse_record(body, keyring_s3_key("acme"), "acme", MASTER_KEYS)
    (entry,) = rest["history"]
    del entry["publisher"], entry["request"]
    assert parse_keyring(_sealed(rest), "acme", MASTER_KEYS).current == ring.current
    entry.update(more)
    with pytest.raises(CorruptObjectError):
        parse_keyring(_sealed(rest), "acme", MASTER_KEYS)


def test_a_cleared_kek_of_the_history_round_trips() -> None:
    first = keyring()
    ring = replace(rotated(first), history=(replace(first.current, kek=None),))
    parsed = parse_keyring(build_keyring(ring, MASTER_KEYS), "acme", MASTER_KEYS)
    assert parsed.history[0].kek is None
    assert parsed.enrollment == ring.history[0]


def test_the_record_shows_no_key() -> None:
    ring = keyring()
    assert ring.current.kek is not None
    body = build_keyring(ring, MASTER_KEYS)
    assert to_base64(ring.current.kek.reveal()).encode() not in body
    assert ring.current.kek.reveal().hex() not in repr(ring)
    assert ring.current.kek_id.encode() not in body


def test_a_record_of_another_project_does_not_open() -> None:
    moved = json.loads(build_keyring(keyring("other"), MASTER_KEYS))
    with pytest.raises(CorruptObjectError):
        parse_keyring(json.dumps(moved).encode(), "acme", MASTER_KEYS)
    moved["project"] = "acme"
    with pytest.raises(CorruptObjectError):
        parse_keyring(json.dumps(moved).encode(), "acme", MASTER_KEYS)


def test_a_record_under_another_master_key_does_not_open() -> None:
    forged = build_keyring(keyring(), {"m1": Secret(bytes(32))})
    with pytest.raises(CorruptObjectError):
        parse_keyring(forged, "acme", MASTER_KEYS)


def test_an_unavailable_master_key_is_no_forgery() -> None:
    body = build_keyring(keyring(master_key="m2"), MASTER_KEYS)
    with pytest.raises(UnknownMasterKeyError) as raised:
        parse_keyring(body, "acme", {"m1": MASTER_KEYS["m1"]})
    assert raised.value.transient


@given(st.data())
def test_any_flipped_bit_of_the_sealed_part_is_refused(data: st.DataObject) -> None:
    record = json.loads(build_keyring(keyring(), MASTER_KEYS))
    sealed = bytearray(from_base64(record["sealed"]))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    record["sealed"] = to_base64(bytes(sealed))
    with pytest.raises(CorruptObjectError):
        parse_keyring(json.dumps(record).encode(), "acme", MASTER_KEYS)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 0},
        {"v": "1"},
        {"v": True},
        {"project": 5},
        {"master_key": "../m1"},
        {"master_key": 1},
        {"sealed": "***"},
        {"sealed": None},
        {"more": 1},
    ],
    ids=repr,
)
def test_a_malformed_record_is_refused(change: dict[str, object]) -> None:
    record = json.loads(build_keyring(keyring(), MASTER_KEYS)) | change
    with pytest.raises(CorruptObjectError):
        parse_keyring(json.dumps(record).encode(), "acme", MASTER_KEYS)


def test_a_record_of_a_later_release_is_neither_read_nor_called_corrupt() -> None:
    record = json.loads(build_keyring(keyring(), MASTER_KEYS)) | {"v": 3, "more": 1}
    with pytest.raises(UnknownRecordError, match="upgrade this process"):
        parse_keyring(json.dumps(record).encode(), "acme", MASTER_KEYS)


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 0},
        {"generation": "1"},
        {"generation": True},
        {"kek": None},
        {"kek": to_base64(bytes(31))},
        {"kek_id": "0" * 16},
        {"rotation_id": "x"},
        {"plaintext": "maybe"},
        {"history": [{}]},
        {"requested_at": "yesterday"},
        {"lease_s": 0},
        {"lease_s": "15"},
        {"lease_s": True},
        {"publisher": "Not a name"},
        {"request": "a" * 63},
        {"evidence": 7},
    ],
    ids=repr,
)
def test_a_malformed_sealed_part_is_refused(change: dict[str, object]) -> None:
    payload = _payload(keyring())
    assert parse_keyring(_sealed(payload), "acme", MASTER_KEYS).current.generation == 1
    with pytest.raises(CorruptObjectError):
        parse_keyring(_sealed(payload | change), "acme", MASTER_KEYS)


def test_generations_never_go_back() -> None:
    ring = replace(keyring(), history=(generation(2),))
    with pytest.raises(CorruptObjectError):
        parse_keyring(build_keyring(ring, MASTER_KEYS), "acme", MASTER_KEYS)


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        parse_keyring(garbage, "acme", MASTER_KEYS)


def _turned(before: Keyring) -> Keyring:
    kek = Secret(os.urandom(32))
    return rotate(before, kek=kek, rotation_id=_ID, requested_at=AT, at=AT, origin=_LATER)


def test_a_rotation_records_its_request_and_keeps_the_one_before() -> None:
    after = _turned(_BEFORE)
    assert after.origin == _LATER
    assert (after.lease_s, after.evidence) == (20, "e" * 64)
    assert after.history == (replace(_BEFORE.current, origin=_BEFORE.origin),)
    assert [after.origin_of(each) for each in (after.current, *after.history)] == [
        _LATER,
        _BEFORE.origin,
    ]


def test_a_generation_is_of_the_request_that_created_it() -> None:
    after, first = _turned(_BEFORE), _BEFORE.origin
    (earlier,) = after.history
    assert first is not None
    assert has_origin(after, after.current, _LATER)
    assert has_origin(after, earlier, first)
    assert not has_origin(after, after.current, RequestOrigin("two", "3" * 64))
    assert not has_origin(after, after.current, RequestOrigin("one", "2" * 64))
    assert not has_origin(after, earlier, _LATER)
    # As another implementation may write it.
    assert not has_origin(after, replace(earlier, origin=None), first)


@pytest.mark.parametrize(
    ("publisher", "is_known", "has_kek"),
    [("one", True, True), ("two", True, False), (None, True, True), ("one", False, False)],
)
def test_the_request_of_an_earlier_generation_is_known_by_its_publisher_and_kek(
    publisher: str | None, *, is_known: bool, has_kek: bool
) -> None:
    """Where no publisher is named, only the KEK decides."""
    after = _turned(_BEFORE)
    kek = after.history[0].kek if is_known else Secret(os.urandom(32))
    assert kek is not None
    created_by = None if publisher is None else RequestOrigin(publisher, "1" * 64)
    entry = replace(after.history[0], origin=created_by)
    repeated = RequestOrigin("one", "9" * 64)
    assert is_same_request(after, entry, kek=kek, origin=repeated) is has_kek


def test_the_rotations_to_prove_are_those_whose_earlier_key_is_kept() -> None:
    first = _turned(_BEFORE)
    second = _turned(first)
    assert rotations_to_prove(_BEFORE) == ()
    assert rotations_to_prove(first) == (first.current,)
    assert rotations_to_prove(second) == (second.history[1], second.current)
    cleared = retire_old_keys(first)
    assert rotations_to_prove(cleared) == ()
    later = _turned(cleared)
    assert rotations_to_prove(later) == (later.current,)


@pytest.mark.parametrize(
    "changed",
    [
        lambda ring: with_master_key(ring, "m2"),
        forbid_plaintext,
        retire_old_keys,
        lambda ring: with_lease(ring, 15),
    ],
    ids=["resealed", "forbidden_plaintext", "settled", "leased"],
)
def test_every_other_change_keeps_lease_origin_and_evidence(
    changed: Callable[[Keyring], Keyring],
) -> None:
    after = changed(_BEFORE)
    assert (after.lease_s, after.origin, after.evidence) == (20, _BEFORE.origin, "e" * 64)


def test_evidence_follows_the_end_of_a_sweep() -> None:
    after = with_evidence(_BEFORE, "f" * 64)
    assert after == replace(_BEFORE, evidence="f" * 64)
