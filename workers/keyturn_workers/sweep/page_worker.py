"""One attempt at one page: bring its objects to the desired state, report (SPEC 8.2, 8.5).

All objects of a batch are read, and their actions planned, before the first of them is written.
That reveals a keyring that was rolled back below them before anything is wrapped by it, and
notes tags that a copy drops before that copy. An attempt that changed nothing and observed late
enough is the proof. This module only reports what it saw.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    ForeignObjectError,
    StorageUnavailableError,
)
from keyturn.identifiers import is_object_key, object_s3_key
from keyturn.metadata import OWN_PREFIX
from keyturn_workers.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    StorageAnswerError,
)
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.apply import ActionExecutor
from keyturn_workers.objects.plan_action import Encrypt, NoOp, PlannedAction, Rewrap
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.page_context import (
    NoLeaseError,
    PageContext,
    PlannedObject,
    gather_all,
    not_found,
)
from keyturn_workers.sweep.page_listing import Row, list_batches
from keyturn_workers.sweep.page_tags import PageTags
from keyturn_workers.sweep.page_versions import remove_noncurrent
from keyturn_workers.sweep.plan import OpenPage, Plan, Result, State
from keyturn_workers.sweep.sweep_store import SweepStore

_BATCH_KEYS: Final = 500
# Each repetition means that the desired state changed, another program wrote, or a lease ended.
_MAX_ATTEMPTS: Final = 8


class PageWorker:
    """Processes pages of sweeps. All pages of a process share its concurrency.

    Args:
        storage: The bucket.
        keyrings: The keyring reads of the process.
        keys: The operator's keys.
        store: The records of sweeps.
        concurrency: How many objects are worked on at once.
        copy_limit_bytes: The largest object that one copy can rewrite; larger ones are copied
            in parts.
    """

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: OperatorKeys,
        store: SweepStore,
        *,
        concurrency: int,
        copy_limit_bytes: int,
    ) -> None:
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._store = store
        self._executor = ActionExecutor(storage, keyrings, copy_limit_bytes)
        self._copy_limit_bytes = copy_limit_bytes
        self._slots = asyncio.Semaphore(concurrency)

    async def process(self, plan: Plan, open_page: OpenPage) -> Result:
        """Make one attempt at a page.

        Raises:
            KeyringRolledBackError, UnknownMasterKeyError, KmsUnavailableError,
                StorageUnavailableError: there is no result; the attempt must be repeated later.
            CorruptObjectError, UnknownProjectError: the keyring is forged or gone.
        """
        context = PageContext(
            self._storage, self._keyrings, self._keys, self._slots, plan, open_page
        )
        tags = PageTags(context, self._store, self._copy_limit_bytes)
        try:
            return await _PageAttempt(context, tags, self._executor).run()
        except NoLeaseError as exc:
            # The object that was being inspected is not at fault.
            raise StorageUnavailableError("keyring reads give no lease now") from exc


class CannotProveYetError(StorageUnavailableError):
    """This process has not known the storage's clock for two leases yet; try after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("the storage's clock is not known for two leases yet")
        self.wait_s = wait_s


