"""Properties of the sealing primitive: one encoding, any split, no forgery (SPEC 3)."""

import os
from collections.abc import Iterable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MAX_CHUNKS,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    ChunkError,
    ChunkReader,
    CommitmentError,
    Opener,
    Sealer,
    SealError,
    commits_to,
    open_sealed,
    plaintext_size,
    seal,
    sealed_size,
)
from keyturn.crypto.cobblestone import _derive

KEY = bytes(range(32))
SALT = bytes(range(24))
CONTEXT = b"keyturn/v1/body"
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 7)
PLAINTEXT = os.urandom(SIZES[-1])
SEALED = seal(KEY, CONTEXT, PLAINTEXT)

sizes = st.sampled_from(SIZES) | st.integers(0, SIZES[-1])
cuts = st.lists(st.integers(0, SIZES[-1] + 200), max_size=12).map(sorted)


def pieces(data: bytes, at: list[int]) -> Iterable[memoryview]:
    view = memoryview(data)
    for start, end in zip([0, *at], [*at, len(data)], strict=True):
        yield view[start:end]


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(size: int) -> None:
    sealed = seal(KEY, CONTEXT, PLAINTEXT[:size])
    assert len(sealed) == sealed_size(size)
    assert plaintext_size(len(sealed)) == size
    assert open_sealed(KEY, CONTEXT, sealed) == PLAINTEXT[:size]
    assert commits_to(KEY, CONTEXT, sealed[:HEADER_BYTES])


@given(sizes, cuts)
def test_any_split_gives_the_same_bytes(size: int, at: list[int]) -> None:
    plaintext = PLAINTEXT[:size]
    message = seal(KEY, CONTEXT, plaintext, salt=SALT)
    sealer = Sealer(KEY, CONTEXT, salt=SALT)
    sealed = sealer.header + b"".join(map(sealer.update, pieces(plaintext, at))) + sealer.finish()
    assert sealed == message
    opener = Opener(KEY, CONTEXT, message[:HEADER_BYTES])
    assert b"".join(map(opener.update, pieces(message[HEADER_BYTES:], at))) + opener.finish() == (
        plaintext
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(kind: type) -> None:
    sealer = Sealer(KEY, CONTEXT, salt=SALT)
    sealed = sealer.header + sealer.update(kind(PLAINTEXT)) + sealer.finish()
    assert sealed == seal(KEY, CONTEXT, kind(PLAINTEXT), salt=SALT)
    assert type(open_sealed(KEY, CONTEXT, kind(sealed))) is bytes


def test_a_chunk_is_released_as_soon_as_it_is_whole_and_not_before() -> None:
    opener = Opener(KEY, CONTEXT, SEALED[:HEADER_BYTES])
    body = SEALED[HEADER_BYTES:]
    assert opener.update(body[: SEALED_CHUNK_BYTES - 1]) == b""
    assert (
        opener.update(body[SEALED_CHUNK_BYTES - 1 : SEALED_CHUNK_BYTES])
        == (PLAINTEXT[:CHUNK_BYTES])
    )


@given(st.integers(0, len(SEALED) * 8 - 1))
def test_any_flipped_bit_fails(bit: int) -> None:
    broken = bytearray(SEALED)
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CommitmentError if bit < HEADER_BYTES * 8 else ChunkError):
        open_sealed(KEY, CONTEXT, bytes(broken))


@given(st.sampled_from(SIZES), st.data())
def test_any_truncation_fails(size: int, data: st.DataObject) -> None:
    sealed = seal(KEY, CONTEXT, PLAINTEXT[:size])
    borders = range(HEADER_BYTES, len(sealed), SEALED_CHUNK_BYTES)  # where a chunk ends
    keep = data.draw(st.sampled_from(borders) | st.integers(0, len(sealed) - 1))
    with pytest.raises(CommitmentError if keep < HEADER_BYTES else ChunkError):
        open_sealed(KEY, CONTEXT, sealed[:keep])


@given(st.sampled_from(SIZES), st.binary(min_size=1, max_size=2 * SEALED_CHUNK_BYTES))
def test_any_extension_fails(size: int, more: bytes) -> None:
    with pytest.raises(ChunkError):
        open_sealed(KEY, CONTEXT, seal(KEY, CONTEXT, PLAINTEXT[:size]) + more)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (0, 0, 2), (0, 2), (1, 2), (0, 1, 1)])
def test_chunks_swapped_doubled_or_left_out_fail(order: tuple[int, ...]) -> None:
    body = SEALED[HEADER_BYTES:]
    chunk = [body[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(body), SEALED_CHUNK_BYTES)]
    moved = b"".join([chunk[index] for index in order] + chunk[3:])
    with pytest.raises(ChunkError):
        open_sealed(KEY, CONTEXT, SEALED[:HEADER_BYTES] + moved)


def test_chunks_of_another_message_under_the_same_key_fail() -> None:
    other = seal(KEY, CONTEXT, PLAINTEXT)
    with pytest.raises(ChunkError):
        open_sealed(KEY, CONTEXT, SEALED[:HEADER_BYTES] + other[HEADER_BYTES:])


