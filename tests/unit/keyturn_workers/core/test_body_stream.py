"""Sealing and reading an object's body as a stream (SPEC 3, 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keyturn.crypto import BODY_CONTEXT, CHUNK_BYTES, HEADER_BYTES, new_dek, open_sealed
from keyturn_workers.core.body_stream import read_first_bytes, seal_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEK: Final = new_dek()
BODY: Final = bytes(range(256)) * 200


async def _cut(body: bytes, step: int, given: list[int] | None = None) -> AsyncIterator[bytes]:
    for start in range(0, len(body), step):
        if given is not None:
            given.append(start)
        yield body[start : start + step]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES, len(BODY)])
@pytest.mark.parametrize("step", [1000, CHUNK_BYTES, 10**6])
async def test_a_sealed_stream_opens_as_its_plaintext(size: int, step: int) -> None:
    pieces = [piece async for piece in seal_stream(_cut(BODY[:size], step), DEK)]
    assert open_sealed(DEK, BODY_CONTEXT, b"".join(pieces)) == BODY[:size]
    assert all(pieces)


async def test_a_plaintext_that_fails_leaves_a_stream_without_its_end() -> None:
    """What was sent of it opens nowhere."""

    async def broken() -> AsyncIterator[bytes]:
        yield BODY[: 2 * CHUNK_BYTES + 5]
        raise ValueError("of the plaintext")

    sent = bytearray()

    async def send() -> None:
        async for piece in seal_stream(broken(), DEK):
            sent.extend(piece)

    with pytest.raises(ValueError, match="of the plaintext"):
        await send()
    assert HEADER_BYTES < len(sent) < 3 * CHUNK_BYTES


@pytest.mark.parametrize("step", [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1])
async def test_no_more_is_read_than_the_header_needs(step: int) -> None:
    given: list[int] = []
    start = await read_first_bytes(_cut(BODY, step, given))
    assert BODY.startswith(start)
    assert HEADER_BYTES <= len(start) < HEADER_BYTES + step
    assert len(given) * step == len(start)


async def test_a_body_shorter_than_its_header_is_read_whole() -> None:
    short = BODY[: HEADER_BYTES - 1]
    assert await read_first_bytes(_cut(short, 10)) == short
    assert await read_first_bytes(_cut(b"", 10)) == b""
