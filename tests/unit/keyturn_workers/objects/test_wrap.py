"""A DEK under both desired KEKs, and the metadata around it (SPEC 4.3, 8.7)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn import metadata as object_metadata
from keyturn.crypto import SealError, new_dek, seal_tombstone, unwrap_dek
from keyturn.metadata import COBBLESTONE, V0_ALGORITHM, Tombstone, parse
from keyturn_workers.objects.wraps import build_object_metadata, build_tombstone_metadata, wrap
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, keyring, rotated
from tools.harness.local_keys import desired_state

if TYPE_CHECKING:
    from keyturn.crypto import Role, Secret
    from keyturn.metadata import Wraps

KEY: Final = "reports/q3.pdf"
DESIRED: Final = desired_state(rotated(keyring()), MASTER_KEYS)
DEK: Final = new_dek()
STORED_AT: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
UPLOAD_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
ROLES: Final = pytest.mark.parametrize("role", ["user", "admin"])


def _opened(wraps: Wraps, role: Role, **changed: Any) -> bytes:
    kek: Secret = DESIRED.user_kek if role == "user" else DESIRED.admin_kek
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
    wraps = wrap(DESIRED, KEY, DEK)
    assert _opened(wraps, role) == DEK
    assert (wraps.generation, wraps.kek_id, wraps.master_key) == (2, DESIRED.kek_id, "m1")
    assert wraps.user != wraps.admin


@ROLES
@pytest.mark.parametrize(
    "changed",
    [
        {"algorithm": V0_ALGORITHM},
        {"project": "other"},
        {"object_key": "reports/q4.pdf"},
        {"generation": 1},
    ],
    ids=repr,
)
def test_a_wrap_opens_in_its_place_alone(role: Role, changed: dict[str, Any]) -> None:
    with pytest.raises(SealError):
        _opened(wrap(DESIRED, KEY, DEK), role, **changed)


@ROLES
def test_a_wrap_of_a_v0_body_says_so(role: Role) -> None:
    wraps = wrap(DESIRED, KEY, DEK, algorithm=V0_ALGORITHM)
    assert wraps.algorithm == V0_ALGORITHM
    assert _opened(wraps, role, algorithm=V0_ALGORITHM) == DEK


TAG: Final = "A" * 22 + "=="


def test_the_callers_metadata_is_kept_beside_the_wraps() -> None:
    wraps = wrap(DESIRED, KEY, DEK)
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
    wraps = wrap(DESIRED, KEY, DEK)
    forged = {"enc-algo": "deleted", "enc-dek-user": "AAAA"}
    assert parse(build_object_metadata(wraps, upload_id=None, caller_wire=forged)) == wraps


def test_a_tombstone_is_two_fields() -> None:
    sealed = seal_tombstone(DESIRED.admin_kek, "acme", KEY, AT)
    metadata = build_tombstone_metadata(sealed)
    assert set(metadata) == {"enc-algo", "enc-dek-admin"}
    assert parse(metadata) == Tombstone(sealed)


def test_the_time_of_storing_is_left_out_if_the_metadata_would_be_too_large() -> None:
    wraps = wrap(DESIRED, KEY, DEK)
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
