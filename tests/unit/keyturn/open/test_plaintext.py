"""What is released is authentic, in order, read once, and complete at the end (SPEC 3.1, 9.2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyturn.crypto import BODY_CONTEXT, seal
from keyturn.errors import CorruptObjectError, KeyturnError, NotFoundError, RangeNotSatisfiableError
from keyturn.gateway import ObjectInfo
from keyturn.open import DecryptedObject
from tests.unit.keyturn.gateway.gateway import always, object_of
from tests.unit.keyturn.open.storage import HEADERS, Made, made, opening, read_body

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


CHUNK, SEALED_CHUNK, HEADER = 16384, 16400, 56
OBJECT = made(5 * CHUNK + 100)
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 50_000)


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_whole_objects_by_one_request(size_bytes: int) -> None:
    stored = made(size_bytes)
    async with opening(object_of(stored.body, HEADERS), stored.metadata) as (opened, storage):
        assert (opened.size_bytes, opened.length) == (size_bytes, size_bytes)
        assert opened.etag == f'"{stored.body[24:56].hex()}"'
        assert await opened.read() == stored.plaintext
        assert await opened.read() == b""
    assert [seen.headers.get("Range") for seen in storage.seen] == [None]


@pytest.mark.parametrize("size_bytes", SIZES)
@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (0, CHUNK), (1, None), (CHUNK - 1, 2), (CHUNK, None), (-1, None), (-CHUNK, None)],
)
async def test_ranges(size_bytes: int, start: int, length: int | None) -> None:
    stored = made(size_bytes)
    end = None if length is None else start + length
    if start >= size_bytes and start >= 0:
        with pytest.raises(RangeNotSatisfiableError):
            await read_body(stored.body, stored.metadata, start, length)
        return
    expected = stored.plaintext[start:end]
    assert await read_body(stored.body, stored.metadata, start, length) == expected


async def test_a_range_fetches_the_header_its_chunks_and_the_last_chunk_alone() -> None:
    answer = object_of(OBJECT.body, HEADERS)
    async with opening(answer, OBJECT.metadata, 2 * CHUNK + 5, CHUNK) as (opened, storage):
        assert (opened.size_bytes, opened.length) == (len(OBJECT.plaintext), CHUNK)
        assert await opened.read() == OBJECT.plaintext[2 * CHUNK + 5 :][:CHUNK]
    ranges = {seen.headers.get("Range") for seen in storage.seen}
    at, last = HEADER + 2 * SEALED_CHUNK, HEADER + 5 * SEALED_CHUNK
    assert ranges == {
        f"bytes=0-{HEADER + SEALED_CHUNK - 1}",
        f"bytes={at}-{at + 2 * SEALED_CHUNK - 1}",
        f"bytes={last}-{len(OBJECT.body) - 1}",
    }


def changed(how: str) -> bytes:
    chunks = [OBJECT.body[at : at + SEALED_CHUNK] for at in range(HEADER, 1 << 17, SEALED_CHUNK)]
    header, chunks = OBJECT.body[:HEADER], [chunk for chunk in chunks if chunk]
    bodies: dict[str, Callable[[], bytes]] = {
        "chunks swapped": lambda: header + b"".join([chunks[1], chunks[0], *chunks[2:]]),
        "a chunk left out": lambda: header + b"".join(chunks[:2] + chunks[3:]),
        "a chunk twice": lambda: header + b"".join([*chunks[:2], *chunks[1:]]),
        "the last chunk left out": lambda: header + b"".join(chunks[:-1]),
        "cut at a chunk, with another tag": lambda: header + b"".join(chunks[:3]) + bytes(16),
        "another object's body": lambda: seal(os.urandom(32), BODY_CONTEXT, b"x" * 90_000),
        "the header alone": lambda: header,
        "cut in the header": lambda: header[:30],
        "nothing": lambda: b"",
        "a byte behind": lambda: OBJECT.body + b"\0",
    }
    return bodies[how]()


CHANGES = [
    "chunks swapped", "a chunk left out", "a chunk twice", "the last chunk left out",
    "cut at a chunk, with another tag", "another object's body", "the header alone",
    "cut in the header", "nothing", "a byte behind",
]  # fmt: skip


@pytest.mark.parametrize("how", CHANGES)
async def test_another_body_gives_a_beginning_at_most_and_no_clean_end(how: str) -> None:
    received = bytearray()

    async def read() -> None:
        async with opening(object_of(changed(how), HEADERS), OBJECT.metadata) as (opened, _):
            length = opened.length
            async for piece in opened.chunks():
                received.extend(piece)
                assert len(received) < length, "the stated length is reached before its proof"

    with pytest.raises(CorruptObjectError):
        await read()
    assert OBJECT.plaintext.startswith(bytes(received))


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(("start", "length"), [(0, 1), (CHUNK + 1, 10), (-20, None), (10**9, 1)])
async def test_no_range_of_another_body_is_wrong(how: str, start: int, length: int | None) -> None:
    """A range is right or refused; one behind the end is refused only after the proof."""
    try:
        received = await read_body(changed(how), OBJECT.metadata, start, length)
    except CorruptObjectError:
        return
    except RangeNotSatisfiableError:
        received = b""
    # The end is genuine, and so is this part of the object.
    assert how == "chunks swapped"
    assert received == OBJECT.plaintext[start:][:length]


async def test_a_range_that_another_chunk_is_in_is_refused() -> None:
    with pytest.raises(CorruptObjectError):
        await read_body(changed("chunks swapped"), OBJECT.metadata, CHUNK + 1, 10)


@pytest.mark.parametrize("start", [0, 5])
async def test_a_tombstone_is_not_found(start: int) -> None:
    headers = {**HEADERS, "x-amz-meta-enc-algo": "deleted"}
    with pytest.raises(NotFoundError):
        async with opening(object_of(b"", headers), OBJECT.metadata, start):
            pass


async def test_the_time_at_which_the_content_was_stored_outlives_a_rotation() -> None:
    metadata = {**OBJECT.metadata, "enc-stored-at": "2026-01-02T03:04:05.000000Z"}
    async with opening(object_of(OBJECT.body, HEADERS), metadata) as (opened, _):
        assert opened.last_modified is not None
        assert opened.last_modified.isoformat() == "2026-01-02T03:04:05+00:00"
        assert (opened.content_type, opened.metadata) == ("text/csv", {"author": "kim"})


async def test_a_body_of_no_stated_length_is_refused() -> None:
    with pytest.raises(KeyturnError, match="whole object was requested"):
        async with opening(always(206, OBJECT.body), OBJECT.metadata):
            pass


@st.composite
def damaged(draw: st.DrawFn, stored: Made = OBJECT) -> bytes:
    """A body with a bit flipped, cut, or with pieces exchanged; never the body itself."""
    body = bytearray(stored.body)
    kind = draw(st.sampled_from(["flip", "cut", "swap", "insert"]))
    at = draw(st.integers(0, len(body) - 1))
    if kind == "flip":
        body[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del body[at:]
    elif kind == "insert":
        body[at:at] = draw(st.binary(min_size=1, max_size=40))
    else:
        a, b = draw(st.permutations(range(5)))[:2]
        a, b = HEADER + a * SEALED_CHUNK, HEADER + b * SEALED_CHUNK
        body[a : a + SEALED_CHUNK], body[b : b + SEALED_CHUNK] = (
            body[b : b + SEALED_CHUNK],
            body[a : a + SEALED_CHUNK],
        )
    return bytes(body)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=damaged(), start=st.integers(-(6 * CHUNK), 6 * CHUNK))
async def test_no_damage_gives_wrong_plaintext(body: bytes, start: int) -> None:
    if body == OBJECT.body:  # a cut or an insertion can leave it as it is
        return
    with pytest.raises(CorruptObjectError):
        await read_body(body, OBJECT.metadata)
    try:
        received = await read_body(body, OBJECT.metadata, start)
    except (CorruptObjectError, RangeNotSatisfiableError):
        return
    assert received == OBJECT.plaintext[start:]


# An open object as its reader holds it.


INFO = ObjectInfo(10, "text/plain", {"author": "kim"}, '"c0ffee"', None)


async def pieces(*given: bytes | Exception) -> AsyncGenerator[bytes, None]:
    for piece in given:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_it_has_the_attributes_of_an_object_of_the_gateway() -> None:
    opened = DecryptedObject(INFO, 6, pieces(b"abc", b"def"))
    assert (opened.size_bytes, opened.length, opened.content_type) == (10, 6, "text/plain")
    assert (opened.metadata, opened.etag) == ({"author": "kim"}, '"c0ffee"')
    assert opened.last_modified is None


async def test_a_second_call_continues_after_the_first() -> None:
    opened = DecryptedObject(INFO, 6, pieces(b"abc", b"def"))
    async for piece in opened.chunks():
        assert piece == b"abc"
        break
    assert await opened.read() == b"def"
    assert await opened.read() == b""


async def test_nothing_is_returned_of_an_object_that_does_not_end_well() -> None:
    opened = DecryptedObject(INFO, 6, pieces(b"abc", CorruptObjectError()))
    with pytest.raises(CorruptObjectError):
        await opened.read()
