"""Reads an object of the earlier system (SPEC 4.6, 9.3).

Its body is one AES-256-GCM message, so it is opened whole before its first byte is sent. How
large such an object may be, and how many are open at once, is limited: of one project, and in all.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from keyturn.crypto import V0_OVERHEAD_BYTES, v0_open
from keyturn.errors import BodyTooLargeError
from keyturn_workers.gateway.fair_shares import ProjectSlots
from keyturn_workers.gateway.object_reader import PIECE_BYTES, Pieces, seal_errors_as_corrupt
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.storage import ObjectHead, Storage

# Decrypting more than this would block the event loop.
_IN_THREAD_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class LegacyReader:
    """Opens one object of the earlier system.

    Args:
        head: What the storage says about the object.
        decrypt: Fetches the body and returns the plaintext. Errors as `ObjectReader.verify`.
    """

    head: ObjectHead
    decrypt: Callable[[], Awaitable[bytes]] = field(repr=False)
    _plaintext: bytes | None = field(default=None, repr=False)

    @property
    def etag(self) -> str:
        """The storage's ETag."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """The size of the plaintext, by the stored length."""
        return max(self.head.size_bytes - V0_OVERHEAD_BYTES, 0)

    async def verify(self, prefetch: Span | None = None) -> None:
        """Open the object. See `ObjectReader`."""
        del prefetch
        if self._plaintext is None:
            self._plaintext = await self.decrypt()

    async def read_range(self, span: Span) -> Pieces:
        """Yield the plaintext of a range. See `ObjectReader`."""
        await self.verify()
        view = memoryview(self._plaintext or b"")[span.first : span.end]
        for at in range(0, len(view), PIECE_BYTES):
            yield view[at : at + PIECE_BYTES]

    def read_all(self) -> Pieces:
        """Yield the whole plaintext. See `ObjectReader`."""
        return self.read_range(Span(0, self.size_bytes))


class LegacyDecrypter:
    """Decrypts bodies of the earlier system, a few at a time.

    Args:
        storage: The bucket.
        slots: Limits how many are in memory at once.
        max_bytes: The largest stored body.
    """

    def __init__(self, storage: Storage, slots: ProjectSlots, *, max_bytes: int) -> None:
        self._storage = storage
        self._slots = slots
        self._max_bytes = max_bytes

    async def decrypt(
        self, project: str, s3_key: str, head: ObjectHead, dek: bytes, stack: AsyncExitStack
    ) -> bytes:
        """Fetch the body and return its plaintext.

        The slot is released when `stack` is closed: the plaintext is in memory until the
        response is sent.

        Raises:
            BodyTooLargeError: the body is too large.
            CorruptObjectError: it does not authenticate.
            TooManyRequestsError: the project has its share of them open.
            GatewayBusyError: no slot became free.
            StorageUnavailableError: the storage failed.
            PreconditionError: the object was replaced.
        """
        if head.size_bytes > self._max_bytes:
            raise BodyTooLargeError(
                f"an object of the earlier system is opened whole, up to {self._max_bytes} bytes"
            )
        await stack.enter_async_context(self._slots.hold(project))
        async with self._storage.stream(s3_key, if_match=head.etag) as stream:
            sealed = b"".join([piece async for piece in stream.chunks(PIECE_BYTES)])
        with seal_errors_as_corrupt():
            if len(sealed) > _IN_THREAD_BYTES:
                return await asyncio.to_thread(v0_open, dek, sealed)
            return v0_open(dek, sealed)
