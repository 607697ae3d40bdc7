"""A streamed request body whose length is known beforehand (SPEC 7.2).

The newest piece is held back until the next one arrives, or the end. So a source that fails,
ends early or is too long never completes a body, and the storage stores nothing. The source's
own error is raised unchanged.
"""

from collections.abc import AsyncGenerator, AsyncIterator


class KnownLengthBody:
    """A body of exactly `size_bytes`. The caller closes the source of its `chunks`."""

    def __init__(self, chunks: AsyncIterator[bytes], size_bytes: int) -> None:
        self._chunks = chunks
        self.size_bytes = size_bytes

    async def read_all(self) -> bytes:
        """Read the whole body into memory, for the in-memory storage."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body.

        Raises:
            ValueError: the chunks have another length.
        """
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
