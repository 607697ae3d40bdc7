"""Open keyrings, and write them by conditional put (SPEC 5.1)."""

from typing import Final

from keyturn.errors import CorruptObjectError
from keyturn.identifiers import MARK_LIMIT, keyring_s3_key
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring import Keyring, next_serial, with_lease
from keyturn_workers.core.keyring_record import keyring_from_json, keyring_to_json, record_version
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring import sealed_records
from keyturn_workers.keys.master_keys.record_format import version_of

KEYRING_MAX_BYTES: Final = 2 * 1024**2
"""Enough for some thousands of rotations. A larger record is a bucket writer's and is not read."""


async def parse_keyring(body: bytes, project: str, keys: KekDeriver) -> Keyring:
    """Open the keyring in a record.

    Raises:
        UnknownMasterKeyError: this process lacks the master key that the record names.
        KmsUnavailableError: its provider is away.
        CorruptObjectError: forged, moved from another project, or damaged.
    """
    try:
        master_key, rest = await sealed_records.parse(body, keyring_s3_key(project), project, keys)
    except CorruptObjectError as exc:
        raise CorruptObjectError(f"the keyring is {exc.detail}") from None
    keyring = keyring_from_json(project, master_key, rest)
    if version_of(body) != record_version(keyring):
        # The version is not sealed: as another one, a worker that knows less could write it anew.
        raise CorruptObjectError("the keyring is a record of another version")
    return keyring


async def build_keyring(keyring: Keyring, keys: KekDeriver) -> bytes:
    """Seal a keyring under the master key that it names, and read the record back.

    A keyring must never be replaced by one that no worker could read or mark.

    Raises:
        CorruptObjectError: the record cannot be read, or its mark would be out of bounds.
        UnknownMasterKeyError: this process lacks the master key.
        KmsUnavailableError: its provider is away.
    """
    body = await sealed_records.build(
        keyring_s3_key(keyring.project),
        keyring.project,
        keyring.master_key,
        keyring_to_json(keyring),
        keys,
        version=record_version(keyring),
    )
    if (
        len(body) > KEYRING_MAX_BYTES
        or max(keyring.serial, keyring.current.generation) >= MARK_LIMIT
    ):
        raise CorruptObjectError("nothing was written: the new keyring exceeds a keyring's limits")
    if await parse_keyring(body, keyring.project, keys) != keyring:
        raise CorruptObjectError("nothing was written: the new keyring reads back differently")
    return body


async def create_keyring(
    storage: Storage, keyring: Keyring, keys: KekDeriver, *, lease_s: int
) -> bool:
    """Put a project's first keyring; False if one exists already.

    Its serial is one above the given keyring's. `lease_s` is this worker's lease, in seconds.

    Raises:
        StorageUnavailableError: the outcome is unknown, so read the keyring again.
        UnknownMasterKeyError: this process lacks the keyring's master key.
        KmsUnavailableError: its provider is away.
    """
    body = await build_keyring(with_lease(next_serial(keyring), lease_s), keys)
    return await sealed_records.create(storage, keyring_s3_key(keyring.project), body)


async def replace_keyring(
    storage: Storage,
    keyring: Keyring,
    etag: str,
    keys: KekDeriver,
    *,
    lease_s: int,
    recovery: str | None = None,
) -> bool:
    """Replace the keyring that was read with this ETag; False if it changed meanwhile.

    Its serial is one above the given keyring's. `lease_s` is this worker's lease, in seconds;
    `recovery` is the id of a request that accepts the keyring as it is (SPEC 5.5).

    Raises:
        StorageUnavailableError: the outcome is unknown, so read the keyring again.
        UnknownMasterKeyError: this process lacks the keyring's master key.
        KmsUnavailableError: its provider is away.
    """
    body = await build_keyring(with_lease(next_serial(keyring, recovery), lease_s), keys)
    return await sealed_records.replace(storage, keyring_s3_key(keyring.project), body, etag)


async def delete_older_versions(storage: Storage, project: str) -> None:
    """Delete older versions of a keyring, which contain earlier KEKs, from a versioned bucket.

    Raises:
        RefusedError: an object lock keeps a version.
        StorageUnavailableError
    """
    versioning = await storage.versioning()
    if not versioning:
        return
    s3_key = keyring_s3_key(project)
    async for version in storage.list_versions(s3_key):
        # While versioning is suspended, a new keyring is written as the version "null".
        is_null = version.version_id == "null" and versioning == "Suspended"
        if version.key == s3_key and not version.is_latest and not is_null:
            await storage.delete_version(s3_key, version.version_id)