class _PageAttempt:
    """One attempt under way."""

    def __init__(self, context: PageContext, tags: PageTags, executor: ActionExecutor) -> None:
        self._context = context
        self._tags = tags
        self._executor = executor
        self._storage = context.storage
        self._tally = context.tally
        self._null_is_current = False

    async def run(self) -> Result:
        context, open_page = self._context, self._context.open_page
        # Begins before every other read of the attempt, so its date is no later than theirs.
        first = await context.fresh_keyring()
        self._check_can_prove(first)
        context.state = State.of(first)
        versioning = await self._storage.versioning()
        self._null_is_current = versioning == "Suspended"
        await self._tags.load()
        async for batch in list_batches(
            self._storage,
            context.project,
            open_page.after,
            open_page.last,
            versioned=bool(versioning),
            size=_BATCH_KEYS,
        ):
            await self._process_batch(batch)
        if not self._tally.changed:
            await self._tags.delete_loaded_notes()
        return Result(
            after=open_page.after,
            last=open_page.last,
            state=None if self._tally.state_changed else context.state,
            observed_at=first.read_at,
            counts=self._tally.counts(),
            changed=self._tally.changed,
            failures=tuple(self._tally.failures),
            proves=first.proves,
        )

    def _check_can_prove(self, first: KeyringSnapshot) -> None:
        """Leave a page that only needs a proof to a worker whose attempt can be one.

        Raises:
            CannotProveYetError: this one has not known the storage's clock for long enough.
        """
        context = self._context
        if first.proves or context.dry_run or not context.open_page.take:
            return
        if first.read_at > context.plan.proof_after(context.plan.lease_s or first.lease_s):
            raise CannotProveYetError(first.lease_s)

    async def _process_batch(self, batch: Sequence[Row]) -> None:
        context = self._context
        rows = [row for row in batch if is_object_key(row.key)]
        await gather_all(self._count_foreign(row) for row in batch if not is_object_key(row.key))
        inspected = await gather_all(
            context.guarded(row.key, context.inspect(row.key)) for row in rows if row.exists
        )
        planned = [each for each in inspected if each is not None]
        if not context.dry_run:
            restored = await gather_all(
                context.guarded(each.key, self._tags.restore_missing(each)) for each in planned
            )
            planned = await self._write([each for each in restored if each is not None])
        for each in planned:
            self._tally.objects += 1
            if isinstance(each.action, NoOp):
                self._tally.unchanged[each.action.kind] += 1
        superseded = {each.key for each in planned if _leaves_ours(each.action)}
        await gather_all(
            remove_noncurrent(context, row, superseded, null_is_current=self._null_is_current)
            for row in rows
            if row.noncurrent
        )

    # Foreign names.

    async def _count_foreign(self, row: Row) -> None:
        """Count a name that SPEC 1 does not allow: a folder marker, another program's object.

        A clean end allows it only if no key of ours opens it. Metadata of ours, in an older
        version too, is a failure, since no rewrap can be bound to the name.
        """
        current = [None] if row.exists else []
        for version in (*current, *row.noncurrent):
            async with self._context.slots:
                error = await self._foreign_error(row.key, version)
            if error is not None:
                self._context.note_failure(row.key, error, current=version is None)
            elif version is None:
                self._tally.foreign += 1

    async def _foreign_error(self, key: str, version: str | None) -> CodedError | None:
        s3_key = object_s3_key(self._context.project, key)
        try:
            if version is None:
                head = await self._storage.head(s3_key)
            else:
                head, _ = await self._storage.read_start(s3_key, 1, version_id=version)
        except MissingError:
            return not_found()
        except ArchivedError:
            return ArchivedObjectError("its storage class must be restored first")
        except StorageAnswerError as exc:
            return StorageUnavailableError(str(exc))
        except StorageUnavailableError as exc:
            return exc
        if any(name.startswith(OWN_PREFIX) for name in head.metadata):
            return ForeignObjectError("metadata of ours under a name that no object can have")
        return None

    # Writes.

    async def _write(self, planned: Sequence[PlannedObject]) -> list[PlannedObject]:
        """Bring to the desired state what is not in it; returns the objects that are now."""
        context = self._context
        done = [each for each in planned if not each.writes]
        todo = await self._tags.note_before_writes([each for each in planned if each.writes])
        for _ in range(_MAX_ATTEMPTS):
            if not todo:
                return done
            results = await gather_all(
                context.guarded(each.key, self._apply(each)) for each in todo
            )
            written = [each for each in results if each is not None]
            # Begins after the last copy. Only such a read shows that no copy rests on a state
            # that had ended before it.
            after = await context.fresh_keyring()
            todo = [e for e in written if not e.snapshot.desired.same_state(after.desired)]
            done += [e for e in written if e.snapshot.desired.same_state(after.desired)]
            again = await gather_all(
                context.guarded(each.key, context.inspect(each.key)) for each in todo
            )
            todo = [each for each in again if each is not None]
        raise StorageUnavailableError("the desired state kept changing")

    async def _apply(self, planned: PlannedObject) -> PlannedObject:
        """Write one object; inspect it again after each lost race. Errors are as of `inspect`."""
        context = self._context
        for _ in range(_MAX_ATTEMPTS):
            if not planned.writes:
                return planned
            snapshot = await context.recent_keyring()
            if not snapshot.desired.same_state(planned.snapshot.desired):
                planned = await context.inspect(planned.key)
                continue
            try:
                await self._tags.note_before_write(planned)
                await self._execute(planned)
            except (MissingError, PreconditionError):
                pass
            except RefusedError:
                # It arrived after the lease of the snapshot that it rests on. A later snapshot
                # is no lease for this plan, so the object must be inspected again.
                await context.fresh_keyring()
            else:
                return planned
            planned = await context.inspect(planned.key)
        raise StorageUnavailableError("the object kept changing")

    async def _execute(self, planned: PlannedObject) -> None:
        await self._executor.execute(
            self._context.project, planned.key, planned.view, planned.action, planned.snapshot
        )
        self._tally.changed += 1
        match planned.action:
            case Rewrap():
                self._tally.rewrapped += 1
            case Encrypt():
                self._tally.encrypted += 1
        await self._tags.restore_after_write(planned.key)


def _leaves_ours(action: PlannedAction) -> bool:
    """Whether the object is now sealed by Keyturn, so that its older versions are superseded."""
    return not (isinstance(action, NoOp) and action.kind == "plaintext")
