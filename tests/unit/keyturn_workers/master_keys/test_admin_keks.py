"""A project's admin KEKs as a value."""

from __future__ import annotations

import pytest

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, UnknownMasterKeyError
from keyturn_workers.master_keys.admin_keks import AdminKeks

ONE, TWO = Secret(b"1" * 32), Secret(b"2" * 32)
KEKS = AdminKeks("acme", {"m1": ONE, "m2": TWO}, frozenset({"m3"}))


def test_the_label_leads_and_each_key_comes_once() -> None:
    assert list(KEKS.in_order(first="m2")) == [("m2", TWO), ("m1", ONE)]
    assert list(KEKS.in_order()) == [("m1", ONE), ("m2", TWO)]
    assert list(KEKS.in_order(first="gone")) == [("m1", ONE), ("m2", TWO)]


def test_a_key_that_is_away_is_not_an_unknown_one() -> None:
    assert KEKS.require("m1") == ONE
    with pytest.raises(KmsUnavailableError, match="m3"):
        KEKS.require("m3")
    with pytest.raises(UnknownMasterKeyError, match="m9"):
        KEKS.require("m9")


def test_nothing_final_is_said_while_a_key_is_away() -> None:
    with pytest.raises(KmsUnavailableError, match="m3"):
        KEKS.check_complete()
    AdminKeks("acme", {"m1": ONE}).check_complete()


def test_it_prints_no_key() -> None:
    assert "1111" not in repr(KEKS)
