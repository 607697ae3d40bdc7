"""A wrap, a record or a tombstone opens only in its own place (SPEC 4.3, 4.6, 5.1, 8.7)."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import (
    Role,
    SealError,
    Secret,
    V0Opener,
    new_dek,
    open_record,
    open_tombstone,
    seal,
    seal_record,
    seal_tombstone,
    unwrap_dek,
    v0_open,
    v0_seal,
    v0_unwrap_dek,
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


def test_v0() -> None:
    dek = new_dek()
    assert v0_open(dek, v0_seal(dek, b"old")) == b"old"
    assert v0_unwrap_dek(KEK, v0_seal(KEK.reveal(), dek)) == dek
    with pytest.raises(SealError):
        v0_unwrap_dek(OTHER, v0_seal(KEK.reveal(), dek))
    with pytest.raises(SealError):
        v0_unwrap_dek(KEK, v0_seal(KEK.reveal(), dek[:16]))
    with pytest.raises(SealError):
        v0_open(dek[:16], v0_seal(dek[:16], b"AES-128 is none of ours"))


@given(st.binary(max_size=200))
def test_whatever_the_bytes_only_seal_errors_come_out(data: bytes) -> None:
    with pytest.raises(SealError):
        unwrap_dek(KEK, "user", wrap=data, **PLACE)
    with pytest.raises(SealError):
        open_record(KEK, "k", data)
    with pytest.raises(SealError):
        open_tombstone(KEK, "acme", "a", data)
    with pytest.raises(SealError):
        v0_open(KEK.reveal(), data)
    with pytest.raises(SealError):
        v0_unwrap_dek(KEK, data)


def _check_v0(sealed: bytes, piece_bytes: int, key: bytes = DEK) -> None:
    opener = V0Opener(key)
    for start in range(0, len(sealed), piece_bytes):
        opener.feed(sealed[start : start + piece_bytes])
    opener.finish()


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_an_authentic_v0_body_passes_however_it_is_cut(size_bytes: int, piece_bytes: int) -> None:
    _check_v0(v0_seal(DEK, os.urandom(size_bytes)), piece_bytes)


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("piece_bytes", [16, 17, 1_000_000])
def test_a_v0_body_of_another_key_fails(size_bytes: int, piece_bytes: int) -> None:
    sealed = v0_seal(new_dek(), bytes(size_bytes))
    with pytest.raises(SealError):
        _check_v0(sealed, piece_bytes)


@pytest.mark.parametrize("size_bytes", [0, 1, 16, 100])
def test_every_flip_and_every_cut_of_a_v0_body_fails(size_bytes: int) -> None:
    sealed = v0_seal(DEK, bytes(size_bytes))
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        for broken in (bytes(flipped), sealed[:at]):
            with pytest.raises(SealError):
                _check_v0(broken, 16)
    with pytest.raises(SealError):
        _check_v0(sealed + b"\0", 16)


@given(st.binary(max_size=200), st.lists(st.integers(0, 230), max_size=12), st.booleans())
def test_a_v0_body_in_pieces_opens_if_it_opens_whole(
    plaintext: bytes,
    cuts: list[int],
    broken: bool,
) -> None:
    sealed = v0_seal(DEK, plaintext)
    if broken:
        sealed = sealed[:-1]
    borders = [0, *sorted(min(cut, len(sealed)) for cut in cuts), len(sealed)]
    opener = V0Opener(DEK)
    for start, end in pairwise(borders):
        opener.feed(memoryview(sealed)[start:end])
    if broken:
        with pytest.raises(SealError):
            v0_open(DEK, sealed)
        with pytest.raises(SealError):
            opener.finish()
    else:
        assert v0_open(DEK, sealed) == plaintext
        opener.finish()


def test_a_v0_opener_is_used_once() -> None:
    opener = V0Opener(DEK)
    opener.feed(v0_seal(DEK, b"old"))
    opener.finish()
    with pytest.raises(SealError):
        opener.finish()
    with pytest.raises(SealError):
        opener.feed(b"more")


def test_a_v0_body_that_failed_is_not_mended_by_more() -> None:
    sealed = v0_seal(DEK, b"old")
    opener = V0Opener(DEK)
    opener.feed(sealed[:-1])
    with pytest.raises(SealError):
        opener.finish()
    with pytest.raises(SealError):
        opener.feed(sealed[-1:])


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_v0_key_of_another_length_opens_nothing(length: int) -> None:
    with pytest.raises(SealError):
        V0Opener(bytes(length))
