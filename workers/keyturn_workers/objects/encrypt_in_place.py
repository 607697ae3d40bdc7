"""The two actions that read a body: check a v0 body, encrypt plaintext in place (SPEC 8.2).

Both stream in bounded memory, and pin the body by its ETag: the write replaces what was read.
"""

from collections.abc import AsyncIterator
from typing import Final

from keyturn.crypto import BODY_CONTEXT, SealError, Secret, V0Opener, seal, sealed_size
from keyturn.errors import BodyTooLargeError, CorruptObjectError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.body_stream import seal_stream
from keyturn_workers.objects.guards import ObjectWrite, recheck_state
from keyturn_workers.storage import IfMatch, ObjectHead, Storage

PUT_MAX_BYTES: Final = 5 * 1024**3
"""What one put may hold on any server (SPEC 7.2)."""

_PIECE_BYTES: Final = 1024 * 1024


async def check_v0_body(storage: Storage, s3_key: str, head: ObjectHead, dek: Secret) -> None:
    """Open a whole v0 body under its DEK, and discard it: such a body does not commit to its key.

    Raises:
        CorruptObjectError: it does not open.
        PreconditionError, MissingError: the body was replaced or removed.
    """
    async with storage.stream(s3_key, if_match=head.etag) as source:
        try:
            opener = V0Opener(dek.reveal())
            async for piece in source.chunks(_PIECE_BYTES):
                opener.feed(piece)
            opener.finish()
        except SealError as exc:
            raise CorruptObjectError("the body does not open under the DEK of its wraps") from exc


def check_fits_one_put(head: ObjectHead) -> int:
    """The size in bytes of a plaintext object once it is sealed.

    Raises:
        BodyTooLargeError: one put cannot hold it.
    """
    size_bytes = sealed_size(head.size_bytes)
    if size_bytes > PUT_MAX_BYTES:
        raise BodyTooLargeError(f"sealed, it has {size_bytes} bytes; one put holds {PUT_MAX_BYTES}")
    return size_bytes


async def encrypt_plaintext(
    storage: Storage, keyrings: KeyringReader, write: ObjectWrite, dek: bytes
) -> None:
    """Replace plaintext by its sealed body, in one put conditional on the body that was read.

    A streamed put may end long after its lease. An empty body has the ETag of every tombstone,
    so the condition would let such a put bring back an object whose delete was published
    meanwhile: an empty body goes as one plain put, which ends within its lease.

    Raises:
        BodyTooLargeError: one put cannot hold it.
        PreconditionError, MissingError: the body was replaced or removed, or the desired state
            moved.
        RefusedError: the put came after its lease.
    """
    s3_key, head, headers, snapshot = write.s3_key, write.head, write.headers, write.snapshot
    size_bytes = check_fits_one_put(head)
    if head.size_bytes == 0:
        body = seal(dek, BODY_CONTEXT, b"")
        await storage.put(s3_key, body, headers, condition=IfMatch(head.etag), lease=snapshot.lease)
        return
    async with storage.stream(s3_key, if_match=head.etag) as source:
        await storage.put_stream(
            s3_key,
            _recheck_before_last_piece(
                seal_stream(source.chunks(_PIECE_BYTES), dek), keyrings, snapshot
            ),
            size_bytes,
            headers,
            condition=IfMatch(head.etag),
            lease=snapshot.lease,
        )


async def _recheck_before_last_piece(
    pieces: AsyncIterator[bytes], keyrings: KeyringReader, snapshot: KeyringSnapshot
) -> AsyncIterator[bytes]:
    """Pass the pieces on; the last one only if the desired state is unchanged.

    The lease bounds when a put begins, not when it ends. Without this check a large body could
    land under outdated wraps long after a sweep has proven that there are none.
    """
    pending: bytes | None = None
    async for piece in pieces:
        if pending is not None:
            yield pending
        pending = piece
    await recheck_state(keyrings, snapshot)
    if pending is not None:
        yield pending
