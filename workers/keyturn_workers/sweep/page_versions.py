"""Noncurrent versions of a page's objects (SPEC 8.5).

An object is written once, so its older versions with an envelope are the same body under older
wraps: they are removed. Plaintext history, and versions under a delete marker (which Keyturn
never leaves), belong to another program: they are counted, never removed.
"""

from collections.abc import Collection
from typing import Final

from keyturn.crypto import HEADER_BYTES
from keyturn.errors import CodedError, LockedObjectError, TransientError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import OWN_PREFIX
from keyturn_workers.errors import MissingError, RefusedError, StorageAnswerError
from keyturn_workers.objects.plan_action import NoOp, ObjectView
from keyturn_workers.sweep.page_context import PageContext, not_found
from keyturn_workers.sweep.page_listing import Row
from keyturn_workers.sweep.plan import Failure

NULL_VERSION: Final = "null"


async def remove_noncurrent(
    context: PageContext, row: Row, superseded: Collection[str], *, null_is_current: bool
) -> None:
    """Remove the versions of one object that its current state superseded; count the other stale.

    Args:
        context: The page attempt.
        row: The object with its noncurrent versions.
        superseded: The keys of the objects whose current state is sealed by Keyturn.
        null_is_current: Whether versioning is suspended. A copy made since the listing then has
            the version id `null`: removing that would remove the object itself.
    """
    for version in row.noncurrent:
        async with context.slots:
            try:
                is_stale, is_ours = await _inspect_version(context, row.key, version)
            except MissingError:
                # It was listed, as in `PageContext.inspect`. If another attempt at this page
                # removed it, the next listing no longer shows it.
                context.note_failure(row.key, not_found(), current=False)
                continue
            is_current = version == NULL_VERSION and null_is_current
            if is_ours and row.key in superseded and not context.dry_run and not is_current:
                await _remove(context, row.key, version)
            elif is_stale:
                context.tally.noncurrent_stale += 1


async def _remove(context: PageContext, key: str, version: str) -> None:
    try:
        await context.storage.delete_version(object_s3_key(context.project, key), version)
    except RefusedError:
        context.tally.noncurrent_stale += 1
        context.tally.failures.append(Failure(key, LockedObjectError.code))
    else:
        context.tally.changed += 1


async def _inspect_version(context: PageContext, key: str, version: str) -> tuple[bool, bool]:
    """Whether a version is not in the desired state, and whether it has an envelope of ours.

    Raises:
        MissingError: the storage says that there is no such version.
    """
    s3_key = object_s3_key(context.project, key)
    try:
        view = ObjectView(
            *await context.storage.read_start(s3_key, HEADER_BYTES, version_id=version)
        )
    except MissingError:
        raise
    except StorageAnswerError:
        return True, False
    is_ours = any(name.startswith(OWN_PREFIX) for name in view.head.metadata)
    try:
        action, _ = await context.plan_action(key, view)
    except TransientError:
        # A keyring that cannot be read now, or that this version shows to be rolled back, says
        # nothing about the version.
        raise
    except CodedError:
        return True, is_ours
    return not isinstance(action, NoOp), is_ours
