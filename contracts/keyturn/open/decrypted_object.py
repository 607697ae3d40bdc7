"""One object while it is read and decrypted here: its size, and its plaintext (SPEC 9.2)."""

from collections.abc import AsyncGenerator, Mapping
from datetime import datetime

from keyturn.gateway.responses import ObjectInfo


class DecryptedObject:
    """An object, or a range of one, whose plaintext is still to be read. Made by `Reader.open`.

    Args:
        info: Its size and metadata.
        length: Bytes of plaintext to come: of the whole object, or of the range.
        plaintext: These bytes, in authentic pieces.
    """

    def __init__(
        self, info: ObjectInfo, length: int, plaintext: AsyncGenerator[bytes, None]
    ) -> None:
        self.info = info
        self.length = length
        self._pieces = plaintext

    @property
    def size_bytes(self) -> int:
        """Length of the whole object's plaintext.

        Proven if a range is read. If the whole object is read, it is proven at the end: until then
        it is what the storage states.
        """
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
        """The gateway's ETag of this object, with its quotes; no rotation changes it."""
        return self.info.etag

    @property
    def last_modified(self) -> datetime | None:
        """When its content was stored; no rotation changes it. Not authenticated."""
        return self.info.last_modified

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The plaintext in pieces of any size, once; a second call continues after the first.

        Every piece is authentic when it is yielded. The pieces are the whole object, or range,
        only if the iteration ends without an error.

        Raises:
            CorruptObjectError: the stored bytes do not authenticate, or are cut.
            IncompleteBodyError: the connection broke, again and again.
            LinkExpiredError: it broke, and the link has expired.
            NotFoundError: the object was deleted meanwhile.
            StorageUnavailableError: the storage fails.
        """
        async for piece in self._pieces:
            yield piece

    async def read(self) -> bytes:
        """The rest of the plaintext, all of it in memory.

        Raises:
            CodedError, GatewayError: as `chunks`; nothing is returned.
        """
        return b"".join([piece async for piece in self.chunks()])
