"""Opens objects in the bucket with an API key alone, whether or not a gateway still admits it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, Opener, SealError, user_kek
from keyturn.errors import CorruptObjectError
from keyturn.identifiers import object_s3_key
from keyturn.open.unwrap import user_dek
from keyturn_workers.core.body_stream import read_first_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection

    from keyturn.crypto import Secret
    from keyturn_workers.core.storage_port import Storage

_READ_BYTES: Final = 2**20


async def read_with_api_key(
    storage: Storage,
    project: str,
    object_key: str,
    api_key: str,
    *,
    pepper: str = "",
    customer_secrets: Collection[Secret] = (),
) -> AsyncGenerator[bytes, None]:
    """Yield the plaintext of an object, opened by its user wrap.

    Raises:
        NoUsableWrapError: the API key, with these secrets, does not open the object.
        CorruptObjectError: the body or the metadata does not authenticate.
        NotFoundError: the object is a tombstone.
    """
    kek = user_kek(api_key, project, pepper)
    try:
        async with storage.stream(object_s3_key(project, object_key)) as stream:
            dek = user_dek(
                stream.head.metadata,
                kek,
                project=project,
                object_key=object_key,
                customer_secrets=customer_secrets,
            )
            pieces = stream.chunks(_READ_BYTES)
            start = await read_first_bytes(pieces)
            opener = Opener(dek, BODY_CONTEXT, start[:HEADER_BYTES])
            yield opener.update(start[HEADER_BYTES:])
            async for piece in pieces:
                yield opener.update(piece)
            yield opener.finish()
    except SealError as exc:
        raise CorruptObjectError("the body does not authenticate") from exc
