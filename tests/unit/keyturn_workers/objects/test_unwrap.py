"""Which KEK opens a wrap, and at which generation: labels are hints (SPEC 4.3, 4.6, 8.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from keyturn.crypto import Secret, new_dek, seal_tombstone, v0_seal
from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    KmsUnavailableError,
    NoUsableWrapError,
)
from keyturn_workers.objects.wraps import (
    OpenedWrap,
    is_current,
    open_admin_wrap,
    open_user_wrap,
    open_user_wrap_with_earlier_kek,
    past_generations,
    select_dek,
    try_tombstone,
    try_v0_wrap,
    try_wrap,
    wrap,
)
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, V0_USER_KEK, keyring, rotated
from tools.harness.local_keys import admin_keks, desired_state

KEY: Final = "reports/q3.pdf"
KEYS: Final = admin_keks("acme", MASTER_KEYS)
FIRST: Final = keyring()
SECOND: Final = rotated(FIRST)
THIRD: Final = rotated(SECOND)
DEK: Final = new_dek()
WRAPS: Final = wrap(desired_state(FIRST, MASTER_KEYS), KEY, DEK)
WRAPS_2: Final = wrap(desired_state(SECOND, MASTER_KEYS), KEY, DEK)
UNDER_M2: Final = wrap(desired_state(replace(FIRST, master_key="m2"), MASTER_KEYS), KEY, DEK)
DESIRED: Final = desired_state(FIRST, MASTER_KEYS)
DESIRED_3: Final = desired_state(THIRD, MASTER_KEYS)


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
    assert open_user_wrap(WRAPS, KEY, DESIRED, ()) == OpenedWrap(DEK, 1)
    second = desired_state(SECOND, MASTER_KEYS)
    assert open_user_wrap(WRAPS, KEY, second, past_generations(SECOND)) is None


@pytest.mark.parametrize("generation", [1, 5])
def test_the_user_wrap_opens_at_a_past_generation_of_the_desired_kek(generation: int) -> None:
    same_kek = replace(SECOND.current, kek=FIRST.current.kek, kek_id=FIRST.current.kek_id)
    desired = desired_state(replace(SECOND, current=same_kek), MASTER_KEYS)
    labeled = replace(WRAPS, generation=generation)
    assert open_user_wrap(labeled, KEY, desired, past_generations(SECOND)) == OpenedWrap(DEK, 1)


def test_a_repair_tries_the_earlier_keks_that_the_keyring_still_holds() -> None:
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, THIRD) == OpenedWrap(DEK, 1)
    first, second = THIRD.history
    partly = replace(THIRD, history=(first, replace(second, kek=None)))
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, partly) == OpenedWrap(DEK, 1)
    cleared = replace(THIRD, history=tuple(replace(e, kek=None) for e in THIRD.history))
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, cleared) is None
    assert open_user_wrap_with_earlier_kek(WRAPS, KEY, keyring()) is None


def test_a_wrap_of_one_role_does_not_open_as_the_other() -> None:
    swapped = replace(WRAPS, user=WRAPS.admin, admin=WRAPS.user)
    for wraps, opens in ((WRAPS, True), (swapped, False)):
        user = try_wrap(wraps, "user", KEY, "acme", DESIRED.user_kek, (1,))
        admin = try_wrap(wraps, "admin", KEY, "acme", DESIRED.admin_kek, (1,))
        assert [user is not None, admin is not None] == [opens, opens]


def test_the_first_generation_that_fits_is_the_one() -> None:
    opened = try_wrap(WRAPS, "user", KEY, "acme", DESIRED.user_kek, (3, 3, 2, 1))
    assert opened == OpenedWrap(DEK, 1)
    assert try_wrap(WRAPS, "user", KEY, "acme", DESIRED.user_kek, ()) is None


# The earlier system, and tombstones.


def test_a_v0_wrap_needs_its_kek() -> None:
    sealed = v0_seal(V0_USER_KEK.reveal(), DEK)
    assert try_v0_wrap(V0_USER_KEK, sealed) == OpenedWrap(DEK, 0)
    assert try_v0_wrap(Secret(bytes(32)), sealed) is None
    assert try_v0_wrap(None, sealed) is None
    assert try_v0_wrap(V0_USER_KEK, None) is None


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
