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
_MAX_ATTEMPTS: Final = 8

_log = structlog.get_logger()


async def reconcile_object(
    project: str,
    object_key: str,
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
    executor = ActionExecutor(storage, keyrings, copy_limit_bytes)
    operator_keys = OperatorKeys(master_keys)
    for _ in range(_MAX_ATTEMPTS):
        view = await _read_object(project, object_key, storage)
        # Begun after the object was read, and after any copy of the turn before.
        snapshot = await keyrings.read_fresh(project)
        action = plan_action(
            view, object_key, snapshot.keyring, snapshot.desired, operator_keys, Options()
        )
        if isinstance(action, NoOp):
            return snapshot
        tags_drop = tags_at_risk(storage, view, action, copy_limit_bytes)
        try:
            await _execute(
                executor, storage, project, object_key, view, action, snapshot, tags_drop=tags_drop
            )
        except (MissingError, PreconditionError, RefusedError):
            continue  # a lost race, or a lease that ran out: read again
    raise StorageUnavailableError("the object kept changing while it was reconciled")


async def _read_object(project: str, object_key: str, storage: Storage) -> ObjectView:
    try:
        view = ObjectView(
            *await storage.read_start(object_s3_key(project, object_key), HEADER_BYTES)
        )
    except MissingError as exc:
        raise StorageUnavailableError("the object to reconcile is gone") from exc
    except ArchivedError as exc:
        raise ArchivedObjectError("its storage class must be restored first") from exc
    envelope = object_metadata.parse(view.head.metadata)
    if isinstance(envelope, Tombstone):
        raise DeletedKeyError(f"{object_key} was deleted")
    if not isinstance(envelope, Wraps):
        raise CorruptObjectError("the object to reconcile has no wraps")
    return view


async def _execute(
    executor: ActionExecutor,
    storage: Storage,
    project: str,
    object_key: str,
    view: ObjectView,
    action: PlannedAction,
    snapshot: KeyringSnapshot,
    *,
    tags_drop: bool,
) -> None:
    s3_key = object_s3_key(project, object_key)
    tags = await storage.read_tags(s3_key) if tags_drop else {}
    await executor.execute(project, object_key, view, action, snapshot)
    if tags:
        await storage.write_tags(s3_key, tags)
    _log.info("object rewrapped", s3_key=s3_key, generation=snapshot.desired.generation)
