"""A streamed body of a length told beforehand (SPEC 7.2).

It holds the newest piece back until the next one is there, or the end: a source that
fails, ends early or runs over can then never complete a body, and the storage stores
nothing. It must never swallow the source's own error.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

IDLE_TIMEOUT_S: Final = 60.0


class KnownLengthBody:
    """Pieces of a body, counted.

    Args:
        chunks: The source. Its owner closes it.
        size_bytes: How much it gives in all.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size_bytes: int) -> None:
        self._chunks = chunks
        self.size_bytes = size_bytes
        self.failure: Exception | None = None

    async def read_all(self) -> bytes:
        """All of it in memory, for tests' storage."""
        return b"".join([piece async for piece in self._checked()])

    async def with_idle_timeout(self, idle: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The pieces; `idle` runs only while the storage takes one, never for the source."""
        loop = asyncio.get_running_loop()
        try:
            idle.reschedule(None)
            async for piece in self._checked():
                idle.reschedule(loop.time() + IDLE_TIMEOUT_S)
                yield piece
                idle.reschedule(None)
            idle.reschedule(loop.time() + IDLE_TIMEOUT_S)
        except Exception as exc:
            # The HTTP client would wrap it; the caller gets it back as it was.
            self.failure = exc
            raise

    async def _checked(self) -> AsyncIterator[bytes]:
        held = b""
        seen_bytes = 0
        async for chunk in self._chunks:
            seen_bytes += len(chunk)
            if seen_bytes > self.size_bytes:
                raise ValueError("the body is longer than it was said to be")
            if chunk:
                if held:
                    yield held
                held = chunk
        if seen_bytes != self.size_bytes:
            raise ValueError("the body is shorter than it was said to be")
        if held:
            yield held
