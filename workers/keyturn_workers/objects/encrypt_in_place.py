"""The two effects that read a body: a v0 one checked, plaintext encrypted in its place (SPEC 8.2).

Both stream in bounded memory and pin the body by its ETag, so that what was read is what
the write then stands on.
"""

from collections.abc import AsyncIterator
from typing import Final

from keyturn.crypto import BODY_CONTEXT, SealError, Secret, V0Opener, seal, sealed_size
from keyturn.errors import BodyTooLargeError, CorruptObjectError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.body_stream import seal_stream
from keyturn_workers.objects.guards import recheck_state
from keyturn_workers.storage import Head, Headers, IfMatch, Storage

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
    storage: Storage,
    keyrings: KeyringReader,
    s3_key: str,
    head: Head,
    headers: Headers,
    dek: bytes,
    snapshot: KeyringSnapshot,
) -> None:
    """Replace plaintext by its own sealed body, in one put over the body that was read.

    `snapshot` is what the wraps in `headers` were made for. A streamed put may end long
    after its lease. A body of no bytes has the ETag of every tombstone, so that its condition
    would then bring back what was deleted, and told, meanwhile: it goes as one plain put,
    which is over within its lease.

    Raises:
        BodyTooLargeError: one put cannot hold it.
        PreconditionError, MissingError: another body, or none, stands there now, or the
            desired state moved meanwhile.
        RefusedError: it came after its lease.
    """
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
    """The pieces, the last of them only if the desired state is still the one that they serve.

    The lease bounds when a body begins, not when it ends: a large one could otherwise land,
    under wraps that are past, long after a sweep has proven that there are none.
    """
    held: bytes | None = None
    async for piece in pieces:
        if held is not None:
            yield held
        held = piece
    await recheck_state(keyrings, snapshot)
    if held is not None:
        yield held
