"""Key usage is what opens an object, never what a label says (SPEC 4.3, 8.1, 8.7)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import Secret, new_dek
from keyturn.errors import (
    CorruptObjectError,
    KmsUnavailableError,
    NoUsableWrapError,
    UnknownAlgorithmError,
)
from keyturn_workers.objects.wraps import KeyUsage, find_key_usage
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
    v0_metadata,
)
from tools.harness.local_keys import admin_keks, desired_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.metadata import Wraps
    from keyturn_workers.master_keys.admin_keks import AdminKeks

_KEY = "reports/q3.pdf"
_KEYS = admin_keks("acme", MASTER_KEYS)
_FIRST = keyring()
_SECOND = rotated(_FIRST)


def _wraps(*, master_key: str = "m1", second: bool = False) -> Wraps:
    ring = replace(_SECOND if second else _FIRST, master_key=master_key)
    return sealed_object(desired_state(ring, MASTER_KEYS), _KEY)[0]


def _usage(
    metadata: Mapping[str, str], *, keys: AdminKeks = _KEYS, project: str = "acme"
) -> KeyUsage:
    return find_key_usage(metadata, project, _KEY, keys, (2, 1))


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
    assert find_key_usage(enc(wraps), "acme", _KEY, _KEYS, ()).generation == generation
    with pytest.raises(NoUsableWrapError):
        find_key_usage(enc(replace(wraps, generation=7)), "acme", _KEY, _KEYS, ())
    other_keys = admin_keks("acme", {"m9": Secret(bytes(32))})
    with pytest.raises(NoUsableWrapError):
        find_key_usage(enc(wraps), "acme", _KEY, other_keys, ())


def test_an_object_that_no_available_key_opens_is_refused() -> None:
    only_second = admin_keks("acme", {"m2": MASTER_KEYS["m2"]})
    with pytest.raises(NoUsableWrapError):
        _usage(enc(_wraps()), keys=only_second)
    with pytest.raises(NoUsableWrapError):
        _usage(deleted(desired_state(_FIRST, MASTER_KEYS), _KEY), keys=only_second)
    with pytest.raises(NoUsableWrapError):
        _usage(enc(_wraps()), keys=admin_keks("other", MASTER_KEYS), project="other")


def test_a_tombstone_depends_on_the_master_key_that_opens_it() -> None:
    for name in MASTER_KEYS:
        desired = desired_state(replace(_FIRST, master_key=name), MASTER_KEYS)
        assert _usage(deleted(desired, _KEY)) == KeyUsage("tombstone", None, name)


def test_plaintext_and_v0_objects_depend_on_no_master_key() -> None:
    assert _usage({}) == KeyUsage("plaintext")
    assert _usage(v0_metadata(new_dek(), new_dek())) == KeyUsage("v0")


def test_metadata_that_cannot_be_read_has_its_code() -> None:
    stripped = enc(_wraps())
    del stripped["enc-algo"]
    with pytest.raises(CorruptObjectError):
        _usage(stripped)
    with pytest.raises(UnknownAlgorithmError):
        _usage({"enc-algo": "ROT13"})


def test_a_key_that_is_away_may_be_the_one_that_an_object_depends_on() -> None:
    """Otherwise `keyturn status` could call a master key safe to drop that is in use."""
    away = replace(_KEYS, keks={"m2": _KEYS.keks["m2"]}, unavailable=frozenset({"m1"}))
    tombstone = deleted(desired_state(_FIRST, MASTER_KEYS), _KEY)
    for metadata in (enc(_wraps()), tombstone):
        with pytest.raises(KmsUnavailableError):
            _usage(metadata, keys=away)
    assert _usage(enc(_wraps(master_key="m2")), keys=away).master_key == "m2"
