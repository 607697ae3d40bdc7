"""A v0 body is checked whole, in pieces of any size, and gives nothing out (SPEC 4.6, 8.2)."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import SealError, V0Opener, new_dek, v0_open, v0_seal

DEK = bytes(range(32))
SIZES = [0, 1, 15, 16, 17, 31, 32, 33, 16_384, 100_000]
PIECES = [1, 11, 12, 13, 15, 16, 17, 28, 29, 64, 16_384, 1_000_000]


def check(sealed: bytes, piece_bytes: int, key: bytes = DEK) -> None:
    opener = V0Opener(key)
    for start in range(0, len(sealed), piece_bytes):
        opener.feed(sealed[start : start + piece_bytes])
    opener.finish()


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("piece_bytes", PIECES)
def test_an_authentic_body_passes_however_it_is_cut(size_bytes: int, piece_bytes: int) -> None:
    check(v0_seal(DEK, os.urandom(size_bytes)), piece_bytes)


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize("piece_bytes", [16, 17, 1_000_000])
def test_a_body_of_another_key_fails(size_bytes: int, piece_bytes: int) -> None:
    sealed = v0_seal(new_dek(), bytes(size_bytes))
    with pytest.raises(SealError):
        check(sealed, piece_bytes)


@pytest.mark.parametrize("size_bytes", [0, 1, 16, 100])
def test_every_flip_and_every_cut_fails(size_bytes: int) -> None:
    sealed = v0_seal(DEK, bytes(size_bytes))
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        for broken in (bytes(flipped), sealed[:at]):
            with pytest.raises(SealError):
                check(broken, 16)
    with pytest.raises(SealError):
        check(sealed + b"\0", 16)


@given(st.binary(max_size=200), st.lists(st.integers(0, 230), max_size=12), st.booleans())
def test_it_says_what_opening_whole_says(
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


def test_once_over_it_takes_and_tells_nothing_more() -> None:
    opener = V0Opener(DEK)
    opener.feed(v0_seal(DEK, b"old"))
    opener.finish()
    with pytest.raises(SealError):
        opener.finish()
    with pytest.raises(SealError):
        opener.feed(b"more")


def test_a_failure_cannot_be_mended_by_feeding_more() -> None:
    sealed = v0_seal(DEK, b"old")
    opener = V0Opener(DEK)
    opener.feed(sealed[:-1])
    with pytest.raises(SealError):
        opener.finish()
    with pytest.raises(SealError):
        opener.feed(sealed[-1:])


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_key_of_another_length_opens_nothing(length: int) -> None:
    with pytest.raises(SealError):
        V0Opener(bytes(length))
