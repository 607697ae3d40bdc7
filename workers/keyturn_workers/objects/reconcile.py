"""Bring one object to the desired state at once, right after it was written (SPEC 7.3, 8.2)."""

from functools import partial
from typing import Final

import structlog

from keyturn import metadata as object_metadata
from keyturn.crypto import HEADER_BYTES
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
from keyturn_workers.master_keys.admin_keks import AdminKeks
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.apply import COPY_LIMIT_BYTES, ActionExecutor, tags_at_risk
from keyturn_workers.objects.plan_action import (
    NoOp,
    ObjectView,
    Options,
    PlannedAction,
    plan_action,
)
from keyturn_workers.storage import Storage

# One more attempt each time the desired state moved, or another writer won a race.
_MAX_ATTEMPTS: Final = 8

_log = structlog.get_logger()


async def reconcile_object(
    project: str,
    object_key: str,
    storage: Storage,
    keyrings: KeyringReader,
    operator_keys: OperatorKeys,
    *,
    copy_limit_bytes: int = COPY_LIMIT_BYTES,
) -> KeyringSnapshot:
    """Bring an object to the state of a keyring read that began after its last change.

    Returns:
        That keyring read.

    Raises:
        CorruptObjectError, NoUsableWrapError, UnknownAlgorithmError: the object is left as it is.
        LockedObjectError, ArchivedObjectError: its lock or archive refuses the change.
        DeletedKeyError: it is a tombstone.
        StorageUnavailableError: the storage failed, the object kept changing, or it has tags that
            its rewrap would drop, so that only a sweep may do it.
        KeyringRolledBackError, UnknownMasterKeyError, KmsUnavailableError: try again later.
    """
    executor = ActionExecutor(storage, keyrings, copy_limit_bytes)
    s3_key = object_s3_key(project, object_key)
    for _ in range(_MAX_ATTEMPTS):
        view = await _read_wrapped_object(storage, s3_key, object_key)
        # It begins after the object was read, and after any copy of the previous attempt.
        snapshot = await keyrings.read_fresh(project)
        action = await operator_keys.open_with(
            project,
            partial(_plan, view, object_key, snapshot),
        )
        if isinstance(action, NoOp):
            return snapshot
        if tags_at_risk(storage, view, action, copy_limit_bytes):
            # Nothing durable would say which tags to put back if this worker died. A sweep
            # notes them first, and a transition always starts one.
            raise StorageUnavailableError(
                "this storage drops an object's tags when it is rewrapped: a sweep does that"
            )
        try:
            await executor.execute(project, object_key, view, action, snapshot)
        except (MissingError, PreconditionError, RefusedError):
            continue  # a lost race, or an expired lease: read again
        _log.info("object rewrapped", s3_key=s3_key, generation=snapshot.desired.generation)
    raise StorageUnavailableError("the object kept changing while it was reconciled")


def _plan(
    view: ObjectView, object_key: str, snapshot: KeyringSnapshot, keks: AdminKeks
) -> PlannedAction:
    return plan_action(view, object_key, snapshot.keyring, snapshot.desired, keks, Options())


async def _read_wrapped_object(storage: Storage, s3_key: str, object_key: str) -> ObjectView:
    try:
        view = ObjectView(*await storage.read_start(s3_key, HEADER_BYTES))
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
