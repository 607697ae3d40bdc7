"""Sealed data in the bucket besides bodies: wraps, records, tombstones (SPEC 4.3 to 5.1).

Each is a small Cobblestone-256 message whose context names its kind and its location, so that a
copy elsewhere does not open. It must never decide which KEK to try, nor the meaning of a failure:
callers do.
"""

import hmac
from typing import Final, Literal, TypeAlias

from keyturn.crypto.cobblestone import open_sealed, seal, sealed_size
from keyturn.crypto.keys import DEK_BYTES, Kek
from keyturn.crypto.labels import label
from keyturn.errors import SealError

Role: TypeAlias = Literal["user", "admin"]
"""The owner of a wrap's KEK."""

BODY_CONTEXT: Final = b"keyturn/v1/body"
"""The context of an object's body (SPEC 4.2). It needs no more: a DEK has one body."""

WRAP_BYTES: Final = sealed_size(DEK_BYTES)
"""The length of a wrap: 104."""

UPLOAD_TAG_BYTES: Final = 16


def transport_context(upload_id: str) -> bytes:
    """Return the context of a body on its way to the workers (SPEC 6.4)."""
    return label("keyturn/v1/transport", upload_id)


def wrap_dek(
    kek: Kek,
    role: Role,
    *,
    algorithm: str,
    project: str,
    object_key: str,
    generation: int,
    dek: bytes,
) -> bytes:
    """Return `dek` (32 bytes) wrapped for the object `project`/`object_key` (SPEC 4.3).

    Args:
        kek: the user KEK or the admin KEK, by `role`.
        role: the owner of the wrap.
        algorithm: the object's `enc-algo`.
        project: the project's id.
        object_key: the object's key, without its project.
        generation: of the user KEK, for both wraps.
        dek: the object's data key.

    Raises:
        ValueError: the DEK is not 32 bytes long.
    """
    if len(dek) != DEK_BYTES:
        raise ValueError("a DEK is 32 bytes long")
    return seal(kek.reveal(), _dek_context(role, algorithm, project, object_key, generation), dek)


def unwrap_dek(
    kek: Kek,
    role: Role,
    *,
    algorithm: str,
    project: str,
    object_key: str,
    generation: int,
    wrap: bytes,
) -> bytes:
    """Return the DEK in a wrap made by `wrap_dek` with the same arguments.

    Raises:
        SealError: it does not open, or opens to anything but 32 bytes.
    """
    context = _dek_context(role, algorithm, project, object_key, generation)
    return _dek(open_sealed(kek.reveal(), context, wrap))


def upload_tag(
    dek: bytes, *, publisher: str, project: str, object_key: str, upload_id: str, size_bytes: int
) -> bytes:
    """Return the 16 bytes by which an upload recognizes its own object (SPEC 4.3).

    The DEK is the key: only a holder of one of the object's KEKs can make a tag, and an object
    relabeled to another upload's id, publisher or size does not verify.

    Args:
        dek: the object's data key, 32 bytes.
        publisher: the publisher that signed the upload's request.
        project: the project's id.
        object_key: the object's key, without its project.
        upload_id: the id of the upload.
        size_bytes: the size of the plaintext.
    """
    message = label("keyturn/v1/upload", publisher, project, object_key, upload_id, str(size_bytes))
    return hmac.digest(dek, message, "sha256")[:UPLOAD_TAG_BYTES]


def seal_record(kek: Kek, record_key: str, payload: bytes) -> bytes:
    """Return `payload` sealed for the record at S3 key `record_key` (SPEC 5.1)."""
    return seal(kek.reveal(), label("keyturn/v1/record", record_key), payload)


def open_record(kek: Kek, record_key: str, sealed: bytes) -> bytes:
    """Return the payload of the record at S3 key `record_key`.

    Raises:
        SealError: it does not open under this KEK, or was sealed for another S3 key.
    """
    return open_sealed(kek.reveal(), label("keyturn/v1/record", record_key), sealed)


def seal_tombstone(kek: Kek, project: str, object_key: str, time: str) -> bytes:
    """Return the proof that `project`/`object_key` was deleted at `time` (RFC 3339, SPEC 8.7)."""
    return seal(kek.reveal(), label("keyturn/v1/tombstone", project, object_key), time.encode())


def open_tombstone(kek: Kek, project: str, object_key: str, sealed: bytes) -> str:
    """Return the time at which `project`/`object_key` was deleted.

    Raises:
        SealError: it does not open under this admin KEK, or is not a tombstone of this object.
    """
    time = open_sealed(kek.reveal(), label("keyturn/v1/tombstone", project, object_key), sealed)
    try:
        return time.decode()
    except UnicodeDecodeError as exc:
        raise SealError from exc


def _dek_context(
    role: Role, algorithm: str, project: str, object_key: str, generation: int
) -> bytes:
    return label("keyturn/v1/dek", role, algorithm, project, object_key, str(generation))


def _dek(opened: bytes) -> bytes:
    # A holder of a KEK can wrap bytes of any length, and a short key must not be passed on.
    if len(opened) != DEK_BYTES:
        raise SealError
    return opened