def test_another_key_or_context_is_refused_before_any_chunk() -> None:
    header = SEALED[:HEADER_BYTES]
    for key, context in ((bytes(32), CONTEXT), (KEY, b""), (KEY[:31], CONTEXT), (b"", CONTEXT)):
        assert not commits_to(key, context, header)
        for reader in (Opener, ChunkReader):
            with pytest.raises(CommitmentError):
                reader(key, context, header)
    for cut in (b"", header[:-1], SEALED[: HEADER_BYTES + 1]):
        assert not commits_to(KEY, CONTEXT, cut)
        with pytest.raises(CommitmentError):
            Opener(KEY, CONTEXT, cut)


@given(st.integers(0, len(PLAINTEXT)), st.integers(0, len(PLAINTEXT)))
def test_random_access_equals_slices(offset: int, end: int) -> None:
    offset, end = sorted((offset, end))
    reader = ChunkReader(KEY, CONTEXT, SEALED[:HEADER_BYTES])
    first, count = reader.chunk_range(offset, end - offset)
    start, length = reader.sealed_span(first, count)
    span = SEALED[start : start + length]
    opened = b"".join(
        reader.open_chunk(
            first + number,
            span[number * SEALED_CHUNK_BYTES :][:SEALED_CHUNK_BYTES],
            last=first + number == len(PLAINTEXT) // CHUNK_BYTES,
        )
        for number in range(count)
    )
    skip = offset - first * CHUNK_BYTES
    assert opened[skip : skip + end - offset] == PLAINTEXT[offset:end]
    assert len(opened) < end - offset + 2 * CHUNK_BYTES  # no more than is needed


def test_random_access_checks_number_and_length() -> None:
    reader = ChunkReader(KEY, CONTEXT, SEALED[:HEADER_BYTES])
    body = SEALED[HEADER_BYTES:]
    full, last = body[:SEALED_CHUNK_BYTES], body[3 * SEALED_CHUNK_BYTES :]
    assert reader.open_chunk(0, full, last=False) == PLAINTEXT[:CHUNK_BYTES]
    assert reader.open_chunk(3, last, last=True) == PLAINTEXT[3 * CHUNK_BYTES :]
    refused = [(0, full, True), (3, last, False), (1, full, False), (2, last, True)]
    refused += [(-1, full, False), (MAX_CHUNKS, full, False), (3, b"", True), (3, last[:15], True)]
    refused += [(0, full + b"x", False)]
    for index, chunk, is_last in refused:
        with pytest.raises(ChunkError):
            reader.open_chunk(index, chunk, last=is_last)


@pytest.mark.parametrize("size", [CHUNK_BYTES - 1, CHUNK_BYTES + 1])
def test_an_authentic_chunk_of_another_length_is_no_full_chunk(size: int) -> None:
    """A holder of the DEK can make one; a stream and a range would then read differently."""
    derived = _derive(KEY, CONTEXT, SALT)
    header = SALT + derived[44:]
    chunk = AESGCM(derived[:32]).encrypt(derived[32:44], bytes(size), None)
    with pytest.raises(ChunkError):
        ChunkReader(KEY, CONTEXT, header).open_chunk(0, chunk, last=False)


@given(st.integers(0, 3), st.integers(0, 3))
def test_chunks_at_once_are_the_same_as_one_by_one(first: int, count: int) -> None:
    count = min(count, 3 - first)
    reader = ChunkReader(KEY, CONTEXT, SEALED[:HEADER_BYTES])
    start, length = reader.sealed_span(first, count)
    span = SEALED[start : start + length]
    one_by_one = b"".join(
        reader.open_chunk(
            first + n, span[n * SEALED_CHUNK_BYTES :][:SEALED_CHUNK_BYTES], last=False
        )
        for n in range(count)
    )
    for kind in (bytes, bytearray, memoryview):
        assert reader.open_chunks(first, kind(span)) == one_by_one
    assert one_by_one == PLAINTEXT[first * CHUNK_BYTES : (first + count) * CHUNK_BYTES]


def test_chunks_at_once_are_whole_ones_that_do_not_end_the_message() -> None:
    reader = ChunkReader(KEY, CONTEXT, SEALED[:HEADER_BYTES])
    body = SEALED[HEADER_BYTES:]
    full, last = body[: 3 * SEALED_CHUNK_BYTES], body[3 * SEALED_CHUNK_BYTES :]
    exact = seal(KEY, CONTEXT, PLAINTEXT[: 3 * CHUNK_BYTES], salt=SALT)
    for first, chunks in (
        (0, full[:-1]),
        (0, full + b"x"),
        (0, body),  # the last, short one along with the others
        (3, last),
        (3, last.ljust(SEALED_CHUNK_BYTES, b"\0")),
        (1, full),
        (-1, full),
        (0, full[SEALED_CHUNK_BYTES:]),
        (0, full[SEALED_CHUNK_BYTES : 2 * SEALED_CHUNK_BYTES] + full[:SEALED_CHUNK_BYTES]),
        (0, exact[HEADER_BYTES : HEADER_BYTES + SEALED_CHUNK_BYTES]),  # another message's
    ):
        with pytest.raises(ChunkError):
            reader.open_chunks(first, chunks)


