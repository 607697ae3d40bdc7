"""Which wraps verify, in which state of the keyring (SPEC 5.4, 7.1, 8.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, new_dek, seal
from keyturn.errors import CorruptObjectError, KeyringRolledBackError, NoUsableWrapError
from keyturn_workers.objects.verify import Verification, verify, verify_upload
from keyturn_workers.objects.wrap import wrap
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
    from keyturn_workers.keyring import DesiredState, Keyring

KEY = "reports/q3.pdf"
RING = keyring()
NOW = desired_state(RING, MASTER_KEYS)
LATER_RING = rotated(RING)
LATER = desired_state(LATER_RING, MASTER_KEYS)
OTHER_MASTER = desired_state(replace(RING, master_key="m2"), MASTER_KEYS)


def _examined(wraps: Wraps, body: bytes, desired: DesiredState = NOW) -> Verification:
    return verify(wraps, body[:HEADER_BYTES], KEY, desired, ADMIN_KEKS)


def test_an_object_in_the_desired_state_is_current() -> None:
    assert _examined(*sealed_object(NOW, KEY)).current


@pytest.mark.parametrize("desired", [LATER, OTHER_MASTER], ids=["user key", "master key"])
def test_an_object_of_an_earlier_state_keeps_its_dek(desired: DesiredState) -> None:
    wraps, body = sealed_object(NOW, KEY)
    examined = _examined(wraps, body, desired)
    assert not examined.current
    again = _examined(wrap(desired, KEY, examined.dek), body, desired)
    assert again.current
    assert again.dek == examined.dek


@pytest.mark.parametrize(
    "change",
    [{"generation": 7}, {"kek_id": "0" * 16}, {"master_key": "m2"}, {"master_key": "gone"}],
    ids=repr,
)
def test_wrong_labels_are_rewritten_not_believed(change: dict[str, object]) -> None:
    wraps, body = sealed_object(NOW, KEY)
    assert not _examined(replace(wraps, **change), body).current  # type: ignore[arg-type]


@pytest.mark.parametrize("lost", ["user", "admin"])
def test_a_wrap_that_does_not_open_is_renewed_from_the_other(lost: str) -> None:
    wraps, body = sealed_object(NOW, KEY)
    broken = replace(wraps, **{lost: bytes(104)})  # type: ignore[arg-type]
    assert not _examined(broken, body).current


def test_an_object_without_a_usable_wrap_is_refused() -> None:
    wraps, body = sealed_object(desired_state(keyring(), MASTER_KEYS), KEY)
    stranger = replace(wraps, admin=bytes(104))
    with pytest.raises(NoUsableWrapError):
        _examined(stranger, body)


def test_wraps_moved_from_another_key_do_not_open() -> None:
    wraps, body = sealed_object(NOW, "another/key")
    with pytest.raises(NoUsableWrapError):
        _examined(wraps, body)


def test_wraps_of_two_deks_are_left_alone() -> None:
    wraps, body = sealed_object(NOW, KEY)
    other, _ = sealed_object(NOW, KEY)
    with pytest.raises(CorruptObjectError):
        _examined(replace(wraps, user=other.user), body)


def test_a_dek_that_the_header_does_not_commit_to_is_refused() -> None:
    wraps, _ = sealed_object(NOW, KEY)
    other_body = seal(new_dek(), BODY_CONTEXT, b"hello")
    with pytest.raises(CorruptObjectError):
        _examined(wraps, other_body)
    with pytest.raises(CorruptObjectError):
        _examined(wraps, b"short")


def test_an_admin_wrap_ahead_of_the_keyring_is_a_rollback() -> None:
    wraps, body = sealed_object(LATER, KEY)
    with pytest.raises(KeyringRolledBackError):
        _examined(wraps, body)


def test_a_label_ahead_of_the_keyring_is_no_rollback() -> None:
    wraps, body = sealed_object(NOW, KEY)
    assert not _examined(replace(wraps, generation=9), body).current


@pytest.mark.parametrize("ring", [RING, LATER_RING], ids=["same", "turned since"])
def test_an_own_object_verifies(ring: Keyring) -> None:
    wraps, body = sealed_object(NOW, KEY)
    verified = verify_upload(wraps, body[:HEADER_BYTES], KEY, ring, ADMIN_KEKS)
    assert verified.current is (ring is RING)


@pytest.mark.parametrize("broken", ["user", "admin"])
def test_an_own_object_needs_both_wraps(broken: str) -> None:
    """An upload's id is not authenticated: less than both wraps would let a forgery pass."""
    wraps, body = sealed_object(NOW, KEY)
    forged = replace(wraps, **{broken: bytes(104)})  # type: ignore[arg-type]
    with pytest.raises(CorruptObjectError):
        verify_upload(forged, body[:HEADER_BYTES], KEY, RING, ADMIN_KEKS)


def test_an_own_object_whose_old_kek_was_cleared_verifies_by_the_admin_wrap() -> None:
    wraps, body = sealed_object(NOW, KEY)
    ring = replace(LATER_RING, history=(replace(RING.current, kek=None),))
    assert not verify_upload(wraps, body[:HEADER_BYTES], KEY, ring, ADMIN_KEKS).current
