"""Sealing and reading an object's body as a stream (SPEC 3, 4.2). No I/O; bounded memory."""

from collections.abc import AsyncIterator, Awaitable, Callable

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


async def check_before_last_piece(
    pieces: AsyncIterator[bytes], check: Callable[[], Awaitable[object]]
) -> AsyncIterator[bytes]:
    """Pass the pieces on; the last one only after the check, whose error ends the body.

    The lease limits when a put begins, not when it ends. Without a check, a large body could be
    stored under outdated wraps long after a sweep has proven that there are none.
    """
    pending: bytes | None = None
    async for piece in pieces:
        if pending is not None:
            yield pending
        pending = piece
    await check()
    if pending is not None:
        yield pending


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