@given(st.integers(0, 3 * SEALED_CHUNK_BYTES * 8 - 1))
def test_any_flipped_bit_fails_all_chunks_that_are_opened_with_it(bit: int) -> None:
    broken = bytearray(SEALED[HEADER_BYTES : HEADER_BYTES + 3 * SEALED_CHUNK_BYTES])
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ChunkError):
        ChunkReader(KEY, CONTEXT, SEALED[:HEADER_BYTES]).open_chunks(0, broken)


def test_chunks_at_once_leave_a_number_for_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ChunkReader(KEY, CONTEXT, SEALED[:HEADER_BYTES])
    full = SEALED[HEADER_BYTES : HEADER_BYTES + 3 * SEALED_CHUNK_BYTES]
    monkeypatch.setattr("keyturn.crypto.cobblestone.MAX_CHUNKS", 4)
    assert reader.open_chunks(0, full) == PLAINTEXT[: 3 * CHUNK_BYTES]
    monkeypatch.setattr("keyturn.crypto.cobblestone.MAX_CHUNKS", 3)
    with pytest.raises(ChunkError):
        reader.open_chunks(0, full)
    with pytest.raises(ChunkError):
        reader.open_chunks(2, full[2 * SEALED_CHUNK_BYTES :])
    assert reader.open_chunks(1, full[SEALED_CHUNK_BYTES : 2 * SEALED_CHUNK_BYTES])


def test_no_chunk_covers_nothing_and_nothing_is_negative() -> None:
    assert ChunkReader.chunk_range(CHUNK_BYTES, 0) == (1, 0)
    assert ChunkReader.chunk_range(CHUNK_BYTES - 1, 2) == (0, 2)
    assert ChunkReader.chunk_range(0, CHUNK_BYTES) == (0, 1)
    assert ChunkReader.sealed_span(1, 2) == (HEADER_BYTES + SEALED_CHUNK_BYTES, 32800)
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            ChunkReader.chunk_range(offset, length)


@given(st.integers(0, 10 * SEALED_CHUNK_BYTES))
def test_sizes_are_returned_where_some_plaintext_has_them(sealed_bytes: int) -> None:
    full, last = divmod(sealed_bytes - HEADER_BYTES, SEALED_CHUNK_BYTES)
    if full < 0 or last < TAG_BYTES:
        with pytest.raises(ChunkError):
            plaintext_size(sealed_bytes)
    else:
        assert sealed_size(plaintext_size(sealed_bytes)) == sealed_bytes


def test_a_message_ends_before_its_last_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """c2sp.org/chunked-encryption: abort where the counter reaches its limit."""
    monkeypatch.setattr("keyturn.crypto.cobblestone.MAX_CHUNKS", 4)
    assert open_sealed(KEY, CONTEXT, SEALED) == PLAINTEXT  # numbers 0 to 3
    with pytest.raises(ValueError, match="4 PiB"):
        seal(KEY, CONTEXT, bytes(4 * CHUNK_BYTES))
    monkeypatch.setattr("keyturn.crypto.cobblestone.MAX_CHUNKS", 3)
    with pytest.raises(ChunkError):
        open_sealed(KEY, CONTEXT, SEALED)
    with pytest.raises(ChunkError):
        Opener(KEY, CONTEXT, SEALED[:HEADER_BYTES]).update(SEALED[HEADER_BYTES:])


def test_nothing_comes_after_the_end() -> None:
    sealer = Sealer(KEY, CONTEXT)
    end = sealer.finish()
    for call in (sealer.finish, lambda: sealer.update(b"x")):
        with pytest.raises(ValueError, match="finished"):
            call()
    opener = Opener(KEY, CONTEXT, sealer.header)
    opener.update(end)
    assert opener.finish() == b""
    for call in (opener.finish, lambda: opener.update(b"")):
        with pytest.raises(ChunkError):
            call()


def test_sealing_refuses_keys_and_salts_of_other_lengths() -> None:
    for key, salt in ((KEY[:31], None), (KEY + b"x", None), (KEY, b""), (KEY, SALT + b"x")):
        with pytest.raises(ValueError, match="32 bytes"):
            seal(key, CONTEXT, b"", salt=salt)
        with pytest.raises(ValueError, match="32 bytes"):
            Sealer(key, CONTEXT, salt=salt)


def test_a_salt_is_never_used_twice() -> None:
    assert len({seal(KEY, CONTEXT, b"")[:24] for _ in range(100)}) == 100


@settings(max_examples=300)
@given(
    st.binary(max_size=300) | st.binary(max_size=300).map(lambda end: SEALED[:HEADER_BYTES] + end)
)
def test_whatever_the_bytes_only_seal_errors_come_out(sealed: bytes) -> None:
    with pytest.raises(SealError) as caught:
        open_sealed(KEY, CONTEXT, sealed)
    assert str(caught.value) in (str(ChunkError()), str(CommitmentError()))
