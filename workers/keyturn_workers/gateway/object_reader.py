"""What the three kinds of readers have in common (SPEC 3.1, 4, 9.2).

    EncryptedReader   Cobblestone-256: decrypted chunk by chunk, as the storage sends it
    LegacyReader      an object of the earlier system: opened whole before its first byte is sent
    PlaintextReader   stored without encryption: sent as it is, where the keyring allows that

`ObjectOpener` decides which one an object needs. A reader never returns a byte of a chunk that
is not authenticated, nor the last piece of an object before its end is.
"""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Final, Protocol

from keyturn.crypto import HEADER_BYTES, SALT_BYTES, SealError
from keyturn.errors import CorruptObjectError
from keyturn.metadata import stored_at
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.storage import ObjectHead

Piece = bytes | bytearray | memoryview
Pieces = AsyncGenerator[Piece, None]

PIECE_BYTES: Final = 256 * 1024
"""The size of pieces that are not chunks: large enough to be fast, and bounded for slow clients."""


class ObjectReader(Protocol):
    """Reads the plaintext of one object."""

    @property
    def head(self) -> ObjectHead:
        """What the storage says about the object."""
        ...

    @property
    def etag(self) -> str:
        """The ETag for HTTP, quoted."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size of the plaintext, by the stored length. `verify` proves it."""
        ...

    async def verify(self, prefetch: Span | None = None) -> None:
        """Prove the size. Once it has returned, it does nothing.

        Args:
            prefetch: A range that will be read next; it may be fetched at the same time.

        Raises:
            CorruptObjectError: the object does not authenticate.
            BodyTooLargeError: it is too large to be opened whole.
            NotFoundError: it has been deleted.
            StorageUnavailableError: the storage failed, the object was replaced, or too many
                objects are open.
        """
        ...

    def read_range(self, span: Span) -> Pieces:
        """Yield the plaintext of a range. Call `verify` first. Errors as `verify`."""
        ...

    def read_all(self) -> Pieces:
        """Yield the whole plaintext; the last piece proves the size. Errors as `verify`."""
        ...


def content_modified_at(head: ObjectHead) -> datetime:
    """Return when the object's content was stored, which no rotation changes (SPEC 4.3, 9.2)."""
    return stored_at(head.metadata, head.last_modified) or head.last_modified


def commitment_etag(start: bytes) -> str:
    """Return the ETag of an encrypted object, quoted: its header's commitment (SPEC 9.2)."""
    return f'"{start[SALT_BYTES:HEADER_BYTES].hex()}"'


class seal_errors_as_corrupt:  # noqa: N801  # a context manager, cheaper than a generator on the hot path
    """Raise CorruptObjectError in place of the crypto package's SealError."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is not None and issubclass(kind, SealError):
            raise CorruptObjectError("the body does not authenticate") from error  # type: ignore[misc]
