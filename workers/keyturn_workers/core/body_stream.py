"""Sealing and reading an object's body as a stream (SPEC 3, 4.2). No I/O; bounded memory."""

from collections.abc import AsyncIterator

from keyturn.crypto.cobblestone import HEADER_BYTES, SALT_BYTES, Sealer
from keyturn.crypto.wraps import BODY_CONTEXT


async def seal_stream(plaintext: AsyncIterator[bytes], dek: bytes) -> AsyncIterator[bytes]:
    """Seal a plaintext under a DEK: the body of an object, piece by piece."""
    sealer = Sealer(dek, BODY_CONTEXT)
    yield sealer.header
    async for piece in plaintext:
        if sealed := sealer.update(piece):
            yield sealed
    yield sealer.finish()


def commitment_etag(start: bytes) -> str:
    """Return the ETag of an encrypted object, quoted: its header's commitment (SPEC 9.2)."""
    return f'"{start[SALT_BYTES:HEADER_BYTES].hex()}"'


async def read_first_bytes(pieces: AsyncIterator[bytes]) -> bytes:
    """Read pieces until the body's header is complete; fewer bytes if the body is shorter."""
    start = b""
    async for piece in pieces:
        start += piece
        if len(start) >= HEADER_BYTES:
            break
    return start
