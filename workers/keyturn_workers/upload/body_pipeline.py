"""Streaming a body from the publisher's seal to the object's (SPEC 3, 7.2).

Only an inline body is held in memory completely. No byte is released before its chunk is
authenticated, so a body that was tampered with cuts the put short.
"""

import hashlib
from collections.abc import AsyncIterator
from typing import Final

from keyturn.crypto import (
    HEADER_BYTES,
    ChunkError,
    Opener,
    SealError,
    from_base64,
    open_sealed,
    plaintext_size,
    sealed_size,
    transport_context,
)
from keyturn.errors import BadSealError, BodyTooLargeError
from keyturn.messages import INLINE_MAX_BYTES, InlineBody

PIECE_BYTES: Final = 1024 * 1024
_INLINE_MAX_SEALED_BYTES: Final = sealed_size(INLINE_MAX_BYTES)


def open_inline(body: InlineBody, transport_key: bytes, upload_id: str) -> bytes:
    """The plaintext of an inline body.

    Raises:
        BodyTooLargeError: above 256 KiB of plaintext.
        BadSealError: sealed for another upload, or damaged.
    """
    sealed = from_base64(body.inline)
    if len(sealed) > _INLINE_MAX_SEALED_BYTES:
        raise BodyTooLargeError(f"an inline body has at most {INLINE_MAX_BYTES} bytes of plaintext")
    try:
        return open_sealed(transport_key, transport_context(upload_id), sealed)
    except SealError as exc:
        raise BadSealError("the body does not open for this upload") from exc


def staged_plaintext_size(sealed_bytes: int, max_bytes: int) -> int:
    """The bytes of plaintext in a staged body of this size.

    Raises:
        BodyTooLargeError: above the limit for sealed bodies.
        BadSealError: no sealed body has this size.
    """
    if sealed_bytes > max_bytes:
        raise BodyTooLargeError(f"a staged body has at most {max_bytes} bytes")
    try:
        return plaintext_size(sealed_bytes)
    except ChunkError as exc:
        raise BadSealError("no sealed body has this size") from exc


async def decrypt_stream(
    sealed: AsyncIterator[bytes], secret: bytes, context: bytes
) -> AsyncIterator[bytes]:
    """The plaintext of a sealed body, in authenticated pieces.

    Args:
        sealed: the body.
        secret: the 32 bytes that it is sealed under.
        context: what it is bound to.

    Raises:
        BadSealError: sealed under another key or context, or damaged; at its end at the latest.
    """
    try:
        header = bytearray()
        opener: Opener | None = None
        async for piece in sealed:
            rest: bytes | memoryview = piece
            if opener is None:
                missing = HEADER_BYTES - len(header)
                header += piece[:missing]
                if len(header) < HEADER_BYTES:
                    continue
                opener = Opener(secret, context, bytes(header))
                rest = memoryview(piece)[missing:]
            if plaintext := opener.update(rest):
                yield plaintext
        if opener is None:
            raise BadSealError("the body is shorter than its header")
        yield opener.finish()
    except SealError as exc:
        raise BadSealError("the body does not open for this upload") from exc


async def digest(pieces: AsyncIterator[bytes]) -> bytes:
    """SHA-256 of a body, to compare bodies of any size."""
    hashed = hashlib.sha256()
    async for piece in pieces:
        hashed.update(piece)
    return hashed.digest()


async def split_into_parts(pieces: AsyncIterator[bytes], part_bytes: int) -> AsyncIterator[bytes]:
    """The same bytes in parts of exactly `part_bytes`; the last one may be shorter."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        while len(buffer) >= part_bytes:
            yield bytes(memoryview(buffer)[:part_bytes])
            del buffer[:part_bytes]
    if buffer:
        yield bytes(buffer)
