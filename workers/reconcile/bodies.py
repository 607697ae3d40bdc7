"""The two effects that read a body: a v0 one checked, plaintext encrypted in its place (SPEC 8.2).

Both stream in bounded memory and pin the body by its ETag, so that what was read is what
the write then stands on.
"""

from typing import Final

from contracts.errors import BodyTooLargeError, CorruptObjectError
from contracts.sealing import SealError, Secret, V0Opener, sealed_size
from workers.envelope.stream import sealed_pieces
from workers.storage import Head, Headers, IfMatch, Lease, Storage

PUT_MAX_BYTES: Final = 5 * 1024**3
"""What one put may hold on any server (SPEC 7.2)."""

_PIECE_BYTES: Final = 1024 * 1024


async def check_v0_body(storage: Storage, s3_key: str, head: Head, dek: Secret) -> None:
    """Open a v0 body whole under its DEK, and throw it away: it does not commit to its key.

    Raises:
        CorruptObjectError: it does not open.
        PreconditionError, MissingError: another body, or none, stands there now.
    """
    async with storage.stream(s3_key, if_match=head.etag) as source:
        try:
            opener = V0Opener(dek.reveal())
            async for piece in source.chunks(_PIECE_BYTES):
                opener.feed(piece)
            opener.finish()
        except SealError as exc:
            raise CorruptObjectError("the body does not open under the DEK of its wraps") from exc


def check_fits_one_put(head: Head) -> int:
    """The size in bytes that a plaintext object has once it is sealed.

    Raises:
        BodyTooLargeError: one put cannot hold it.
    """
    size_bytes = sealed_size(head.size_bytes)
    if size_bytes > PUT_MAX_BYTES:
        raise BodyTooLargeError(f"sealed, it has {size_bytes} bytes; one put holds {PUT_MAX_BYTES}")
    return size_bytes


async def encrypt(
    storage: Storage, s3_key: str, head: Head, headers: Headers, dek: bytes, lease: Lease
) -> None:
    """Replace plaintext by its own sealed body, in one put over the body that was read.

    Raises:
        BodyTooLargeError: one put cannot hold it.
        PreconditionError, MissingError: another body, or none, stands there now.
        RefusedError: it came after its lease.
    """
    size_bytes = check_fits_one_put(head)
    async with storage.stream(s3_key, if_match=head.etag) as source:
        await storage.put_stream(
            s3_key,
            sealed_pieces(source.chunks(_PIECE_BYTES), dek),
            size_bytes,
            headers,
            condition=IfMatch(head.etag),
            lease=lease,
        )
