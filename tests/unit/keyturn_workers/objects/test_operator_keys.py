"""The operator's keys: each KEK is derived once, memory is bounded, nothing prints a key."""

from __future__ import annotations

from keyturn_workers.objects.operator_keys import OperatorKeys
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    V0_ADMIN_KEK,
)


def test_an_admin_kek_is_derived_once_a_project() -> None:
    keys = OperatorKeys(MASTER_KEYS)
    assert keys.admin_kek("m1", "acme") is keys.admin_kek("m1", "acme")
    assert keys.admin_kek("m1", "acme") != keys.admin_kek("m1", "other")
    assert keys.admin_kek("gone", "acme") is None


def test_derived_keks_are_bounded() -> None:
    keys = OperatorKeys(MASTER_KEYS)
    for number in range(5000):
        keys.admin_kek("m1", f"p{number}")
    assert len(keys._derived) <= 4096


def test_operator_keys_print_no_key() -> None:
    keys = OperatorKeys(MASTER_KEYS, V0_ADMIN_KEK)
    derived = keys.admin_kek("m1", "acme")
    assert derived is not None
    for secret in (*MASTER_KEYS.values(), V0_ADMIN_KEK, derived):
        assert repr(secret.reveal())[2:-1] not in repr(keys)
        assert secret.reveal().hex() not in repr(keys)
