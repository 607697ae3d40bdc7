"""Keyturn's own records in the bucket: sealed JSON, changed only by conditional puts (SPEC 5.1).

A bucket reader cannot read a record and a bucket writer cannot forge one: each is sealed under
the project's record KEK and bound to its S3 key. The modules of keyrings and of sweeps define
what the sealed part means.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from keyturn.crypto import (
    SealError,
    Secret,
    from_base64,
    open_record,
    seal_record,
    to_base64,
)
from keyturn.errors import (
    CorruptObjectError,
    MalformedRequestError,
    StorageUnavailableError,
)
from keyturn.identifiers import is_short_name
from keyturn.messages import load_json
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import Condition, Headers, IfAbsent, IfMatch, Storage

_VERSION: Final = 1
_HEADERS: Final = Headers(metadata={}, content_type="application/json")


def seal(s3_key: str, project: str, master_key: str, rest: Mapping[str, Any], kek: Secret) -> bytes:
    """The bytes of a record for this S3 key, sealed under the project's record KEK. Pure."""
    sealed = seal_record(kek, s3_key, json.dumps(rest).encode())
    record = {
        "v": _VERSION,
        "project": project,
        "master_key": master_key,
        "sealed": to_base64(sealed),
    }
    return json.dumps(record).encode()


async def build(
    s3_key: str,
    project: str,
    master_key: str,
    rest: Mapping[str, Any],
    keys: OperatorKeys,
) -> bytes:
    """The bytes of a record for this S3 key, sealed under the named master key.

    Raises:
        UnknownMasterKeyError: this process lacks it.
        KmsUnavailableError: its provider is away.
    """
    return seal(s3_key, project, master_key, rest, await keys.record_kek(master_key, project))


def read_outer(body: bytes, project: str) -> tuple[str, bytes]:
    """The id of the master key that a record names, and its sealed part. Pure.

    Raises:
        CorruptObjectError: not a record of this project.
    """
    try:
        return _outer(load_json(body), project)
    except (MalformedRequestError, ValueError, TypeError) as exc:
        raise CorruptObjectError("not a record of this project") from exc


def open_sealed_part(sealed: bytes, s3_key: str, kek: Secret) -> dict[str, Any]:
    """What a record's sealed part holds. Pure.

    Raises:
        CorruptObjectError: it does not open under this record KEK, or at this S3 key.
    """
    try:
        return load_json(open_record(kek, s3_key, sealed))
    except (SealError, MalformedRequestError):
        # No cause: the opened record may contain keys, and an exception may repeat them.
        raise CorruptObjectError("a record that does not open") from None


async def parse(
    body: bytes, s3_key: str, project: str, keys: OperatorKeys
) -> tuple[str, dict[str, Any]]:
    """The id of the master key that a record names, and its opened part.

    One that does not open under a KEK from the cache is tried once under a fresh one (SPEC 2.2).

    Raises:
        UnknownMasterKeyError: this process lacks that master key.
        KmsUnavailableError: its provider is away.
        CorruptObjectError: forged, moved, of another project, or damaged.
    """
    master_key, sealed = read_outer(body, project)
    kek = await keys.record_kek(master_key, project)
    try:
        return master_key, open_sealed_part(sealed, s3_key, kek)
    except CorruptObjectError:
        fresh = await keys.fresh_record_kek(master_key, project)
        if fresh is None:
            raise
    return master_key, open_sealed_part(sealed, s3_key, fresh)


def _outer(record: Mapping[str, Any], project: str) -> tuple[str, bytes]:
    """The master key's id and the sealed part of a record."""
    if record.keys() != {"v", "project", "master_key", "sealed"}:
        raise ValueError("fields")
    if (type(record["v"]), record["v"], record["project"]) != (int, _VERSION, project):
        raise ValueError("version or project")
    if not is_short_name(record["master_key"]):
        raise ValueError("master key")
    return record["master_key"], from_base64(record["sealed"])


async def reseal(
    storage: Storage,
    s3_key: str,
    project: str,
    master_key: str,
    keys: OperatorKeys,
) -> bool:
    """Seal a record under another master key; False if it changed meanwhile, or is gone.

    Raises:
        UnknownMasterKeyError: this process lacks its master key, or the new one.
        KmsUnavailableError: a provider is away.
        CorruptObjectError: it was forged, moved or damaged.
        StorageUnavailableError: the outcome is unknown.
    """
    try:
        head, body = await storage.read(s3_key)
    except MissingError:
        return False
    name, rest = await parse(body, s3_key, project, keys)
    if name == master_key:
        return True
    resealed = await build(s3_key, project, master_key, rest, keys)
    return await replace(storage, s3_key, resealed, head.etag)


async def create(storage: Storage, s3_key: str, body: bytes) -> bool:
    """Put a new record; False if another one exists.

    Raises:
        StorageUnavailableError: the outcome is unknown, and no record exists.
    """
    return await _write(storage, s3_key, body, IfAbsent())


async def replace(storage: Storage, s3_key: str, body: bytes, etag: str) -> bool:
    """Replace a record that was read with this ETag; False if it changed meanwhile, or is gone.

    Raises:
        StorageUnavailableError: the outcome is unknown, and the record is unchanged.
    """
    return await _write(storage, s3_key, body, IfMatch(etag))


async def _write(storage: Storage, s3_key: str, body: bytes, condition: Condition) -> bool:
    try:
        await storage.put(s3_key, body, _HEADERS, condition=condition)
    except (PreconditionError, MissingError):
        return await _has_bytes(storage, s3_key, body)
    except RefusedError as exc:
        raise StorageUnavailableError("the storage refuses to write a record") from exc
    except StorageUnavailableError:
        # Some servers answer 500 to the loser of a race, and a winner's response may be lost.
        # No two seals are equal, so the stored bytes show who wrote them.
        if await _has_bytes(storage, s3_key, body):
            return True
        if await _is_unchanged(storage, s3_key, condition):
            raise
        return False
    return True


async def _has_bytes(storage: Storage, s3_key: str, body: bytes) -> bool:
    try:
        _, stored = await storage.read(s3_key)
    except MissingError:
        return False
    return stored == body


async def _is_unchanged(storage: Storage, s3_key: str, condition: Condition) -> bool:
    try:
        head = await storage.head(s3_key)
    except MissingError:
        return isinstance(condition, IfAbsent)
    return isinstance(condition, IfMatch) and head.etag == condition.etag
