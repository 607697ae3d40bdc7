"""What stands where an upload wants to go (SPEC 7.1, 7.2).

Every second look at a target goes through here: a second delivery, a retry, a put that
was refused because something stands, a staged body that is gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from contracts import metadata as object_metadata
from contracts.errors import (
    AlreadyExistsError,
    CorruptObjectError,
    DeletedKeyError,
    UnknownAlgorithmError,
)
from contracts.messages import InlineBody, StagedBody, UploadRequested
from contracts.metadata import DELETED, UPLOAD, Plaintext, Wraps
from contracts.names import object_key
from contracts.sealing import HEADER_BYTES, ChunkError, Secret, b64_decode, plaintext_size
from workers.envelope import verify_own
from workers.errors import MissingError
from workers.keyring import KeyringReader, Observed
from workers.storage import Head, Storage


@dataclass(frozen=True, slots=True)
class Standing:
    """This upload's own object: `size_bytes` of plaintext, made for `observed`.

    Verified, but for `unsealed`: plaintext that carries this upload's id and is as long as
    its body, where `observed` forbids plaintext. That proves nothing about its bytes; it is
    to be replaced by the request's own body, over its ETag, never sealed as it stands.
    `current` is False where the object is not as `observed` wants it.
    """

    size_bytes: int
    etag: str
    observed: Observed
    current: bool
    unsealed: bool = False


async def look(
    request: UploadRequested,
    storage: Storage,
    keyrings: KeyringReader,
    master_keys: Mapping[str, Secret],
) -> Standing | None:
    """This upload's own object, or None where nothing stands.

    Raises:
        DeletedKeyError: a tombstone stands there.
        AlreadyExistsError: another object stands there.
        CorruptObjectError: it carries this upload's id, but does not verify.
    """
    try:
        head, header = await storage.read_start(
            object_key(request.project, request.key), HEADER_BYTES
        )
    except MissingError:
        return None
    if head.metadata.get(object_metadata.ALGO) == DELETED:
        raise DeletedKeyError(f"{request.key} was deleted")
    if head.metadata.get(UPLOAD) != request.upload_id:
        raise AlreadyExistsError(f"{request.key} holds another object")
    # Read after the object: only then does a higher generation in it mean anything.
    observed = await keyrings.fresh(request.project)
    return _verified(request, head, header, observed, master_keys)


def _verified(
    request: UploadRequested,
    head: Head,
    header: bytes,
    observed: Observed,
    master_keys: Mapping[str, Secret],
) -> Standing:
    try:
        envelope = object_metadata.parse(head.metadata)
    except UnknownAlgorithmError as exc:
        raise CorruptObjectError(f"unknown algorithm {exc.detail}") from exc
    match envelope:
        case Plaintext() if observed.desired.plaintext_allowed:
            return Standing(head.size_bytes, head.etag, observed, current=True)
        case Plaintext() if head.size_bytes == _requested_size(request):
            # Put while plaintext was allowed, by a delivery that died before it was told.
            # Of another length, it is a sealed body whose metadata was stripped, or forged.
            return Standing(head.size_bytes, head.etag, observed, current=False, unsealed=True)
        case Wraps():
            examined = verify_own(envelope, header, request.key, observed.keyring, master_keys)
            return Standing(_plaintext_size(head), head.etag, observed, examined.current)
        case _:
            raise CorruptObjectError("it carries this upload's id, but not its wraps")


def _plaintext_size(head: Head) -> int:
    try:
        return plaintext_size(head.size_bytes)
    except ChunkError as exc:
        raise CorruptObjectError("no sealed body has this length") from exc


def _requested_size(request: UploadRequested) -> int | None:
    """The bytes of plaintext in the request's body, by the length of its seal."""
    match request.body:
        case InlineBody(inline=inline):
            sealed_bytes = len(b64_decode(inline))
        case StagedBody(staged=staged):
            sealed_bytes = staged.size
    try:
        return plaintext_size(sealed_bytes)
    except ChunkError:
        return None
