"""What an open object says of itself, and that its plaintext is read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.errors import CorruptObjectError
from keyturn.gateway import ObjectInfo
from keyturn.open import DecryptedObject

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

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
