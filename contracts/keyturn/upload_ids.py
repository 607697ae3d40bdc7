"""The ids of uploads that are derived from what is uploaded (SPEC 17.2, 18).

The same object always gives the same id, so it is stored once, whoever requests it, and however
often.
"""

import hashlib
import uuid

from keyturn.crypto.labels import label


def source_upload_id(deployment: str, source: str, key: str, etag: str, version: str = "") -> str:
    """Return the id of the upload of a source's object: a UUID of version 8 (SPEC 17.2).

    Args:
        deployment: The name of the deployment.
        source: The name of the source.
        key: The S3 key in the source's bucket.
        etag: As in a HEAD, without quotes.
        version: As in a HEAD; empty if the bucket keeps no versions.

    Raises:
        ValueError: one of them has a zero byte, or is not UTF-8.
    """
    return _derived_id("keyturn/v1/source", deployment, source, key, etag, version)


def copy_upload_id(deployment: str, project: str, to_project: str, key: str, etag: str) -> str:
    """Return the id of the upload of an object's copy: a UUID of version 8 (SPEC 18).

    Args:
        deployment: The name of the deployment of the copy.
        project: The project that is copied.
        to_project: The project of the copy.
        key: The object's key in both.
        etag: As a gateway gives it, with its quotes: no rotation changes it.

    Raises:
        ValueError: one of them has a zero byte, or is not UTF-8.
    """
    return _derived_id("keyturn/v1/copy", deployment, project, to_project, key, etag)


def _derived_id(purpose: str, *parts: str) -> str:
    named = label(purpose, *parts)
    first = bytearray(hashlib.sha256(named).digest()[:16])
    first[6] = first[6] & 0x0F | 0x80  # RFC 9562: the version, and the variant
    first[8] = first[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(first)))
