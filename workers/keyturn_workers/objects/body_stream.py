"""An object's body piece by piece (SPEC 3, 4.2). No I/O of its own; bounded memory."""

from collections.abc import AsyncIterator

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, Sealer


async def seal_stream(plaintext: AsyncIterator[bytes], dek: bytes) -> AsyncIterator[bytes]:
    """The body of an object: its plaintext, sealed under its DEK."""
    sealer = Sealer(dek, BODY_CONTEXT)
    yield sealer.header
    async for piece in plaintext:
        if sealed := sealer.update(piece):
            yield sealed
    yield sealer.finish()


async def read_first_bytes(pieces: AsyncIterator[bytes]) -> bytes:
    """The first of a body's pieces, at least its header where it has so many bytes."""
    start = b""
    async for piece in pieces:
        start += piece
        if len(start) >= HEADER_BYTES:
            break
    return start
