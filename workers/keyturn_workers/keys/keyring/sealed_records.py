"""Keyturn's own records in the bucket: sealed JSON, changed only by conditional puts (SPEC 5.1).

A bucket reader cannot read a record and a bucket writer cannot forge one: each is sealed under
the project's record KEK and bound to its S3 key. The modules for keyrings and sweeps define the
sealed part.
"""

from collections.abc import Mapping
from typing import Any

from keyturn.errors import CorruptObjectError, StorageUnavailableError
from keyturn_workers.core.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Condition, IfAbsent, IfMatch
from keyturn_workers.keys.master_keys.record_format import (
    RECORD_HEADERS,
    open_sealed_part,
    read_outer,
    seal,
)


async def build(
    s3_key: str,
    project: str,
    master_key: str,
    rest: Mapping[str, Any],
    keys: KekDeriver,
    *,
    version: int = 1,
) -> bytes:
    """Build a record for this S3 key, sealed under the named master key.

    Raises:
        UnknownMasterKeyError: this process lacks the master key.
        KmsUnavailableError: its provider is away.
    """
    kek = await keys.record_kek(master_key, project)
    return seal(s3_key, project, master_key, rest, kek, version=version)


async def parse(
    body: bytes, s3_key: str, project: str, keys: KekDeriver
) -> tuple[str, dict[str, Any]]:
    """Return the id of the master key that a record names, and its opened part.

    A record that does not open under a cached KEK is tried once under a fresh one (SPEC 2.2).

    Raises:
        UnknownMasterKeyError: this process lacks that master key.
        KmsUnavailableError: its provider is away.
        CorruptObjectError: forged, moved, damaged, or another project's.
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


async def reseal(
    storage: Storage,
    s3_key: str,
    project: str,
    master_key: str,
    keys: KekDeriver,
) -> bool:
    """Seal a record under another master key; False if it changed meanwhile, or is gone.

    Raises:
        UnknownMasterKeyError: this process lacks the record's master key, or the new one.
        KmsUnavailableError: a provider is away.
        CorruptObjectError: the record was forged, moved or damaged.
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
        StorageUnavailableError: the outcome is unknown; no record exists yet.
    """
    return await _write(storage, s3_key, body, IfAbsent())


async def replace(storage: Storage, s3_key: str, body: bytes, etag: str) -> bool:
    """Replace a record that was read with this ETag; False if it changed meanwhile, or is gone.

    Raises:
        StorageUnavailableError: the outcome is unknown; the record is unchanged so far.
    """
    return await _write(storage, s3_key, body, IfMatch(etag))


async def _write(storage: Storage, s3_key: str, body: bytes, condition: Condition) -> bool:
    try:
        await storage.put(s3_key, body, RECORD_HEADERS, condition=condition)
    except (PreconditionError, MissingError):
        return await _has_bytes(storage, s3_key, body)
    except RefusedError as exc:
        raise StorageUnavailableError(f"the storage refuses to write a record ({exc})") from exc
    except StorageUnavailableError:
        # Some servers respond 500 to the loser of a race, and a winner's response may be lost.
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
