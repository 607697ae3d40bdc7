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
    retire_old_keys,
    rotate,
    with_evidence,
    with_master_key,
)
from keyturn_workers.keyring.transitions import has_origin, with_lease
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


def test_a_rotation_records_its_request() -> None:
    after = _turned(_BEFORE)
    assert after.origin == _LATER
    assert (after.lease_s, after.evidence) == (20, "e" * 64)


def test_only_the_current_generation_has_an_origin() -> None:
    after = _turned(_BEFORE)
    assert has_origin(after, after.current, _LATER)
    assert not has_origin(after, after.current, RequestOrigin("two", "3" * 64))
    assert not has_origin(after, after.current, RequestOrigin("one", "2" * 64))
    assert not has_origin(after, after.history[0], _LATER)
    assert not has_origin(keyring(), keyring().current, _LATER)


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
