"""Which wraps verify as an upload's own, in which state of the keyring (SPEC 5.4, 7.1, 8.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, new_dek, seal
from keyturn.errors import CorruptObjectError, KeyringRolledBackError
from keyturn_workers.objects.wraps import Verification, verify_upload, wrap
from tests.unit.keyturn_workers.factories import (
    ADMIN_KEKS,
    MASTER_KEYS,
    keyring,
    rotated,
    sealed_object,
)
from tools.harness.local_keys import desired_state

if TYPE_CHECKING:
    from keyturn.metadata import Wraps
    from keyturn_workers.keyring import Keyring

KEY = "reports/q3.pdf"
RING = keyring()
NOW = desired_state(RING, MASTER_KEYS)
LATER_RING = rotated(RING)
LATER = desired_state(LATER_RING, MASTER_KEYS)
OTHER_MASTER = replace(RING, master_key="m2")


def _verified(wraps: Wraps, body: bytes, ring: Keyring = RING) -> Verification:
    return verify_upload(wraps, body[:HEADER_BYTES], KEY, ring, ADMIN_KEKS)


def test_an_object_in_the_desired_state_is_current() -> None:
    assert _verified(*sealed_object(NOW, KEY)).current


@pytest.mark.parametrize("ring", [LATER_RING, OTHER_MASTER], ids=["user key", "master key"])
def test_an_object_of_an_earlier_state_keeps_its_dek(ring: Keyring) -> None:
    wraps, body = sealed_object(NOW, KEY)
    verified = _verified(wraps, body, ring)
    assert not verified.current
    again = _verified(wrap(desired_state(ring, MASTER_KEYS), KEY, verified.dek), body, ring)
    assert again.current
    assert again.dek == verified.dek


@pytest.mark.parametrize(
    "change",
    [
        {"generation": 7},
        {"kek_id": "0" * 16},
        {"master_key": "m2"},
        {"master_key": "gone"},
        {"unknown_names": ("enc-dek-user-1",)},
    ],
    ids=repr,
)
def test_wrong_labels_and_unknown_names_are_rewritten(change: dict[str, object]) -> None:
    wraps, body = sealed_object(NOW, KEY)
    assert not _verified(replace(wraps, **change), body).current  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [1, 2, 9])
@pytest.mark.parametrize("broken", ["user", "admin"])
@pytest.mark.parametrize("ring", [RING, LATER_RING], ids=["same", "rotated since"])
def test_an_own_object_needs_both_wraps(ring: Keyring, broken: str, label: int) -> None:
    """An upload's id is not authenticated: less than both wraps would let a forgery pass.

    A label that names a generation without a KEK must not excuse the user wrap.
    """
    wraps, body = sealed_object(NOW, KEY)
    forged = replace(wraps, generation=label, **{broken: bytes(104)})  # type: ignore[arg-type]
    with pytest.raises(CorruptObjectError):
        _verified(forged, body, ring)


def test_wraps_moved_from_another_key_do_not_open() -> None:
    with pytest.raises(CorruptObjectError):
        _verified(*sealed_object(NOW, "another/key"))


@pytest.mark.parametrize("ring", [RING, LATER_RING], ids=["same", "rotated since"])
def test_wraps_of_two_deks_are_left_alone(ring: Keyring) -> None:
    wraps, body = sealed_object(NOW, KEY)
    other, _ = sealed_object(NOW, KEY)
    with pytest.raises(CorruptObjectError):
        _verified(replace(wraps, user=other.user), body, ring)


def test_a_dek_that_the_header_does_not_commit_to_is_refused() -> None:
    wraps, _ = sealed_object(NOW, KEY)
    other_body = seal(new_dek(), BODY_CONTEXT, b"hello")
    with pytest.raises(CorruptObjectError):
        _verified(wraps, other_body)
    with pytest.raises(CorruptObjectError):
        _verified(wraps, b"short")


def test_an_admin_wrap_ahead_of_the_keyring_is_a_rollback() -> None:
    wraps, body = sealed_object(LATER, KEY)
    with pytest.raises(KeyringRolledBackError):
        _verified(wraps, body)


def test_an_own_object_whose_old_kek_was_cleared_verifies_by_the_admin_wrap() -> None:
    ring = replace(LATER_RING, history=(replace(RING.current, kek=None),))
    assert not _verified(*sealed_object(NOW, KEY), ring).current
