"""An object's body sealed piece by piece (SPEC 3, 4.2). No I/O of its own; bounded memory."""

from collections.abc import AsyncIterator

from contracts.sealing import BODY_CONTEXT, Sealer


async def sealed_pieces(plaintext: AsyncIterator[bytes], dek: bytes) -> AsyncIterator[bytes]:
    """The body of an object: its plaintext, sealed under its DEK."""
    sealer = Sealer(dek, BODY_CONTEXT)
    yield sealer.header
    async for piece in plaintext:
        if sealed := sealer.update(piece):
            yield sealed
    yield sealer.finish()
