"""Bring one object to the desired state: the effect of `workers.envelope.examine` (SPEC 8.2).

The ciphertext never passes through here: the object is copied onto itself with new
wraps, and everything else that it had is restated.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import structlog

from contracts import metadata as object_metadata
from contracts.errors import CorruptObjectError, DeletedKeyError, StorageUnavailableError
from contracts.metadata import UPLOAD, Tombstone, Wraps
from contracts.names import object_key
from contracts.sealing import HEADER_BYTES, Secret
from workers.envelope import examine, metadata_for, wrap
from workers.errors import MissingError, PreconditionError, RefusedError
from workers.keyring import KeyringReader, Observed
from workers.storage import Head, Storage

# Each turn of the loop means that the desired state moved or somebody else wrote.
_MAX_TURNS: Final = 8

_log = structlog.get_logger()


async def reconcile(
    project: str,
    key: str,
    storage: Storage,
    keyrings: KeyringReader,
    master_keys: Mapping[str, Secret],
) -> Observed:
    """Bring an object to the state of a keyring read that began after its last change.

    Gives that read.

    Raises:
        CorruptObjectError, NoUsableWrapError, UnknownAlgorithmError: left as it is.
        StorageUnavailableError: the storage failed, or the object moved all the time.
        KeyringRolledBackError, UnknownMasterKeyError: try again later.
    """
    for _ in range(_MAX_TURNS):
        try:
            head, header = await storage.read_start(object_key(project, key), HEADER_BYTES)
        except MissingError as exc:
            raise StorageUnavailableError("the object to reconcile is gone") from exc
        envelope = object_metadata.parse(head.metadata)
        if isinstance(envelope, Tombstone):
            raise DeletedKeyError(f"{key} was deleted")
        if not isinstance(envelope, Wraps):
            raise CorruptObjectError("the object to reconcile has no wraps")
        # Begun after the object was read, and after any copy of the turn before.
        observed = await keyrings.fresh(project)
        examined = examine(envelope, header, key, observed.desired, master_keys)
        if examined.current:
            return observed
        wraps = wrap(observed.desired, key, examined.dek, algorithm=envelope.algorithm)
        try:
            await _rewrap(head, wraps, object_key(project, key), observed, storage)
        except (MissingError, PreconditionError, RefusedError):
            continue  # a lost race, or a lease that ran out: read again
    raise StorageUnavailableError("the object kept changing while it was reconciled")


async def _rewrap(
    head: Head, wraps: Wraps, s3_key: str, observed: Observed, storage: Storage
) -> None:
    caller = {n: v for n, v in head.metadata.items() if not n.startswith("enc-")}
    metadata = metadata_for(wraps, upload_id=head.metadata.get(UPLOAD), caller_wire=caller)
    headers = replace(head.headers, metadata=metadata)
    keep_tags = head.tag_count > 0 and not storage.differences.copy_keeps_tags
    tags = await storage.read_tags(s3_key) if keep_tags else {}
    await storage.copy_onto_itself(s3_key, headers, source_etag=head.etag, lease=observed.lease)
    if keep_tags:
        await storage.write_tags(s3_key, tags)
    _log.info("object rewrapped", s3_key=s3_key, generation=wraps.generation)
