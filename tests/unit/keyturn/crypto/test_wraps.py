"""A wrap, a record or a tombstone opens only in its own place (SPEC 4.3, 5.1, 8.7)."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import (
    Role,
    SealError,
    Secret,
    new_dek,
    open_record,
    open_tombstone,
    seal,
    seal_record,
    seal_tombstone,
    unwrap_dek,
    wrap_dek,
)

KEK = Secret(bytes(range(32)))
OTHER = Secret(bytes(32))
PLACE: Final[dict[str, Any]] = {
    "algorithm": "Cobblestone-256",
    "project": "acme",
    "object_key": "reports/q3.pdf",
    "generation": 3,
}

DEK = bytes(range(32))
SIZES = [0, 1, 15, 16, 17, 31, 32, 33, 16_384, 100_000]
PIECES = [1, 11, 12, 13, 15, 16, 17, 28, 29, 64, 16_384, 1_000_000]


@pytest.mark.parametrize("role", ["user", "admin"])
def test_a_wrap_opens_in_its_place_alone(role: Role) -> None:
    dek = new_dek()
    wrap = wrap_dek(KEK, role, dek=dek, **PLACE)
    assert unwrap_dek(KEK, role, wrap=wrap, **PLACE) == dek
    other_role: Role = "admin" if role == "user" else "user"
    with pytest.raises(SealError):
        unwrap_dek(KEK, other_role, wrap=wrap, **PLACE)
    with pytest.raises(SealError):
        unwrap_dek(OTHER, role, wrap=wrap, **PLACE)
    moved = {"algorithm": "AES-256-GCM", "project": "other", "object_key": "x", "generation": 4}
    for name, value in moved.items():
        with pytest.raises(SealError):
            unwrap_dek(KEK, role, wrap=wrap, **{**PLACE, name: value})


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_wrap_holds_32_bytes_and_nothing_else(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        wrap_dek(KEK, "user", dek=bytes(length), **PLACE)
    context = b"keyturn/v1/dek\0user\0Cobblestone-256\0acme\0reports/q3.pdf\x003"
    wrap = seal(KEK.reveal(), context, bytes(length))
    with pytest.raises(SealError):
        unwrap_dek(KEK, "user", wrap=wrap, **PLACE)


def test_a_zero_byte_cannot_move_a_border_between_names() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        wrap_dek(KEK, "user", dek=new_dek(), **{**PLACE, "object_key": "a\0b"})


def test_a_record_opens_at_its_own_key_alone() -> None:
    sealed = seal_record(KEK, ".keyturn/keyrings/acme.json", b"{}")
    assert open_record(KEK, ".keyturn/keyrings/acme.json", sealed) == b"{}"
    for kek, key in ((KEK, ".keyturn/keyrings/other.json"), (OTHER, ".keyturn/keyrings/acme.json")):
        with pytest.raises(SealError):
            open_record(kek, key, sealed)


def test_a_tombstone_opens_for_its_own_object_alone() -> None:
    time = "2026-11-24T10:00:00Z"
    sealed = seal_tombstone(KEK, "acme", "a/b", time)
    assert open_tombstone(KEK, "acme", "a/b", sealed) == time
    for kek, project, key in ((KEK, "acme", "a"), (KEK, "other", "a/b"), (OTHER, "acme", "a/b")):
        with pytest.raises(SealError):
            open_tombstone(kek, project, key, sealed)
    with pytest.raises(SealError):  # nor as a record of that name
        open_record(KEK, "acme", sealed)


def test_a_tombstone_that_is_no_text_is_refused() -> None:
    sealed = seal(KEK.reveal(), b"keyturn/v1/tombstone\0acme\0a", b"\xff")
    with pytest.raises(SealError):
        open_tombstone(KEK, "acme", "a", sealed)


@given(st.binary(max_size=200))
def test_whatever_the_bytes_only_seal_errors_come_out(data: bytes) -> None:
    with pytest.raises(SealError):
        unwrap_dek(KEK, "user", wrap=data, **PLACE)
    with pytest.raises(SealError):
        open_record(KEK, "k", data)
    with pytest.raises(SealError):
        open_tombstone(KEK, "acme", "a", data)
