"""Bring one object to the desired state at once, for what has just written it (SPEC 7.3, 8.2)."""

from collections.abc import Mapping
from typing import Final

import structlog

from keyturn import metadata as object_metadata
from keyturn.crypto import HEADER_BYTES, Secret
from keyturn.errors import (
    ArchivedObjectError,
    CorruptObjectError,
    DeletedKeyError,
    StorageUnavailableError,
)
from keyturn.identifiers import object_s3_key
from keyturn.metadata import Tombstone, Wraps
from keyturn_workers.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.apply import COPY_LIMIT_BYTES, ActionExecutor, tags_at_risk
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.plan_action import (
    NoOp,
    ObjectView,
    Options,
    PlannedAction,
    plan_action,
)
from keyturn_workers.storage import Storage

# Each turn of the loop means that the desired state moved or somebody else wrote.
_MAX_TURNS: Final = 8

_log = structlog.get_logger()


async def reconcile(
    project: str,
    key: str,
    storage: Storage,
    keyrings: KeyringReader,
    master_keys: Mapping[str, Secret],
    *,
    copy_limit_bytes: int = COPY_LIMIT_BYTES,
) -> KeyringSnapshot:
    """Bring an object to the state of a keyring read that began after its last change.

    Gives that read.

    Raises:
        CorruptObjectError, NoUsableWrapError, UnknownAlgorithmError: left as it is.
        LockedObjectError, ArchivedObjectError: its lock or archive refuses the change.
        DeletedKeyError: a tombstone stands there.
        StorageUnavailableError: the storage failed, or the object moved all the time.
        KeyringRolledBackError, UnknownMasterKeyError: try again later.
    """
    effects = ActionExecutor(storage, keyrings, copy_limit_bytes)
    keys = OperatorKeys(master_keys)
    for _ in range(_MAX_TURNS):
        looked = await _look(project, key, storage)
        # Begun after the object was read, and after any copy of the turn before.
        observed = await keyrings.fresh(project)
        decision = plan_action(looked, key, observed.keyring, observed.desired, keys, Options())
        if isinstance(decision, NoOp):
            return observed
        tags_drop = tags_at_risk(storage, looked, decision, copy_limit_bytes)
        try:
            await _carry_out(
                effects, storage, project, key, looked, decision, observed, tags_drop=tags_drop
            )
        except (MissingError, PreconditionError, RefusedError):
            continue  # a lost race, or a lease that ran out: read again
    raise StorageUnavailableError("the object kept changing while it was reconciled")


async def _look(project: str, key: str, storage: Storage) -> ObjectView:
    try:
        looked = ObjectView(*await storage.read_start(object_s3_key(project, key), HEADER_BYTES))
    except MissingError as exc:
        raise StorageUnavailableError("the object to reconcile is gone") from exc
    except ArchivedError as exc:
        raise ArchivedObjectError("its storage class must be restored first") from exc
    envelope = object_metadata.parse(looked.head.metadata)
    if isinstance(envelope, Tombstone):
        raise DeletedKeyError(f"{key} was deleted")
    if not isinstance(envelope, Wraps):
        raise CorruptObjectError("the object to reconcile has no wraps")
    return looked


async def _carry_out(
    effects: ActionExecutor,
    storage: Storage,
    project: str,
    key: str,
    looked: ObjectView,
    decision: PlannedAction,
    observed: KeyringSnapshot,
    *,
    tags_drop: bool,
) -> None:
    s3_key = object_s3_key(project, key)
    tags = await storage.read_tags(s3_key) if tags_drop else {}
    await effects.carry_out(project, key, looked, decision, observed)
    if tags:
        await storage.write_tags(s3_key, tags)
    _log.info("object rewrapped", s3_key=s3_key, generation=observed.desired.generation)
