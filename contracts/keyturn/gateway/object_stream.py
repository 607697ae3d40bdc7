"""One object while it is read through the gateway (SPEC 9.2).

A body is yielded as it arrives and ends cleanly only if all of it arrived: the only sign of a
chunk that does not authenticate is that the gateway ends the connection.
"""

from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from keyturn.errors import IncompleteBodyError
from keyturn.gateway.responses import ObjectInfo
from keyturn.gateway.transport import next_piece

if TYPE_CHECKING:
    import aiohttp


class OpenObject:
    """An object, or a range of one, whose body is still to be read. Made by `Client.open`.

    Args:
        info: Its size and metadata.
        length: Bytes of plaintext to come: of the whole object, or of the range.
        response: The open response; its owner closes it.
    """

    def __init__(self, info: ObjectInfo, length: int, response: "aiohttp.ClientResponse") -> None:
        self.info = info
        self.length = length
        self._answer = response
        self._left_bytes = length

    @property
    def size_bytes(self) -> int:
        """Length of the whole object's plaintext."""
        return self.info.size_bytes

    @property
    def content_type(self) -> str | None:
        """As stored; not authenticated."""
        return self.info.content_type

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's own, decoded; not authenticated."""
        return self.info.metadata

    @property
    def etag(self) -> str | None:
        """As sent, with its quotes; no rotation changes it."""
        return self.info.etag

    @property
    def last_modified(self) -> datetime | None:
        """When its content was stored; no rotation changes it."""
        return self.info.last_modified

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces of any size, once; a second call continues where the first stopped.

        Every piece is authentic when it is yielded. The pieces are the whole object, or range,
        only if the iteration ends without an error.

        Raises:
            IncompleteBodyError: the body ended before its length, or stalled.
        """
        while self._left_bytes:
            piece = await next_piece(self._answer)
            if not piece:
                raise IncompleteBodyError("the body ended before its length")
            self._left_bytes -= len(piece)
            yield piece

    async def read(self) -> bytes:
        """The rest of the body, all of it in memory.

        Raises:
            IncompleteBodyError: as `chunks`; nothing is returned.
        """
        return b"".join([piece async for piece in self.chunks()])
