"""One attempt at one page: bring its objects to the desired state, report (SPEC 8.2, 8.5).

All objects of a batch are read, and their actions planned, before the first of them is written.
So a keyring that was rolled back below them is detected before anything is wrapped by it, and
tags are noted before a copy drops them. An attempt that changed nothing and observed late enough
is the proof. This module only reports what it observed.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

import structlog

from keyturn.counts import Counts
from keyturn.crypto.cobblestone import HEADER_BYTES
from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    ForeignObjectError,
    HiddenWrapError,
    KeyringRolledBackError,
    KmsUnavailableError,
    LockedObjectError,
    MarksUnavailableError,
    NotFoundError,
    StorageUnavailableError,
    TransientError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import is_object_key, object_s3_key
from keyturn.metadata import ALGO, DELETED, OWN_PREFIX
from keyturn.tasks import gather_all
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerSecrets, SecretNeededError
from keyturn_workers.core.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    StorageResponseError,
)
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.plan_action import (
    Encrypt,
    NoOp,
    ObjectView,
    PlannedAction,
    Rewrap,
    plan_action,
)
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectHead
from keyturn_workers.core.sweep_record import Failure, OpenPage, ProjectRecord, Result, Round, State
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.objects.apply import ActionExecutor, tags_at_risk
from keyturn_workers.pipeline.objects.hidden_wraps import (
    check_nothing_hidden,
    long_values,
    may_retire,
    retired_keys,
)
from keyturn_workers.pipeline.sweep.page_object_keys import Row, list_batches

NULL_VERSION: Final = "null"
_BATCH_KEYS: Final = 500
# Secrets are in use for so long, and then the process says again which it still has.
_SECRETS_FOR_S: Final = 2.0
# Each repetition means that the desired state changed, another program wrote, or a lease ended.
_MAX_ATTEMPTS: Final = 8

_T = TypeVar("_T")

_log = structlog.get_logger()


class CannotProveYetError(StorageUnavailableError):
    """This process has not known the storage's clock for two leases yet; try after `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("the storage's clock has not been known for two leases yet")
        self.wait_s = wait_s


class _NoLeaseError(Exception):
    """Two keyring reads in a row gave no lease: the page attempt ends."""


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """An object, the action planned for it, and the keyring snapshot that planned it."""

    key: str
    view: ObjectView
    action: PlannedAction
    snapshot: KeyringSnapshot

    @property
    def writes(self) -> bool:
        """True if the action writes the object."""
        return not isinstance(self.action, NoOp)

    @property
    def leaves_ours(self) -> bool:
        """True if the object is then Keyturn's own, so that its older versions are superseded."""
        return not (isinstance(self.action, NoOp) and self.action.kind == "plaintext")


@dataclass(slots=True)
class _Tally:
    """The counts of an attempt so far."""

    objects: int = 0
    rewrapped: int = 0
    encrypted: int = 0
    unchanged: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    noncurrent_stale: int = 0
    changed: int = 0
    failures: list[Failure] = field(default_factory=list)
    state_changed: bool = False

    def counts(self) -> Counts:
        """The counts of the result."""
        return Counts(
            objects=self.objects,
            rewrapped=self.rewrapped,
            current=self.unchanged["current"],
            plaintext=self.unchanged["plaintext"],
            encrypted=self.encrypted,
            deleted=self.unchanged["deleted"],
            foreign=self.foreign,
            failed=len({failure.key for failure in self.failures}),
            noncurrent_stale=self.noncurrent_stale,
        )


class PageWorker:
    """Processes pages. All pages of a process share its concurrency.

    `concurrency` objects are worked on at once. `copy_limit_bytes` is the largest object that one
    copy can rewrite; larger ones are copied in parts.
    """

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: KekDeriver,
        customer_keys: CustomerKeys,
        store: SweepStore,
        *,
        concurrency: int,
        copy_limit_bytes: int,
    ) -> None:
        self.storage = storage
        self.keyrings = keyrings
        self.keys = keys
        self.customer_keys = customer_keys
        self.store = store
        self.executor = ActionExecutor(storage, keyrings, copy_limit_bytes)
        self.copy_limit_bytes = copy_limit_bytes
        self.slots = asyncio.Semaphore(concurrency)

    async def process(self, record: ProjectRecord, of: Round, page: OpenPage) -> Result:
        """Make one attempt at a page.

        Raises:
            KeyringRolledBackError, UnknownMasterKeyError, KmsUnavailableError,
                CustomerKeyRefusedError, CustomerKeyUnavailableError, StorageUnavailableError: no
                result; the attempt must be repeated later.
            CorruptObjectError, UnknownProjectError: the keyring is forged or gone.
        """
        try:
            return await PageAttempt(self, record, of, page).run()
        except _NoLeaseError as exc:
            # The object that was being inspected is not at fault.
            raise StorageUnavailableError("keyring reads currently give no lease") from exc


