"""A body in any form is a stream of small blocks."""

from __future__ import annotations

import io
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.publisher.staging import BLOCK_BYTES, blocks, head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def _stream(*pieces: Any) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


async def _gathered(body: Any) -> list[bytes]:
    async with aclosing(blocks(body)) as source:
        return [bytes(block) async for block in source]


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1])
async def test_every_form_gives_the_same_bytes_in_blocks(size: int, tmp_path: Path) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]
    path = tmp_path / "body"
    path.write_bytes(data)
    wide = memoryview(data[: size - size % 4]).cast("I") if size >= 4 else memoryview(b"")
    forms = [data, bytearray(data), memoryview(data), path, io.BytesIO(data), _stream(data)]
    for body in forms:
        found = await _gathered(body)
        assert b"".join(found) == data
        assert all(0 < len(block) <= BLOCK_BYTES for block in found)
    assert b"".join(await _gathered(wide)) == data[: size - size % 4]


async def test_empty_pieces_of_a_stream_do_not_end_it() -> None:
    assert await _gathered(_stream(b"", b"a", b"", memoryview(b"b"), b"")) == [b"a", b"b"]


async def test_files_are_read_in_a_thread_and_left_open() -> None:
    class Watched(io.BytesIO):
        threads: set[int]

        def read(self, size: int | None = -1, /) -> bytes:
            self.threads.add(threading.get_ident())
            assert size == BLOCK_BYTES
            return super().read(size)

    file = Watched(b"abc")
    file.threads = set()
    assert await _gathered(file) == [b"abc"]
    assert file.threads
    assert threading.get_ident() not in file.threads
    assert not file.closed  # it is the caller's


@pytest.mark.parametrize("body", ["text", 7, None, [b"a"], _stream("text"), io.StringIO("text")])
async def test_what_is_no_bytes_is_a_type_error(body: Any) -> None:
    with pytest.raises(TypeError, match="a body"):
        await _gathered(body)


@pytest.mark.parametrize(("size", "is_complete"), [(0, True), (9, True), (10, True), (11, False)])
async def test_head_says_whether_the_limit_was_exceeded(size: int, is_complete: bool) -> None:
    data = bytes(range(size))
    async with aclosing(blocks(_stream(*(data[i : i + 3] for i in range(0, size, 3))))) as source:
        first, ended = await head(source, 10)
        rest = b"".join([bytes(block) async for block in source])
    assert ended is is_complete
    assert bytes(first) + rest == data
