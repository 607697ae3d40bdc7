"""What one key opens of one object: never by its labels, and never without its header."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import HEADER_BYTES, Secret, admin_kek, new_dek
from keyturn.metadata import V0_ALGORITHM
from keyturn_workers.objects.wrap import wrap
from keyturn_workers.verify import ObjectCheck, VerificationKeys, check_object
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
    v0_metadata,
)
from tools.harness.local_keys import desired_state

if TYPE_CHECKING:
    from keyturn_workers.keyring import Keyring

FIRST = keyring()
SECOND = rotated(FIRST)
OTHER = keyring("other")


def _user(ring: Keyring) -> VerificationKeys:
    kek = ring.current.kek
    assert kek is not None
    return VerificationKeys(ring.project, "user", {"": kek})


def _admin(*master_keys: str, project: str = "acme") -> VerificationKeys:
    keks = {name: admin_kek(MASTER_KEYS[name].reveal(), project) for name in master_keys}
    return VerificationKeys(project, "admin", keks)


def _object(ring: Keyring, key: str = "k", **labels: Any) -> tuple[dict[str, str], bytes]:
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
    return enc(replace(wraps, **labels)), body[:HEADER_BYTES]


def _state(check: ObjectCheck) -> tuple[str, str, str | None]:
    return check.kind, check.state, check.code


@pytest.mark.parametrize("keys", [_user(SECOND), _admin("m1"), _admin("m2", "m1")])
def test_an_object_opens_under_the_users_and_under_the_operators_key(
    keys: VerificationKeys,
) -> None:
    assert check_object(*_object(SECOND), "k", keys) == ObjectCheck("encrypted", "opened")


@pytest.mark.parametrize(
    "keys",
    [
        _user(FIRST),
        replace(_user(SECOND), project="other"),
        replace(_user(SECOND), role="admin"),
        _admin("m2"),
        _admin("m1", project="other"),
        VerificationKeys("acme", "user", {"": Secret(bytes(32))}),
    ],
    ids=["old", "other project", "wrong role", "other master key", "other admin KEK", "random"],
)
def test_another_key_opens_nothing(keys: VerificationKeys) -> None:
    check = check_object(*_object(SECOND), "k", keys)
    assert _state(check) == ("encrypted", "closed", "no_usable_wrap")


def test_an_object_moved_to_another_key_does_not_open() -> None:
    check = check_object(*_object(SECOND, "k"), "moved", _user(SECOND))
    assert _state(check) == ("encrypted", "closed", "no_usable_wrap")


@pytest.mark.parametrize("keys", [_user(FIRST), _admin("m1")], ids=["user", "admin"])
def test_a_wrong_label_does_not_hide_that_a_key_opens_a_wrap(keys: VerificationKeys) -> None:
    """An old wrap that a bucket writer labels with the new generation."""
    metadata, header = _object(FIRST, generation=2, kek_id=SECOND.current.kek_id)
    check = check_object(metadata, header, "k", keys)
    assert _state(check) == ("encrypted", "failed", "no_usable_wrap")
    assert check.detail == "it opens at generation 1, but its label says 2"


def test_the_label_of_the_master_key_is_a_hint() -> None:
    check = check_object(*_object(SECOND, master_key="m9"), "k", _admin("m2", "m1"))
    assert check.state == "opened"


@pytest.mark.parametrize("cut", [0, HEADER_BYTES - 1])
def test_a_header_that_is_cut_is_corrupt(cut: int) -> None:
    metadata, header = _object(SECOND)
    check = check_object(metadata, header[:cut], "k", _user(SECOND))
    assert _state(check) == ("encrypted", "failed", "corrupt_object")


@pytest.mark.parametrize("position", [0, HEADER_BYTES - 1], ids=["salt", "commitment"])
def test_a_header_of_another_body_is_corrupt(position: int) -> None:
    metadata, header = _object(SECOND)
    flipped = bytearray(header)
    flipped[position] ^= 1
    check = check_object(metadata, bytes(flipped), "k", _user(SECOND))
    assert _state(check) == ("encrypted", "failed", "corrupt_object")
    assert "does not commit" in check.detail


def test_a_flipped_wrap_does_not_open() -> None:
    metadata, header = _object(SECOND)
    wraps, _ = sealed_object(desired_state(SECOND, MASTER_KEYS), "k")
    flipped = bytes([*wraps.user[:-1], wraps.user[-1] ^ 1])
    metadata |= {"enc-dek-user": enc(replace(wraps, user=flipped))["enc-dek-user"]}
    assert check_object(metadata, header, "k", _user(SECOND)).state == "closed"
    assert check_object(metadata, header, "k", _admin("m1")).state == "opened"


def test_an_archived_body_leaves_the_header_unchecked() -> None:
    metadata, _ = _object(SECOND)
    check = check_object(metadata, None, "k", _user(SECOND))
    assert _state(check) == ("encrypted", "failed", "archived_object")
    assert check_object(metadata, None, "k", _user(FIRST)).state == "closed"


def test_a_v0_body_under_current_wraps_opens_and_is_not_compared() -> None:
    wraps = wrap(desired_state(SECOND, MASTER_KEYS), "k", new_dek(), algorithm=V0_ALGORITHM)
    check = check_object(enc(wraps), bytes(HEADER_BYTES), "k", _user(SECOND))
    assert _state(check) == ("v0", "opened", None)
    assert "not compared" in check.detail


def test_v0_wraps_are_never_called_closed() -> None:
    """They are under keys of the earlier system, which this command does not have."""
    metadata = v0_metadata(new_dek(), new_dek())
    check = check_object(metadata, bytes(HEADER_BYTES), "k", _user(SECOND))
    assert _state(check) == ("v0", "failed", "no_usable_wrap")


def test_a_tombstone_opens_under_the_operators_key_alone() -> None:
    metadata = deleted(desired_state(SECOND, MASTER_KEYS), "k")
    assert _state(check_object(metadata, b"", "k", _admin("m2", "m1"))) == (
        "tombstone", "opened", None)  # fmt: skip
    assert _state(check_object(metadata, b"", "k", _admin("m2"))) == (
        "tombstone", "closed", "no_usable_wrap")  # fmt: skip
    assert _state(check_object(metadata, b"", "moved", _admin("m1"))) == (
        "tombstone", "closed", "no_usable_wrap")  # fmt: skip
    assert _state(check_object(metadata, b"", "k", _user(SECOND))) == (
        "tombstone", "unchecked", None)  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ("plaintext", "unchecked", None)),
        ({"author": "kim", "enc-upload": "x"}, ("plaintext", "unchecked", None)),
        ({"enc-dek-user": "x"}, ("unreadable", "failed", "corrupt_object")),
        ({"enc-algo": "Cobblestone-256"}, ("unreadable", "failed", "corrupt_object")),
        ({"enc-algo": "ROT13"}, ("unreadable", "failed", "unknown_algorithm")),
    ],
)
def test_what_has_no_readable_wrap(
    metadata: dict[str, str], expected: tuple[str, str, str | None]
) -> None:
    assert _state(check_object(metadata, b"", "k", _user(SECOND))) == expected


@pytest.mark.parametrize("object_key", ["folder/", "a//b", "..", "x" * 901, "\ud800"])
def test_a_foreign_name_is_only_counted_unless_it_has_an_envelope(object_key: str) -> None:
    plain = check_object({"author": "kim"}, b"", object_key, _user(SECOND))
    assert _state(plain) == ("foreign", "unchecked", None)
    sealed = check_object(*_object(SECOND), object_key, _user(SECOND))
    assert _state(sealed) == ("foreign", "failed", "foreign_object")
