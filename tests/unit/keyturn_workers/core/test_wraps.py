"""A DEK under both desired KEKs: what opens it, whatever labels say (SPEC 4.3, 7.1, 8)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SealError,
    Secret,
    new_dek,
    seal,
    seal_tombstone,
    unwrap_dek,
)
from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    KmsUnavailableError,
    NoUsableWrapError,
    UnknownAlgorithmError,
)
from keyturn.metadata import COBBLESTONE, Tombstone, parse
from keyturn_workers.core.customer_keys import NO_SECRETS
from keyturn_workers.core.wraps import (
    KeyUsage,
    OpenedWrap,
    Verification,
    build_object_metadata,
    build_tombstone_metadata,
    find_key_usage,
    is_current,
    open_admin_wrap,
    open_user_wrap,
    open_user_wrap_with_earlier_kek,
    past_generations,
    select_dek,
    try_tombstone,
    try_wrap,
    verify_upload,
    wrap,
)
from tests.unit.keyturn_workers.factories import (
    ADMIN_KEKS,
    AT,
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tools.harness.local_keys import admin_keks, desired_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.crypto import Role
    from keyturn.metadata import Wraps
    from keyturn_workers.core.admin_keks import AdminKeks
    from keyturn_workers.core.keyring import Keyring

KEY: Final = "reports/q3.pdf"
KEYS: Final = admin_keks("acme", MASTER_KEYS)
FIRST: Final = keyring()
SECOND: Final = rotated(FIRST)
THIRD: Final = rotated(SECOND)
OTHER_MASTER: Final = replace(FIRST, master_key="m2")
DEK: Final = new_dek()
DESIRED: Final = desired_state(FIRST, MASTER_KEYS)
DESIRED_2: Final = desired_state(SECOND, MASTER_KEYS)
DESIRED_3: Final = desired_state(THIRD, MASTER_KEYS)
WRAPS: Final = wrap(DESIRED, KEY, DEK)
WRAPS_2: Final = wrap(DESIRED_2, KEY, DEK)
UNDER_M2: Final = wrap(desired_state(OTHER_MASTER, MASTER_KEYS), KEY, DEK)
STORED_AT: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
UPLOAD_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
ROLES: Final = pytest.mark.parametrize("role", ["user", "admin"])


def test_past_generations_are_the_newest_first() -> None:
    assert list(past_generations(THIRD)) == [2, 1]
    assert list(past_generations(FIRST)) == []


# The admin wrap.


def test_the_admin_wrap_opens_where_the_keyring_points() -> None:
    opened = open_admin_wrap(WRAPS, KEY, DESIRED, KEYS, ())
    assert opened == OpenedWrap(DEK, 1, "m1")


@pytest.mark.parametrize("generation", [1, 2, 3, 9])
def test_a_false_generation_label_makes_no_admin_wrap_unreadable(generation: int) -> None:
    labeled = replace(WRAPS, generation=generation)
    opened = open_admin_wrap(labeled, KEY, DESIRED_3, KEYS, past_generations(THIRD))
    assert opened == OpenedWrap(DEK, 1, "m1")


@pytest.mark.parametrize("label", ["m1", "m2", "gone"])
def test_a_false_master_key_label_makes_no_admin_wrap_unreadable(label: str) -> None:
    opened = open_admin_wrap(replace(UNDER_M2, master_key=label), KEY, DESIRED, KEYS, ())
    assert opened == OpenedWrap(DEK, 1, "m2")


def test_an_admin_wrap_of_another_key_or_project_opens_nowhere() -> None:
    assert open_admin_wrap(WRAPS, "other", DESIRED, KEYS, ()) is None
    other = desired_state(replace(FIRST, project="other"), MASTER_KEYS)
    assert open_admin_wrap(WRAPS, KEY, other, admin_keks("other", MASTER_KEYS), ()) is None


def test_an_admin_wrap_above_the_keyring_is_a_rollback() -> None:
    with pytest.raises(KeyringRolledBackError, match="generation 2, the keyring at 1"):
        open_admin_wrap(WRAPS_2, KEY, DESIRED, KEYS, ())


def test_a_label_above_the_keyring_is_no_rollback() -> None:
    opened = open_admin_wrap(replace(WRAPS, generation=2), KEY, DESIRED, KEYS, ())
    assert opened == OpenedWrap(DEK, 1, "m1")


def test_without_its_label_only_the_keyrings_generations_are_tried() -> None:
    """A wrap above the keyring whose label hides it does not open."""
    hidden = replace(WRAPS_2, generation=1)
    assert open_admin_wrap(hidden, KEY, DESIRED, KEYS, ()) is None


# The user wrap.


def test_the_user_wrap_opens_under_the_desired_kek_alone() -> None:
    """Earlier ones may have leaked."""
    assert open_user_wrap(WRAPS, KEY, DESIRED, (), NO_SECRETS) == OpenedWrap(DEK, 1)
    second = desired_state(SECOND, MASTER_KEYS)
    assert open_user_wrap(WRAPS, KEY, second, past_generations(SECOND), NO_SECRETS) is None


@pytest.mark.parametrize("generation", [1, 5])
def test_the_user_wrap_opens_at_a_past_generation_of_the_desired_kek(generation: int) -> None:
    same_kek = replace(SECOND.current, kek=FIRST.current.kek, kek_id=FIRST.current.kek_id)
    desired = desired_state(replace(SECOND, current=same_kek), MASTER_KEYS)
    labeled = replace(WRAPS, generation=generation)
    assert open_user_wrap(
        labeled, KEY, desired, past_generations(SECOND), NO_SECRETS
    ) == OpenedWrap(DEK, 1)


def test_a_repair_tries_the_earlier_keks_that_the_keyring_still_holds() -> None:
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, THIRD, NO_SECRETS) == OpenedWrap(DEK, 1)
    first, second = THIRD.history
    partly = replace(THIRD, history=(first, replace(second, kek=None)))
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, partly, NO_SECRETS) == OpenedWrap(DEK, 1)
    cleared = replace(THIRD, history=tuple(replace(e, kek=None) for e in THIRD.history))
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, cleared, NO_SECRETS) is None
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, keyring(), NO_SECRETS) is None


def test_a_wrap_of_one_role_does_not_open_as_the_other() -> None:
    swapped = replace(WRAPS, user=WRAPS.admin, admin=WRAPS.user)
    for wraps, opens in ((WRAPS, True), (swapped, False)):
        user = try_wrap(wraps, "user", KEY, "acme", DESIRED.user_kek, (1,), NO_SECRETS)
        admin = try_wrap(wraps, "admin", KEY, "acme", DESIRED.admin_kek, (1,), NO_SECRETS)
        assert [user is not None, admin is not None] == [opens, opens]


def test_the_first_generation_that_fits_is_the_one() -> None:
    opened = try_wrap(WRAPS, "user", KEY, "acme", DESIRED.user_kek, (3, 3, 2, 1), NO_SECRETS)
    assert opened == OpenedWrap(DEK, 1)
    assert try_wrap(WRAPS, "user", KEY, "acme", DESIRED.user_kek, (), NO_SECRETS) is None


# Tombstones.


def test_a_tombstone_opens_in_its_place_alone() -> None:
    sealed = seal_tombstone(DESIRED.admin_kek, "acme", KEY, AT)
    assert try_tombstone(DESIRED.admin_kek, "acme", KEY, sealed) == AT
    assert try_tombstone(DESIRED.user_kek, "acme", KEY, sealed) is None
    assert try_tombstone(DESIRED.admin_kek, "acme", "other", sealed) is None
    assert try_tombstone(DESIRED.admin_kek, "acme", KEY, sealed[:-1]) is None


# What the opened wraps say together.


ADMIN: Final = OpenedWrap(DEK, 1, "m1")
USER: Final = OpenedWrap(DEK, 1)


@pytest.mark.parametrize(("admin", "user"), [(ADMIN, USER), (ADMIN, None), (None, USER)])
def test_one_wrap_is_enough_for_the_dek(admin: OpenedWrap | None, user: OpenedWrap | None) -> None:
    assert select_dek(admin, user) == DEK


def test_wraps_of_two_deks_are_corrupt_and_none_is_unusable() -> None:
    with pytest.raises(CorruptObjectError):
        select_dek(ADMIN, OpenedWrap(bytes(32), 1))
    with pytest.raises(NoUsableWrapError):
        select_dek(None, None)


def test_both_wraps_and_their_labels_must_be_the_desired_ones() -> None:
    assert is_current(WRAPS, ADMIN, USER, DESIRED)
    assert not is_current(WRAPS, None, USER, DESIRED)
    assert not is_current(WRAPS, ADMIN, None, DESIRED)
    for admin in (replace(ADMIN, generation=2), replace(ADMIN, master_key="m2")):
        assert not is_current(WRAPS, admin, USER, DESIRED)
    assert not is_current(WRAPS, ADMIN, replace(USER, generation=2), DESIRED)
    for labeled in (
        replace(WRAPS, generation=2),
        replace(WRAPS, kek_id="0" * 16),
        replace(WRAPS, master_key="m2"),
    ):
        assert not is_current(labeled, ADMIN, USER, DESIRED)


def test_an_opened_wrap_prints_no_dek() -> None:
    assert repr(DEK) not in repr(ADMIN)


# A master key whose provider is away.


def test_an_admin_wrap_that_may_open_under_a_key_that_is_away_is_not_unusable() -> None:
    away = replace(KEYS, keks={"m1": KEYS.keks["m1"]}, unavailable=frozenset({"m2"}))
    assert open_admin_wrap(WRAPS, KEY, DESIRED, away, ()) == OpenedWrap(DEK, 1, "m1")
    with pytest.raises(KmsUnavailableError, match="m2"):
        open_admin_wrap(UNDER_M2, KEY, DESIRED, away, ())


# Wrapping, and the metadata around the wraps.


def _opened(wraps: Wraps, role: Role, **changed: Any) -> bytes:
    kek: Secret = DESIRED_2.user_kek if role == "user" else DESIRED_2.admin_kek
    place: dict[str, Any] = {
        "algorithm": COBBLESTONE,
        "project": "acme",
        "object_key": KEY,
        "generation": 2,
        **changed,
    }
    return unwrap_dek(kek, role, wrap=wraps.user if role == "user" else wraps.admin, **place)


@ROLES
def test_each_wrap_holds_the_dek_under_its_own_kek(role: Role) -> None:
    wraps = wrap(DESIRED_2, KEY, DEK)
    assert _opened(wraps, role) == DEK
    assert (wraps.generation, wraps.kek_id, wraps.master_key) == (2, DESIRED_2.kek_id, "m1")
    assert wraps.user != wraps.admin


@ROLES
@pytest.mark.parametrize(
    "changed",
    [
        {"algorithm": "AES-256-GCM"},
        {"project": "other"},
        {"object_key": "reports/q4.pdf"},
        {"generation": 1},
    ],
    ids=repr,
)
def test_a_wrap_opens_in_its_place_alone(role: Role, changed: dict[str, Any]) -> None:
    with pytest.raises(SealError):
        _opened(wrap(DESIRED_2, KEY, DEK), role, **changed)


TAG: Final = "A" * 22 + "=="


def test_the_callers_metadata_is_kept_beside_the_wraps() -> None:
    wraps = wrap(DESIRED_2, KEY, DEK)
    metadata = build_object_metadata(
        wraps,
        upload_id=UPLOAD_ID,
        caller_wire={"author": "kim"},
        tag=TAG,
        stored_at=STORED_AT,
    )
    own = object_metadata.build(wraps, upload_id=UPLOAD_ID, tag=TAG, stored_at=STORED_AT)
    assert metadata == {"author": "kim", **own}
    assert parse(metadata) == wraps


def test_no_metadata_of_the_caller_replaces_a_field_of_ours() -> None:
    wraps = wrap(DESIRED_2, KEY, DEK)
    forged = {"enc-algo": "deleted", "enc-dek-user": "AAAA"}
    assert parse(build_object_metadata(wraps, upload_id=None, caller_wire=forged)) == wraps


def test_a_tombstone_is_two_fields() -> None:
    sealed = seal_tombstone(DESIRED_2.admin_kek, "acme", KEY, AT)
    metadata = build_tombstone_metadata(sealed)
    assert set(metadata) == {"enc-algo", "enc-dek-admin"}
    assert parse(metadata) == Tombstone(sealed)


def test_the_time_of_storing_is_left_out_if_the_metadata_would_be_too_large() -> None:
    wraps = wrap(DESIRED_2, KEY, DEK)
    own = object_metadata.build(wraps, upload_id=UPLOAD_ID, stored_at=STORED_AT)
    room = object_metadata.METADATA_MAX_BYTES - object_metadata.size_bytes(own) - 1
    for size, kept in ((room, True), (room + 1, False)):
        metadata = build_object_metadata(
            wraps,
            upload_id=UPLOAD_ID,
            caller_wire={"a": "x" * size},
            stored_at=STORED_AT,
        )
        assert ("enc-stored-at" in metadata) is kept
        assert object_metadata.size_bytes(metadata) <= object_metadata.METADATA_MAX_BYTES


# What verifies as an upload's own.


def _verified(wraps: Wraps, body: bytes, ring: Keyring = FIRST) -> Verification:
    return verify_upload(wraps, body[:HEADER_BYTES], KEY, ring, ADMIN_KEKS)


def test_an_object_in_the_desired_state_is_current() -> None:
    assert _verified(*sealed_object(DESIRED, KEY)).current


@pytest.mark.parametrize("ring", [SECOND, OTHER_MASTER], ids=["user key", "master key"])
def test_an_object_of_an_earlier_state_keeps_its_dek(ring: Keyring) -> None:
    wraps, body = sealed_object(DESIRED, KEY)
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
    wraps, body = sealed_object(DESIRED, KEY)
    assert not _verified(replace(wraps, **change), body).current  # type: ignore[arg-type]


@pytest.mark.parametrize("label", [1, 2, 9])
@pytest.mark.parametrize("broken", ["user", "admin"])
@pytest.mark.parametrize("ring", [FIRST, SECOND], ids=["same", "rotated since"])
def test_an_own_object_needs_both_wraps(ring: Keyring, broken: str, label: int) -> None:
    """An upload's id is not authenticated: less than both wraps would let a forgery pass.

    A label that names a generation without a KEK must not excuse the user wrap.
    """
    wraps, body = sealed_object(DESIRED, KEY)
    forged = replace(wraps, generation=label, **{broken: bytes(104)})  # type: ignore[arg-type]
    with pytest.raises(CorruptObjectError):
        _verified(forged, body, ring)


def test_wraps_moved_from_another_key_do_not_open() -> None:
    with pytest.raises(CorruptObjectError):
        _verified(*sealed_object(DESIRED, "another/key"))


@pytest.mark.parametrize("ring", [FIRST, SECOND], ids=["same", "rotated since"])
def test_wraps_of_two_deks_are_left_alone(ring: Keyring) -> None:
    wraps, body = sealed_object(DESIRED, KEY)
    other, _ = sealed_object(DESIRED, KEY)
    with pytest.raises(CorruptObjectError):
        _verified(replace(wraps, user=other.user), body, ring)


def test_a_dek_that_the_header_does_not_commit_to_is_refused() -> None:
    wraps, _ = sealed_object(DESIRED, KEY)
    other_body = seal(new_dek(), BODY_CONTEXT, b"hello")
    with pytest.raises(CorruptObjectError):
        _verified(wraps, other_body)
    with pytest.raises(CorruptObjectError):
        _verified(wraps, b"short")


def test_an_admin_wrap_ahead_of_the_keyring_is_a_rollback() -> None:
    wraps, body = sealed_object(DESIRED_2, KEY)
    with pytest.raises(KeyringRolledBackError):
        _verified(wraps, body)


def test_an_own_object_whose_old_kek_was_cleared_verifies_by_the_admin_wrap() -> None:
    ring = replace(SECOND, history=(replace(FIRST.current, kek=None),))
    assert not _verified(*sealed_object(DESIRED, KEY), ring).current


# Which keys an object depends on.


def _wraps(*, master_key: str = "m1", second: bool = False) -> Wraps:
    ring = replace(SECOND if second else FIRST, master_key=master_key)
    return sealed_object(desired_state(ring, MASTER_KEYS), KEY)[0]


def _usage(
    metadata: Mapping[str, str], *, keys: AdminKeks = KEYS, project: str = "acme"
) -> KeyUsage:
    return find_key_usage(metadata, project, KEY, keys, (2, 1))


@pytest.mark.parametrize("master_key", ["m1", "m2"])
@pytest.mark.parametrize("second", [False, True])
def test_the_admin_wrap_decides_which_key_an_object_depends_on(
    master_key: str, *, second: bool
) -> None:
    usage = _usage(enc(_wraps(master_key=master_key, second=second)))
    assert usage == KeyUsage("encrypted", 2 if second else 1, master_key)


def test_false_labels_change_nothing() -> None:
    """A label with the new master key over a wrap under the old one must not hide the old one."""
    lying = replace(_wraps(), master_key="m2", generation=2, kek_id="0" * 16)
    assert _usage(enc(lying)) == KeyUsage("encrypted", 1, "m1")
    assert _usage(enc(replace(_wraps(), master_key="gone"))) == KeyUsage("encrypted", 1, "m1")


@pytest.mark.parametrize(
    ("wraps", "generation"),
    [(_wraps(), 1), (_wraps(second=True), 2), (_wraps(master_key="m2"), 1)],
)
def test_without_a_keyring_the_label_says_which_generation_to_try(
    wraps: Wraps, generation: int
) -> None:
    assert find_key_usage(enc(wraps), "acme", KEY, KEYS, ()).generation == generation
    with pytest.raises(NoUsableWrapError):
        find_key_usage(enc(replace(wraps, generation=7)), "acme", KEY, KEYS, ())
    other_keys = admin_keks("acme", {"m9": Secret(bytes(32))})
    with pytest.raises(NoUsableWrapError):
        find_key_usage(enc(wraps), "acme", KEY, other_keys, ())


def test_an_object_that_no_available_key_opens_is_refused() -> None:
    only_second = admin_keks("acme", {"m2": MASTER_KEYS["m2"]})
    with pytest.raises(NoUsableWrapError):
        _usage(enc(_wraps()), keys=only_second)
    with pytest.raises(NoUsableWrapError):
        _usage(deleted(desired_state(FIRST, MASTER_KEYS), KEY), keys=only_second)
    with pytest.raises(NoUsableWrapError):
        _usage(enc(_wraps()), keys=admin_keks("other", MASTER_KEYS), project="other")


def test_a_tombstone_depends_on_the_master_key_that_opens_it() -> None:
    for name in MASTER_KEYS:
        desired = desired_state(replace(FIRST, master_key=name), MASTER_KEYS)
        assert _usage(deleted(desired, KEY)) == KeyUsage("tombstone", None, name)


def test_plaintext_depends_on_no_master_key() -> None:
    assert _usage({}) == KeyUsage("plaintext")


def test_metadata_that_cannot_be_read_has_its_code() -> None:
    stripped = enc(_wraps())
    del stripped["enc-algo"]
    with pytest.raises(CorruptObjectError):
        _usage(stripped)
    with pytest.raises(UnknownAlgorithmError):
        _usage({"enc-algo": "ROT13"})


def test_a_key_that_is_away_may_be_the_one_that_an_object_depends_on() -> None:
    """Otherwise `keyturn status` could call a master key safe to drop that is in use."""
    away = replace(KEYS, keks={"m2": KEYS.keks["m2"]}, unavailable=frozenset({"m1"}))
    tombstone = deleted(desired_state(FIRST, MASTER_KEYS), KEY)
    for metadata in (enc(_wraps()), tombstone):
        with pytest.raises(KmsUnavailableError):
            _usage(metadata, keys=away)
    assert _usage(enc(_wraps(master_key="m2")), keys=away).master_key == "m2"
