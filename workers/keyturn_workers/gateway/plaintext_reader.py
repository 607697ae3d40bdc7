"""Reads an object that is stored without encryption (SPEC 4.5, 9.3)."""

from dataclasses import dataclass

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import MissingError, PreconditionError
from keyturn_workers.gateway.object_reader import PIECE_BYTES, Pieces
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.storage import ObjectHead, Storage


@dataclass(slots=True)
class PlaintextReader:
    """Streams one plaintext object.

    Args:
        storage: The bucket.
        s3_key: The object's S3 key.
        head: What the storage says about the object.
    """

    storage: Storage
    s3_key: str
    head: ObjectHead

    @property
    def etag(self) -> str:
        """The storage's ETag."""
        return f'"{self.head.etag}"'

    @property
    def size_bytes(self) -> int:
        """The stored length."""
        return self.head.size_bytes

    async def verify(self, prefetch: Span | None = None) -> None:
        """Do nothing: plaintext is not authenticated. See `ObjectReader`."""

    async def read_range(self, span: Span) -> Pieces:
        """Yield the bytes of a range of exactly this body. See `ObjectReader`."""
        if not span.length:
            return
        try:
            async with self.storage.stream(
                self.s3_key,
                start=span.first,
                length_bytes=span.length,
                if_match=self.head.etag,
            ) as stream:
                async for piece in stream.chunks(PIECE_BYTES):
                    yield piece
        except (PreconditionError, MissingError) as exc:
            raise StorageUnavailableError("the object changed while it was read") from exc

    def read_all(self) -> Pieces:
        """Yield the whole object. See `ObjectReader`."""
        return self.read_range(Span(0, self.head.size_bytes))