class PageAttempt:
    """One attempt under way, at a page of round `of`."""

    def __init__(
        self, worker: PageWorker, record: ProjectRecord, of: Round, page: OpenPage
    ) -> None:
        self._worker = worker
        self._storage = worker.storage
        self._project = record.project
        self._record = record
        self._page = page
        self._options = of.options
        self._tags = _PageTags(worker, record.project, of.id, page)
        self._tally = _Tally()
        # Set by the first keyring read of the attempt.
        self._state: State | None = None
        self._null_is_current = False
        # Before any object is inspected; former ones join as objects need them (SPEC 2.6).
        self._secrets = NO_SECRETS
        self._unlocked_s = 0.0
        self._asking = asyncio.Lock()

    async def run(self) -> Result:
        """Make the attempt; raises as `PageWorker.process`."""
        page = self._page
        # Begins before every other read of the attempt, so its date is no later than theirs.
        first = await self._fresh_keyring()
        self._check_can_prove(first)
        self._keyring = first.keyring
        self._state = State.of(first.keyring)
        versioning = await self._storage.versioning()
        self._null_is_current = versioning == "Suspended"
        await self._tags.load()
        async for batch in list_batches(
            self._storage,
            self._project,
            page.after,
            page.last,
            versioned=bool(versioning),
            size=_BATCH_KEYS,
        ):
            await self._process_batch(batch)
        if not self._tally.changed:
            await self._tags.delete_loaded_notes()
        return Result(
            after=page.after,
            last=page.last,
            state=None if self._tally.state_changed else self._state,
            observed_at=first.read_at,
            counts=self._tally.counts(),
            changed=self._tally.changed,
            failures=tuple(self._tally.failures),
            proves=first.proves,
            clock_contradicted=self._worker.keyrings.clock.is_contradicted,
        )

    def _check_can_prove(self, first: KeyringSnapshot) -> None:
        """Leave a page that only needs a proof to a worker whose attempt can be one.

        Raises:
            CannotProveYetError: this worker has not known the storage's clock for long enough.
        """
        if first.proves or not self._page.attempts:
            return
        if first.read_at > self._record.proof_after:
            raise CannotProveYetError(first.lease_s)

    async def _process_batch(self, batch: Sequence[Row]) -> None:
        self._secrets = NO_SECRETS
        await self._unlock()
        rows = [row for row in batch if is_object_key(row.key)]
        await gather_all(self._count_foreign(row) for row in batch if not is_object_key(row.key))
        inspected = await self._for_each(
            (row.key, partial(self._inspect, row.key)) for row in rows if row.exists
        )
        restored = await self._for_each(
            (each.key, partial(self._restore_tags, each)) for each in inspected
        )
        planned = await self._write(restored)
        for each in planned:
            self._tally.objects += 1
            if isinstance(each.action, NoOp):
                self._tally.unchanged[each.action.kind] += 1
        superseded = {each.key for each in planned if each.leaves_ours}
        await gather_all(self._remove_noncurrent(row, superseded) for row in rows if row.noncurrent)

    # Keyring reads.

    async def _recent_keyring(self) -> KeyringSnapshot:
        """A snapshot whose lease is still long enough."""
        return _leased(await self._worker.keyrings.read_leased(self._project))

    async def _fresh_keyring(self) -> KeyringSnapshot:
        """A snapshot by a read that begins now."""
        snapshot = await self._worker.keyrings.read_fresh(self._project)
        if not snapshot.leased:
            snapshot = await self._worker.keyrings.read_fresh(self._project)
        return _leased(snapshot)

    # Objects.

    async def _inspect(self, key: str) -> PlannedObject:
        """Read an object and plan its action.

        Raises:
            NotFoundError: the storage does not find it. It was listed, and a delete leaves a
                tombstone: until a listing no longer shows it, an old key may open it.
        """
        s3_key = object_s3_key(self._project, key)
        try:
            view = ObjectView(*await self._storage.read_start(s3_key, HEADER_BYTES))
        except MissingError as exc:
            raise _not_found() from exc
        except ArchivedError:
            view = ObjectView(await self._storage.head(s3_key), b"")
        action, snapshot = await self._plan_action(key, view)
        self._tally.state_changed |= State.of(snapshot.keyring) != self._state
        if isinstance(action, NoOp):
            await self._check_nothing_hidden(key, view.head, snapshot)
        return PlannedObject(key, view, action, snapshot)

    async def _check_nothing_hidden(
        self, key: str, head: ObjectHead, snapshot: KeyringSnapshot, *, has_tags: bool = True
    ) -> None:
        """Check the values that a rewrap keeps. In most objects, none is as long as a wrap.

        Raises:
            HiddenWrapError: a value holds a wrap of the object.
            MissingError: the object is gone.
        """
        keyring, desired, keys = snapshot.keyring, snapshot.desired, self._worker.keys
        if not may_retire(keyring, desired, keys):
            return
        tags: Mapping[str, str] = {}
        if has_tags and head.tag_count:
            tags = await self._storage.read_tags(object_s3_key(self._project, key))
        values = long_values(head, tags)
        if not values:
            return  # before requesting any key: an object must not wait for a provider
        secrets = keyring.secrets_from(self._secrets)
        retired = await keys.open_with(
            self._project, lambda keks: retired_keys(keyring, desired, keks.with_secrets(secrets))
        )
        # In a thread: a bucket writer's long values must not stall the page beyond its lease.
        await asyncio.to_thread(check_nothing_hidden, values, self._project, key, retired)

    async def _plan_action(
        self, key: str, view: ObjectView
    ) -> tuple[PlannedAction, KeyringSnapshot]:
        """The action for an object, and the keyring snapshot that the action rests on."""
        snapshot = await self._recent_keyring()
        try:
            return await self._plan_by(key, view, snapshot), snapshot
        except KeyringRolledBackError:
            # This snapshot may be older than the object. Only a later one proves a rollback.
            snapshot = await self._fresh_keyring()
            return await self._plan_by(key, view, snapshot), snapshot

    async def _plan_by(
        self, key: str, view: ObjectView, snapshot: KeyringSnapshot
    ) -> PlannedAction:
        keyring, desired = snapshot.keyring, snapshot.desired
        secrets = keyring.secrets_from(self._secrets)
        return await self._worker.keys.open_with(
            self._project,
            lambda keks: plan_action(
                view, key, keyring, desired, keks.with_secrets(secrets), self._options
            ),
        )

    # Customer secrets.

    async def _unlock(self) -> None:
        """Use the secrets that this process has now: it may have had to forget one.

        This costs no call while the current secret is young. Raises as `CustomerKeys.unlock`.
        """
        unlocked = await self._worker.customer_keys.unlock(self._keyring)
        self._secrets = replace(unlocked, failed=self._secrets.failed)
        self._unlocked_s = self._worker.keyrings.clock.local_s()

    def _is_unlocked(self) -> bool:
        return self._worker.keyrings.clock.local_s() - self._unlocked_s < _SECRETS_FOR_S

    async def _in_slot(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do some work in a slot, and again with each customer secret that it turns out to need.

        No slot is held while the secret's store is asked.
        """
        while True:
            try:
                async with self._worker.slots:
                    if self._is_unlocked():
                        return await work()
            except SecretNeededError as exc:
                await self._ask(exc)
                continue
            async with self._asking:
                if not self._is_unlocked():
                    await self._unlock()

    async def _ask(self, needed: SecretNeededError) -> None:
        """Ask for a customer secret; where it is a former one, note the reason if it is not given.

        Raises:
            CustomerKeyRefusedError, CustomerKeyUnavailableError: it is the current one.
        """
        secret_id = needed.customer_key.secret_id

        async def joined(given: CustomerSecrets) -> CustomerSecrets:
            known = replace(
                given,
                held={**self._secrets.held, **given.held},
                failed={**self._secrets.failed, **given.failed},
            )
            if secret_id not in known.held and secret_id not in known.failed:
                raise needed
            return known

        async with self._asking:
            keyring = (await self._recent_keyring()).keyring
            self._secrets = await self._worker.customer_keys.open_with(keyring, joined)

    async def _restore_tags(self, planned: PlannedObject) -> PlannedObject:
        self._tally.changed += await self._tags.restore_missing(planned)
        return planned

    async def _for_each(
        self, work: Iterable[tuple[str, Callable[[], Awaitable[PlannedObject]]]]
    ) -> list[PlannedObject]:
        """The objects whose work succeeded, each begun in a slot."""
        done = await gather_all(self._guard(key, each) for key, each in work)
        return [each for each in done if each is not None]

    async def _guard(self, key: str, work: Callable[[], Awaitable[_T]]) -> _T | None:
        """Do one object's work in a slot. A failure of this object alone is noted, not raised."""

        async def guarded() -> _T | None:
            try:
                return await work()
            except (
                KeyringRolledBackError,
                MarksUnavailableError,
                UnknownMasterKeyError,
                KmsUnavailableError,
                SecretNeededError,
            ):
                raise
            except CodedError as exc:
                self._note_failure(key, exc)
            except StorageResponseError as exc:
                self._note_failure(key, StorageUnavailableError(str(exc)))
            return None

        return await self._in_slot(guarded)

    def _note_failure(self, key: str, error: CodedError, *, version: str | None = None) -> None:
        """Note a failure. For a noncurrent version, the object is counted elsewhere."""
        self._tally.objects += version is None
        self._tally.failures.append(Failure(key, error.code))
        named = {"key": key} if version is None else {"key": key, "version": version}
        _log.warning(
            "object failed", project=self._project, **named, code=error.code, detail=error.detail
        )

    # Foreign names.

    async def _count_foreign(self, row: Row) -> None:
        """Count a name that SPEC 1 does not allow: a folder marker, another program's object.

        A clean end allows the object only if no key of ours opens it. Metadata of ours, even in an
        older version, is a failure, since no rewrap can be bound to the name.
        """
        current = [None] if row.exists else []
        for version in (*current, *row.noncurrent):
            async with self._worker.slots:
                error = await self._foreign_error(row.key, version)
            if error is not None:
                self._note_failure(row.key, error, version=version)
            elif version is None:
                self._tally.foreign += 1

    async def _foreign_error(self, key: str, version: str | None) -> CodedError | None:
        s3_key = object_s3_key(self._project, key)
        try:
            if version is None:
                head = await self._storage.head(s3_key)
            else:
                head, _ = await self._storage.read_start(s3_key, 1, version_id=version)
        except MissingError:
            return _not_found()
        except ArchivedError:
            return ArchivedObjectError("its storage class must be restored first")
        except StorageResponseError as exc:
            return StorageUnavailableError(str(exc))
        except StorageUnavailableError as exc:
            return exc
        if any(name.startswith(OWN_PREFIX) for name in head.metadata):
            return ForeignObjectError("Keyturn metadata under a name that no object can have")
        return None

    # Writes.

    async def _write(self, planned: Sequence[PlannedObject]) -> list[PlannedObject]:
        """Bring these objects to the desired state; returns those that reached it."""
        done = [each for each in planned if not each.writes]
        todo = await self._note_tags([each for each in planned if each.writes])
        for _ in range(_MAX_ATTEMPTS):
            if not todo:
                return done
            written = await self._for_each((each.key, partial(self._apply, each)) for each in todo)
            # This read begins after the last copy. Only such a read shows that no copy rests on a
            # state that had ended before the copy.
            after = await self._fresh_keyring()
            todo = [e for e in written if not e.snapshot.desired.same_state(after.desired)]
            done += [e for e in written if e.snapshot.desired.same_state(after.desired)]
            todo = await self._for_each(
                (each.key, partial(self._inspect, each.key)) for each in todo
            )
        raise StorageUnavailableError("the desired state kept changing")

    async def _note_tags(self, todo: Sequence[PlannedObject]) -> list[PlannedObject]:
        """Note the tags of objects whose write drops them, before the first such write.

        Returns the objects that may be written: all except those whose tags cannot be read.
        """
        at_risk = [each for each in todo if self._tags.are_dropped_by(each)]
        tags_by_key: dict[str, Mapping[str, str]] = {}

        async def read(planned: PlannedObject) -> PlannedObject:
            # `_apply` detects a changed object by itself.
            with suppress(MissingError, PreconditionError):
                tags_by_key[planned.key] = await self._tags.read(planned)
            return planned

        readable = await self._for_each((each.key, partial(read, each)) for each in at_risk)
        if readable:
            await self._tags.note(tags_by_key, readable[0].snapshot.desired.master_key)
        unreadable = {each.key for each in at_risk} - {each.key for each in readable}
        return [each for each in todo if each.key not in unreadable]

    async def _apply(self, planned: PlannedObject) -> PlannedObject:
        """Write one object; inspect it again after each lost race. Raises as `_inspect`."""
        for _ in range(_MAX_ATTEMPTS):
            if not planned.writes:
                return planned
            snapshot = await self._recent_keyring()
            if not snapshot.desired.same_state(planned.snapshot.desired):
                planned = await self._inspect(planned.key)
                continue
            try:
                if self._tags.are_dropped_by(planned):
                    tags = await self._tags.read(planned)
                    await self._tags.note({planned.key: tags}, snapshot.desired.master_key)
                await self._execute(planned)
            except (MissingError, PreconditionError):
                pass
            except RefusedError:
                # The write arrived after the lease of its snapshot. A later snapshot is no lease
                # for this plan, so the object must be inspected again.
                await self._fresh_keyring()
            else:
                return planned
            planned = await self._inspect(planned.key)
        raise StorageUnavailableError("the object kept changing")

    async def _execute(self, planned: PlannedObject) -> None:
        await self._worker.executor.execute(
            self._project, planned.key, planned.view, planned.action, planned.snapshot
        )
        self._tally.changed += 1
        match planned.action:
            case Rewrap():
                self._tally.rewrapped += 1
            case Encrypt():
                self._tally.encrypted += 1
        await self._tags.restore_after_write(planned.key)

    # Noncurrent versions. An object is written once, so its older versions with an envelope are
    # the same body under older wraps: they are removed. Plaintext history, and versions under a
    # delete marker (which Keyturn never leaves), belong to another program: they are counted.

    async def _remove_noncurrent(self, row: Row, superseded: Collection[str]) -> None:
        """Remove the versions of one object that its current state superseded; count the others."""
        for version in row.noncurrent:
            # A copy made since the listing, while versioning is suspended, has the version id
            # `null`: removing that would remove the object itself.
            is_current = version == NULL_VERSION and self._null_is_current
            is_superseded = row.key in superseded and not is_current
            await self._in_slot(
                partial(self._remove_if_old, row.key, version, is_superseded=is_superseded)
            )

    async def _remove_if_old(self, key: str, version: str, *, is_superseded: bool) -> None:
        try:
            is_stale, is_ours = await self._inspect_version(
                key, version, is_superseded=is_superseded
            )
        except MissingError:
            # The version was listed, as in `_inspect`. If another attempt at this page removed it,
            # the next listing no longer shows it.
            self._note_failure(key, _not_found(), version=version)
            return
        if is_ours and is_superseded:
            await self._remove_version(key, version)
        elif is_stale:
            self._tally.noncurrent_stale += 1

    async def _remove_version(self, key: str, version: str) -> None:
        try:
            await self._storage.delete_version(object_s3_key(self._project, key), version)
        except RefusedError:
            self._tally.noncurrent_stale += 1
            self._tally.failures.append(Failure(key, LockedObjectError.code))
        else:
            self._tally.changed += 1

    async def _inspect_version(
        self, key: str, version: str, *, is_superseded: bool
    ) -> tuple[bool, bool]:
        """Check if a version is not in the desired state, and if it has an envelope of ours.

        Raises:
            MissingError: the storage does not find the version.
        """
        s3_key = object_s3_key(self._project, key)
        try:
            start = await self._storage.read_start(s3_key, HEADER_BYTES, version_id=version)
        except MissingError:
            raise
        except StorageResponseError:
            return True, False
        view = ObjectView(*start)
        is_ours = any(name.startswith(OWN_PREFIX) for name in view.head.metadata)
        try:
            action, snapshot = await self._plan_action(key, view)
            if not (is_ours and is_superseded):  # else it is removed, whatever it holds
                await self._check_nothing_hidden(key, view.head, snapshot, has_tags=False)
        except SecretNeededError:
            raise
        except (HiddenWrapError, CustomerKeyRefusedError, CustomerKeyUnavailableError) as exc:
            if not (is_ours and is_superseded):
                self._note_failure(key, exc, version=version)
            return True, is_ours
        except TransientError:
            # The keyring is unreadable now, or this version shows that it was rolled back: that
            # says nothing about the version.
            raise
        except CodedError:
            return True, is_ours
        return not isinstance(action, NoOp), is_ours


class _PageTags:
    """The tags that the writes of one page attempt drop."""

    def __init__(self, worker: PageWorker, project: str, round_id: str, page: OpenPage) -> None:
        self._storage = worker.storage
        self._store = worker.store
        self._copy_limit_bytes = worker.copy_limit_bytes
        self._project = project
        self._round_id = round_id
        self._page = page
        self._noted: dict[str, dict[str, str]] = {}
        self._loaded_notes: list[str] = []

    async def load(self) -> None:
        """Read the notes of earlier attempts at the page."""
        async for note, tags_by_key in self._store.tag_notes(
            self._project, self._round_id, self._page
        ):
            self._loaded_notes.append(note)
            self._noted |= tags_by_key

    async def delete_loaded_notes(self) -> None:
        """Delete the notes of earlier attempts, once all tags are back on their objects."""
        for note in self._loaded_notes:
            await self._store.delete_tag_note(note)

    def are_dropped_by(self, planned: PlannedObject) -> bool:
        """Check if the write of an object drops tags that are not noted."""
        if planned.key in self._noted:
            return False
        return tags_at_risk(self._storage, planned.view, planned.action, self._copy_limit_bytes)

    async def read(self, planned: PlannedObject) -> Mapping[str, str]:
        """The tags of an object.

        Raises:
            MissingError, PreconditionError: the object or its tags changed: inspect it again.
        """
        tags = dict(await self._storage.read_tags(object_s3_key(self._project, planned.key)))
        if len(tags) < planned.view.head.tag_count:
            # Another round's copy dropped the tags, and its worker is about to put them back. A
            # copy that rests on the object as it was before would drop them for good.
            raise PreconditionError("the object has lost tags since it was read")
        return tags

    async def note(self, tags_by_key: Mapping[str, Mapping[str, str]], master_key: str) -> None:
        """Store the tags of objects before they are written."""
        tags = {key: dict(value) for key, value in tags_by_key.items() if value}
        if tags:
            await self._store.add_tag_note(
                self._project, self._round_id, self._page, tags, master_key
            )
            self._noted |= tags

    async def restore_after_write(self, key: str) -> None:
        """Put back the noted tags of an object that was just written."""
        if tags := self._noted.get(key):
            await self._put(key, tags)

    async def restore_missing(self, planned: PlannedObject) -> bool:
        """Restore tags that an earlier attempt noted before its worker died; False if none."""
        tags = self._noted.get(planned.key)
        is_deleted = isinstance(planned.action, NoOp) and planned.action.kind == "deleted"
        if not tags or planned.view.head.tag_count or is_deleted:
            return False
        await self._put(planned.key, tags)
        return True

    async def _put(self, key: str, tags: Mapping[str, str]) -> None:
        try:
            await self._storage.write_tags(object_s3_key(self._project, key), tags)
        except RefusedError as exc:
            # This write has no lease, so it cannot be refused for being late.
            raise StorageUnavailableError("the storage refuses the tags") from exc


async def restore_noted_tags(storage: Storage, store: SweepStore, project: str) -> list[str]:
    """Restore the tags that workers noted before they died, in any round of a project.

    Returns the notes, which the caller deletes. A tag can hold a wrap: until the objects are proven
    again, only the note shows that they must be.
    """
    notes = []
    async for note, tags_by_key in store.tag_notes(project):
        for key, tags in tags_by_key.items():
            await _restore_tags(storage, object_s3_key(project, key), tags)
        notes.append(note)
    return notes


async def _restore_tags(storage: Storage, s3_key: str, tags: Mapping[str, str]) -> None:
    try:
        head = await storage.head(s3_key)
        if not head.tag_count and head.metadata.get(ALGO) != DELETED:
            await storage.write_tags(s3_key, tags)
    except MissingError:
        return
    except StorageResponseError as exc:
        _log.error("tags not put back", s3_key=s3_key, problem=str(exc))


def _leased(snapshot: KeyringSnapshot) -> KeyringSnapshot:
    if not snapshot.leased:
        raise _NoLeaseError
    return snapshot


def _not_found() -> NotFoundError:
    """The error for an object or version that was listed, but that a read does not find."""
    return NotFoundError("it was listed, but the storage reports that it does not exist")
