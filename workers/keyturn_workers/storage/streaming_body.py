"""A streamed request body whose length is known beforehand (SPEC 7.2).

The newest piece is held back until the next one arrives, or the end. So a source that fails,
ends early or is too long never completes a body, and the storage stores nothing. The source's
own error is never swallowed.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

IDLE_TIMEOUT_S: Final = 60.0


class KnownLengthBody:
    """A body of exactly `size_bytes`.

    Args:
        chunks: The source. The caller closes it.
        size_bytes: The total length of the chunks.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size_bytes: int) -> None:
        self._chunks = chunks
        self.size_bytes = size_bytes
        self.failure: Exception | None = None

    async def read_all(self) -> bytes:
        """Read the whole body into memory, for the in-memory storage."""
        return b"".join([piece async for piece in self._checked()])

    async def with_idle_timeout(self, idle: asyncio.Timeout) -> AsyncIterator[bytes]:
        """Yield the pieces. `idle` runs only while the storage takes one, not for the source."""
        loop = asyncio.get_running_loop()
        try:
            idle.reschedule(None)
            async for piece in self._checked():
                idle.reschedule(loop.time() + IDLE_TIMEOUT_S)
                yield piece
                idle.reschedule(None)
            idle.reschedule(loop.time() + IDLE_TIMEOUT_S)
        except Exception as exc:
            # The HTTP client would wrap it; the caller must get it unchanged.
            self.failure = exc
            raise

    async def _checked(self) -> AsyncIterator[bytes]:
        held = b""
        seen_bytes = 0
        async for chunk in self._chunks:
            seen_bytes += len(chunk)
            if seen_bytes > self.size_bytes:
                raise ValueError("the body is longer than announced")
            if chunk:
                if held:
                    yield held
                held = chunk
        if seen_bytes != self.size_bytes:
            raise ValueError("the body is shorter than announced")
        if held:
            yield held
