"""What the parts of one page attempt share: its plan, its keyring reads, its tally (SPEC 8.2, 8.5).

An object is inspected and its action planned here; `page_worker` carries the actions out.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from keyturn.crypto import HEADER_BYTES
from keyturn.errors import (
    CodedError,
    KeyringRolledBackError,
    KmsUnavailableError,
    MarksUnavailableError,
    NotFoundError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import object_s3_key
from keyturn_workers.errors import ArchivedError, MissingError, StorageAnswerError
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.objects.plan_action import (
    NoOp,
    ObjectView,
    Options,
    PlannedAction,
    plan_action,
)
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.effective_snapshot import effective_snapshot
from keyturn_workers.sweep.plan import Failure, OpenPage, Plan, State

_T = TypeVar("_T")

_log = structlog.get_logger()


class NoLeaseError(Exception):
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
        """Whether the action writes the object."""
        return not isinstance(self.action, NoOp)


@dataclass(slots=True)
class Tally:
    """What an attempt has counted so far."""

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


class PageContext:
    """One attempt at one page of a sweep.

    Args:
        storage: The bucket.
        keyrings: The keyring reads of the process.
        keys: The operator's keys.
        slots: Bounds how many objects the process works on at once.
        plan: The record of the sweep.
        open_page: The page.
    """

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: OperatorKeys,
        slots: asyncio.Semaphore,
        plan: Plan,
        open_page: OpenPage,
    ) -> None:
        self.storage = storage
        self.slots = slots
        self.plan = plan
        self.open_page = open_page
        self.project = plan.ask.project
        self.dry_run = plan.ask.dry_run
        self.tally = Tally()
        # Set by the first keyring read of the attempt.
        self.state: State | None = None
        self._keyrings = keyrings
        self._keys = keys
        self._options = Options(plan.ask.encrypt_plaintext, plan.ask.repair)

    # Keyring reads.

    async def recent_keyring(self) -> KeyringSnapshot:
        """A snapshot whose lease is still long enough.

        Raises:
            NoLeaseError: keyring reads give no lease now.
        """
        return await self._with_lease(await self._keyrings.read_leased(self.project))

    async def fresh_keyring(self) -> KeyringSnapshot:
        """A snapshot by a read that begins now.

        Raises:
            NoLeaseError: keyring reads give no lease now.
        """
        snapshot = await self._keyrings.read_fresh(self.project)
        if not snapshot.leased:
            snapshot = await self._keyrings.read_fresh(self.project)
        return await self._with_lease(snapshot)

    async def _with_lease(self, snapshot: KeyringSnapshot) -> KeyringSnapshot:
        if not snapshot.leased:
            raise NoLeaseError
        return await effective_snapshot(self.plan.ask, snapshot, self._keys)

    # Objects.

    async def inspect(self, key: str) -> PlannedObject:
        """Read an object and plan its action.

        Raises:
            NotFoundError: the storage says that it does not exist. It was listed, and a delete
                leaves a tombstone: until a listing no longer shows it, an old key may open it.
        """
        s3_key = object_s3_key(self.project, key)
        try:
            view = ObjectView(*await self.storage.read_start(s3_key, HEADER_BYTES))
        except MissingError as exc:
            raise not_found() from exc
        except ArchivedError:
            view = ObjectView(await self.storage.head(s3_key), b"")
        action, snapshot = await self.plan_action(key, view)
        self.tally.state_changed |= State.of(snapshot) != self.state
        return PlannedObject(key, view, action, snapshot)

    async def plan_action(
        self, key: str, view: ObjectView
    ) -> tuple[PlannedAction, KeyringSnapshot]:
        """The action for an object, and the keyring snapshot that it rests on."""
        snapshot = await self.recent_keyring()
        try:
            return await self._plan_action(key, view, snapshot), snapshot
        except KeyringRolledBackError:
            # This snapshot may be older than the object. Only a later one proves a rollback.
            snapshot = await self.fresh_keyring()
            return await self._plan_action(key, view, snapshot), snapshot

    async def _plan_action(
        self, key: str, view: ObjectView, snapshot: KeyringSnapshot
    ) -> PlannedAction:
        keyring, desired = snapshot.keyring, snapshot.desired
        return await self._keys.open_with(
            self.project,
            lambda keks: plan_action(view, key, keyring, desired, keks, self._options),
        )

    async def guarded(
        self, key: str, work: Coroutine[Any, Any, PlannedObject | None]
    ) -> PlannedObject | None:
        """Do one object's work in a slot. A failure of only this object is noted, not raised."""
        async with self.slots:
            try:
                return await work
            except (
                KeyringRolledBackError,
                MarksUnavailableError,
                UnknownMasterKeyError,
                KmsUnavailableError,
            ):
                raise
            except CodedError as exc:
                self.note_failure(key, exc)
            except StorageAnswerError as exc:
                self.note_failure(key, StorageUnavailableError(str(exc)))
            return None

    def note_failure(self, key: str, error: CodedError, *, current: bool = True) -> None:
        """Note a failure. If it is of a noncurrent version, the object is counted elsewhere."""
        self.tally.objects += current
        self.tally.failures.append(Failure(key, error.code))
        _log.warning(
            "object failed",
            sweep_id=self.plan.ask.sweep_id,
            project=self.project,
            key=key,
            code=error.code,
            detail=error.detail,
        )


def not_found() -> NotFoundError:
    """The error of an object, or a version, that was listed and that a read does not find."""
    return NotFoundError("it was listed, and the storage answers that it does not exist")


async def gather_all(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results in order. The first failure cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from exc
    return [task.result() for task in tasks]
