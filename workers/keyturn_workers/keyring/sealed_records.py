"""Keyturn's own records in the bucket: sealed JSON, changed by conditional puts alone (SPEC 5.1).

A bucket reader cannot read one and a bucket writer cannot forge one: each is sealed under
the project's record KEK and bound to the S3 key at which it stands. What the sealed part
of a keyring or of a sweep's record means is their own business.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from keyturn.crypto import (
    SealError,
    Secret,
    b64,
    b64_decode,
    open_record,
    record_kek,
    seal_record,
)
from keyturn.errors import (
    CorruptObjectError,
    MalformedRequestError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import is_short_name
from keyturn.messages import load_json
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.storage import Condition, Headers, IfAbsent, IfMatch, Storage

_VERSION: Final = 1
_HEADERS: Final = Headers(metadata={}, content_type="application/json")


def require_master_key(master_keys: Mapping[str, Secret], name: str) -> bytes:
    """The 32 bytes of a master key.

    Raises:
        UnknownMasterKeyError: this process lacks it.
    """
    try:
        return master_keys[name].reveal()
    except KeyError as exc:
        raise UnknownMasterKeyError(name) from exc


def build(
    record_key: str,
    project: str,
    master_key: str,
    rest: Mapping[str, Any],
    master_keys: Mapping[str, Secret],
) -> bytes:
    """A record's bytes for the S3 key `record_key`, sealed under the master key named.

    Raises:
        UnknownMasterKeyError: this process lacks it.
    """
    kek = record_kek(require_master_key(master_keys, master_key), project)
    sealed = seal_record(kek, record_key, json.dumps(rest).encode())
    record = {"v": _VERSION, "project": project, "master_key": master_key, "sealed": b64(sealed)}
    return json.dumps(record).encode()


def parse(
    body: bytes, record_key: str, project: str, master_keys: Mapping[str, Secret]
) -> tuple[str, dict[str, Any]]:
    """The master key that a record names, and its sealed part.

    Raises:
        UnknownMasterKeyError: this process lacks that master key.
        CorruptObjectError: forged, moved, of another project, or damaged.
    """
    try:
        master_key, sealed = _outer(load_json(body), project)
    except (MalformedRequestError, ValueError, TypeError) as exc:
        raise CorruptObjectError("no record of this project") from exc
    kek = record_kek(require_master_key(master_keys, master_key), project)
    try:
        return master_key, load_json(open_record(kek, record_key, sealed))
    except (SealError, MalformedRequestError):
        # No cause: what was opened may hold keys, and an exception may repeat it.
        raise CorruptObjectError("a record that does not open") from None


def _outer(record: Mapping[str, Any], project: str) -> tuple[str, bytes]:
    """The master key's id and the sealed part of a record."""
    if record.keys() != {"v", "project", "master_key", "sealed"}:
        raise ValueError("fields")
    if (type(record["v"]), record["v"], record["project"]) != (int, _VERSION, project):
        raise ValueError("version or project")
    if not is_short_name(record["master_key"]):
        raise ValueError("master key")
    return record["master_key"], b64_decode(record["sealed"])


async def reseal(
    storage: Storage,
    key: str,
    project: str,
    master_key: str,
    master_keys: Mapping[str, Secret],
) -> bool:
    """Seal a record under another master key; False where it changed meanwhile, or is gone.

    Raises:
        UnknownMasterKeyError: this process lacks the key that it stands under, or the new one.
        CorruptObjectError: it was forged, moved or damaged.
        StorageUnavailableError: the outcome is unknown.
    """
    try:
        head, body = await storage.read(key)
    except MissingError:
        return False
    name, rest = parse(body, key, project, master_keys)
    if name == master_key:
        return True
    return await replace(
        storage, key, build(key, project, master_key, rest, master_keys), head.etag
    )


async def create(storage: Storage, key: str, body: bytes) -> bool:
    """Put a new record; False where another stands already.

    Raises:
        StorageUnavailableError: the outcome is unknown, and nothing stands there.
    """
    return await _write(storage, key, body, IfAbsent())


async def replace(storage: Storage, key: str, body: bytes, etag: str) -> bool:
    """Change a record that was read with this ETag; False where it changed meanwhile, or is gone.

    Raises:
        StorageUnavailableError: the outcome is unknown, and the record stands as it was read.
    """
    return await _write(storage, key, body, IfMatch(etag))


async def _write(storage: Storage, key: str, body: bytes, condition: Condition) -> bool:
    try:
        await storage.put(key, body, _HEADERS, condition=condition)
    except (PreconditionError, MissingError):
        return await _is(storage, key, body)
    except RefusedError as exc:
        raise StorageUnavailableError("the storage refuses to write a record") from exc
    except StorageUnavailableError:
        # The loser of a race gets 500 from some servers, and a winner's answer may be lost.
        # No two seals are alike, so the bytes that stand there tell whose they are.
        if await _is(storage, key, body):
            return True
        if await _still_as_before(storage, key, condition):
            raise
        return False
    return True


async def _is(storage: Storage, key: str, body: bytes) -> bool:
    try:
        _, standing = await storage.read(key)
    except MissingError:
        return False
    return standing == body


async def _still_as_before(storage: Storage, key: str, condition: Condition) -> bool:
    try:
        head = await storage.head(key)
    except MissingError:
        return isinstance(condition, IfAbsent)
    return isinstance(condition, IfMatch) and head.etag == condition.etag
