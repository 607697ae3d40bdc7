"""Changes of a keyring keep everything else (SPEC 5.2, 8.1)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import Secret
from keyturn.messages import RequestOrigin
from keyturn_workers.keyring import (
    forbid_plaintext,
    is_same_request,
    retire_old_keys,
    rotate,
    rotations_to_prove,
    with_evidence,
    with_master_key,
)
from keyturn_workers.keyring.model import has_origin, with_lease
from tests.unit.keyturn_workers.factories import AT, keyring

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.keyring.model import Keyring

_BEFORE = replace(keyring(), lease_s=20, origin=RequestOrigin("one", "1" * 64), evidence="e" * 64)
_ID = "2f6c9a0e-1111-4111-8111-111111111111"
_LATER = RequestOrigin("two", "2" * 64)


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
    # As 0.10 wrote it.
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
