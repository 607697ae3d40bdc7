"""The format of Keyturn's own records in the bucket: sealed JSON (SPEC 5.1). Pure.

Each record is sealed under its project's record KEK, and bound to its S3 key.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.keys import Secret
from keyturn.crypto.wraps import open_record, seal_record
from keyturn.errors import (
    CorruptObjectError,
    MalformedRequestError,
    SealError,
    StorageUnavailableError,
)
from keyturn.identifiers import is_short_name
from keyturn.messages.json_text import load_json
from keyturn_workers.core.storage_values import Headers

RECORD_HEADERS: Final = Headers(metadata={}, content_type="application/json")
_VERSIONS: Final = (1, 2)


class UnknownRecordError(StorageUnavailableError):
    """A later release wrote the record: this process must neither read nor change it."""


def seal(
    s3_key: str,
    project: str,
    master_key: str,
    rest: Mapping[str, Any],
    kek: Secret,
    *,
    version: int = 1,
) -> bytes:
    """Build a record for this S3 key, sealed under the project's record KEK."""
    sealed = seal_record(kek, s3_key, json.dumps(rest).encode())
    record = {
        "v": version,
        "project": project,
        "master_key": master_key,
        "sealed": to_base64(sealed),
    }
    return json.dumps(record).encode()


def read_outer(body: bytes, project: str) -> tuple[str, bytes]:
    """Return the id of the master key that a record names, and its sealed part.

    Raises:
        CorruptObjectError: it is not a record of this project.
        UnknownRecordError: a later release wrote it.
    """
    try:
        record = load_json(body)
        version = record["v"]
        if type(version) is int and version > max(_VERSIONS):
            raise UnknownRecordError(
                f"a record of version {version}: a later release wrote it, so upgrade this process"
            )
        return _outer(record, project)
    except KeyError as exc:
        raise CorruptObjectError("not a record of this project") from exc
    except (MalformedRequestError, ValueError, TypeError) as exc:
        raise CorruptObjectError("not a record of this project") from exc


def version_of(body: bytes) -> int:
    """Return the version that a record names, which `read_outer` has checked."""
    version: int = load_json(body)["v"]
    return version


def _outer(record: Mapping[str, Any], project: str) -> tuple[str, bytes]:
    """The master key's id and the sealed part of a record."""
    if record.keys() != {"v", "project", "master_key", "sealed"}:
        raise ValueError("fields")
    if type(record["v"]) is not int or record["v"] not in _VERSIONS:
        raise ValueError("version")
    if record["project"] != project:
        raise ValueError("project")
    if not is_short_name(record["master_key"]):
        raise ValueError("master key")
    return record["master_key"], from_base64(record["sealed"])


def open_sealed_part(sealed: bytes, s3_key: str, kek: Secret) -> dict[str, Any]:
    """Open a record's sealed part.

    Raises:
        CorruptObjectError: it does not open under this record KEK, or at this S3 key.
    """
    try:
        return load_json(open_record(kek, s3_key, sealed))
    except (SealError, MalformedRequestError):
        # No cause: the opened record may contain keys, and an exception may repeat them.
        raise CorruptObjectError("a record that does not open") from None
