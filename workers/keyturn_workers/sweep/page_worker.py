"""One take of one page: look at its objects, bring them to the desired state, tell (SPEC 8.2, 8.5).

All objects of a batch are read and decided before the first of them is written: a keyring
that was rolled back below them is then found before anything is wrapped by it, and tags
that a copy drops are noted before that copy. A take that changed nothing, observed late
enough, is the proof; this module only tells what it saw.
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog

from keyturn.crypto import HEADER_BYTES
from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    ForeignObjectError,
    KeyringRolledBackError,
    LockedObjectError,
    NotFoundError,
    StorageUnavailableError,
    TransientError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import is_key, object_s3_key
from keyturn.metadata import OWN_PREFIX
from keyturn_workers.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    StorageAnswerError,
)
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot
from keyturn_workers.objects.apply import ActionExecutor, tags_at_risk
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.objects.plan_action import (
    Encrypt,
    NoOp,
    ObjectView,
    Options,
    PlannedAction,
    Rewrap,
    plan_action,
)
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.effective_state import wanted
from keyturn_workers.sweep.page_listing import Row, batches
from keyturn_workers.sweep.plan import Failure, OpenPage, Plan, Result, State
from keyturn_workers.sweep.store import SweepStore

_BATCH_KEYS: Final = 500
# Each turn means that the desired state moved, that somebody else wrote, or a late lease.
_MAX_TURNS: Final = 8
NULL_VERSION: Final = "null"

_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Planned:
    """What is to become of one object, by the keyring read that it was decided by."""

    key: str
    looked: ObjectView
    decision: PlannedAction
    observed: KeyringSnapshot

    @property
    def writes(self) -> bool:
        return not isinstance(self.decision, NoOp)


@dataclass(slots=True)
class _Tally:
    """What a take has found so far."""

    objects: int = 0
    rewrapped: int = 0
    encrypted: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    foreign: int = 0
    noncurrent_stale: int = 0
    changed: int = 0
    failures: list[Failure] = field(default_factory=list)
    moved: bool = False

    def counts(self) -> Counts:
        return Counts(
            objects=self.objects,
            rewrapped=self.rewrapped,
            current=self.kept["current"],
            plaintext=self.kept["plaintext"],
            encrypted=self.encrypted,
            deleted=self.kept["deleted"],
            foreign=self.foreign,
            failed=len({failure.key for failure in self.failures}),
            noncurrent_stale=self.noncurrent_stale,
        )


class PageWorker:
    """Does pages of sweeps; its concurrency is shared by all pages of a process.

    Args:
        storage: The bucket.
        keyrings: The process's reads of keyrings.
        keys: The operator's.
        store: The records of sweeps.
        concurrency: Objects that are worked on at once.
        copy_limit_bytes: What one copy takes; larger objects are copied in parts.
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
        self.storage = storage
        self.keyrings = keyrings
        self.keys = keys
        self.store = store
        self.executor = ActionExecutor(storage, keyrings, copy_limit_bytes)
        self.copy_limit_bytes = copy_limit_bytes
        self.slots = asyncio.Semaphore(concurrency)

    async def take(self, plan: Plan, live: OpenPage) -> Result:
        """One look at the page, with what it takes to bring its objects to the desired state.

        Raises:
            KeyringRolledBackError, UnknownMasterKeyError, StorageUnavailableError: nothing is
                told of the page; it is to be done again later.
            CorruptObjectError, UnknownProjectError: the keyring was forged, or is gone.
        """
        try:
            return await _PageAttempt(self, plan, live).run()
        except _NoLeaseError as exc:
            # No fault of the object's that was being looked at.
            raise StorageUnavailableError("keyring reads give no lease now") from exc


class _NoLeaseError(Exception):
    """Two keyring reads in turn gave no lease: the attempt at the page ends here."""


class _PageAttempt:
    """One take under way."""

    def __init__(self, by: PageWorker, plan: Plan, live: OpenPage) -> None:
        self._by = by
        self._storage = by.storage
        self._plan = plan
        self._live = live
        self._project = plan.ask.project
        self._dry_run = plan.ask.dry_run
        self._options = Options(plan.ask.encrypt_plaintext, plan.ask.repair)
        self._tally = _Tally()
        self._noted: dict[str, dict[str, str]] = {}
        self._state: State | None = None
        self._null_is_current = False

    async def run(self) -> Result:
        # It begins before everything else here, so that its date is no later than any of it.
        began = await self._fresh()
        self._check_proves(began)
        self._state = State.of(began)
        versioning = await self._storage.versioning()
        self._null_is_current = versioning == "Suspended"
        notes = [note async for note in self._by.store.noted_tags(self._plan, self._live)]
        self._noted = {key: tags for _, noted in notes for key, tags in noted.items()}
        edges = (self._live.after, self._live.last)
        async for batch in batches(
            self._storage, self._project, *edges, versioned=bool(versioning), size=_BATCH_KEYS
        ):
            await self._batch(batch)
        if not self._tally.changed:
            for note, _ in notes:
                await self._by.store.forget_note(note)
        return Result(
            after=self._live.after,
            last=self._live.last,
            state=None if self._tally.moved else self._state,
            observed_at=began.read_at,
            counts=self._tally.counts(),
            changed=self._tally.changed,
            failures=tuple(self._tally.failures),
            proves=began.proves,
        )

    def _check_proves(self, began: KeyringSnapshot) -> None:
        """Leave a page that only a proof is wanted of to a worker whose look can be one.

        Raises:
            StorageUnavailableError: this one has not known the storage's clock for long enough.
        """
        if began.proves or self._dry_run or not self._live.take:
            return
        if began.read_at > self._plan.proof_after(self._plan.lease_s or began.lease_s):
            raise StorageUnavailableError("the storage's clock is not known for two leases yet")

    def _observe(self, observed: KeyringSnapshot) -> KeyringSnapshot:
        return wanted(self._plan.ask, observed, self._by.keys.master_keys)

    async def _batch(self, batch: Sequence[Row]) -> None:
        rows = [row for row in batch if is_key(row.key)]
        await _all(self._foreign(row) for row in batch if not is_key(row.key))
        looks = await _all(
            self._guarded(row.key, self._look(row.key)) for row in rows if row.stands
        )
        planned = [found for found in looks if found is not None]
        if not self._dry_run:
            restored = await _all(
                self._guarded(each.key, self._with_tags(each)) for each in planned
            )
            planned = await self._write([each for each in restored if each is not None])
        for each in planned:
            self._tally.objects += 1
            if isinstance(each.decision, NoOp):
                self._tally.kept[each.decision.kind] += 1
        settled = {each.key for each in planned if _is_ours(each.decision)}
        await _all(self._noncurrent(row, settled) for row in rows if row.noncurrent)

    async def _guarded(
        self, key: str, work: Coroutine[Any, Any, _Planned | None]
    ) -> _Planned | None:
        """One object's work in a slot; what fails for it alone is recorded, not raised."""
        async with self._by.slots:
            try:
                return await work
            except (KeyringRolledBackError, UnknownMasterKeyError):
                raise
            except CodedError as exc:
                self._fail(key, exc)
            except StorageAnswerError as exc:
                self._fail(key, StorageUnavailableError(str(exc)))
            return None

    def _fail(self, key: str, error: CodedError, *, current: bool = True) -> None:
        """Note a failure; of an older version (not `current`) the key is counted elsewhere."""
        self._tally.objects += current
        self._tally.failures.append(Failure(key, error.code))
        _log.warning(
            "object failed",
            sweep_id=self._plan.ask.sweep_id,
            project=self._project,
            key=key,
            code=error.code,
            detail=error.detail,
        )

    async def _foreign(self, row: Row) -> None:
        """Count a name that SPEC 1 does not allow: a folder marker, another program's object.

        Only such a one that no key of ours opens may stay beside a clean end: metadata of
        ours, in an older version too, is a failure, since no rewrap can be bound to its name.
        """
        current = [None] if row.stands else []
        for version in (*current, *row.noncurrent):
            async with self._by.slots:
                error = await self._foreign_error(row.key, version)
            if error is not None:
                self._fail(row.key, error, current=version is None)
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
        except StorageAnswerError as exc:
            return StorageUnavailableError(str(exc))
        except StorageUnavailableError as exc:
            return exc
        if any(name.startswith(OWN_PREFIX) for name in head.metadata):
            return ForeignObjectError("metadata of ours under a name that no object can have")
        return None

    async def _look(self, key: str) -> _Planned:
        """Read an object and decide.

        Raises:
            NotFoundError: the storage says that it does not exist. It was listed, and a delete
                leaves a tombstone: until a listing no longer shows it, an old key may open it.
        """
        s3_key = object_s3_key(self._project, key)
        try:
            looked = ObjectView(*await self._storage.read_start(s3_key, HEADER_BYTES))
        except MissingError as exc:
            raise _not_found() from exc
        except ArchivedError:
            looked = ObjectView(await self._storage.head(s3_key), b"")
        decision, observed = await self._decided(key, looked)
        self._tally.moved |= State.of(observed) != self._state
        return _Planned(key, looked, decision, observed)

    async def _decided(self, key: str, looked: ObjectView) -> tuple[PlannedAction, KeyringSnapshot]:
        """What becomes of an object, and the keyring read that says so."""
        observed = await self._recent()
        try:
            return self._decide(key, looked, observed), observed
        except KeyringRolledBackError:
            # The keyring read may be older than the object: only a later one accuses anybody.
            observed = await self._fresh()
            return self._decide(key, looked, observed), observed

    def _decide(self, key: str, looked: ObjectView, observed: KeyringSnapshot) -> PlannedAction:
        return plan_action(
            looked, key, observed.keyring, observed.desired, self._by.keys, self._options
        )

    async def _write(self, planned: Sequence[_Planned]) -> list[_Planned]:
        """Bring to the desired state what is not; gives what stands now, as far as it stands."""
        kept = [each for each in planned if not each.writes]
        todo = await self._noted_first([each for each in planned if each.writes])
        for _ in range(_MAX_TURNS):
            if not todo:
                return kept
            done = await _all(self._guarded(each.key, self._bring(each)) for each in todo)
            written = [each for each in done if each is not None]
            # Begun after the last of the copies: only then does it tell that none rests on
            # a state that was over.
            after = await self._fresh()
            todo = [e for e in written if not e.observed.desired.same_state(after.desired)]
            kept += [e for e in written if e.observed.desired.same_state(after.desired)]
            looks = await _all(self._guarded(each.key, self._look(each.key)) for each in todo)
            todo = [each for each in looks if each is not None]
        raise StorageUnavailableError("the desired state kept moving")

    async def _bring(self, planned: _Planned) -> _Planned:
        """Write one object, looking again after each lost race; errors as `_look`."""
        for _ in range(_MAX_TURNS):
            if not planned.writes:
                return planned
            observed = await self._recent()
            if not observed.desired.same_state(planned.observed.desired):
                planned = await self._look(planned.key)
                continue
            if self._drops_tags(planned):
                await self._note_tags({planned.key: await self._tags(planned.key)}, planned)
            try:
                await self._carry_out(planned)
            except (MissingError, PreconditionError):
                pass
            except RefusedError:
                # Sent after the lease of the reading that it was decided by. A later one is
                # no lease for it: the object must be looked at again as well.
                await self._fresh()
            else:
                return planned
            planned = await self._look(planned.key)
        raise StorageUnavailableError("the object kept changing")

    async def _carry_out(self, planned: _Planned) -> None:
        args = (self._project, planned.key, planned.looked, planned.decision, planned.observed)
        await self._by.executor.execute(*args)
        self._tally.changed += 1
        match planned.decision:
            case Rewrap():
                self._tally.rewrapped += 1
            case Encrypt():
                self._tally.encrypted += 1
        if tags := self._noted.get(planned.key):
            await self._put_tags(planned.key, tags)

    # Tags that a write drops (SPEC 8.2).

    async def _noted_first(self, todo: Sequence[_Planned]) -> list[_Planned]:
        """Note the tags of objects whose write drops them, before the first such write.

        Gives what may be written: all but those whose tags cannot be read.
        """
        at_risk = [each for each in todo if self._drops_tags(each)]
        if not at_risk:
            return list(todo)
        found: dict[str, dict[str, str]] = {}

        async def read(planned: _Planned) -> _Planned:
            found[planned.key] = await self._tags(planned.key)
            return planned

        await _all(self._guarded(each.key, read(each)) for each in at_risk)
        await self._note_tags(found, at_risk[0])
        failed = {each.key for each in at_risk} - found.keys()
        return [each for each in todo if each.key not in failed]

    async def _note_tags(self, found: Mapping[str, dict[str, str]], by: _Planned) -> None:
        tags = {key: value for key, value in found.items() if value}
        if tags:
            master_key = by.observed.desired.master_key
            await self._by.store.note_tags(self._plan, self._live, tags, master_key)
            self._noted |= tags

    def _drops_tags(self, planned: _Planned) -> bool:
        if planned.key in self._noted:
            return False
        limit = self._by.copy_limit_bytes
        return tags_at_risk(self._storage, planned.looked, planned.decision, limit)

    async def _tags(self, key: str) -> dict[str, str]:
        try:
            return dict(await self._storage.read_tags(object_s3_key(self._project, key)))
        except MissingError:
            return {}

    async def _with_tags(self, planned: _Planned) -> _Planned:
        """Put back tags that an earlier take noted and did not live to put back."""
        tags = self._noted.get(planned.key)
        gone = isinstance(planned.decision, NoOp) and planned.decision.kind == "deleted"
        if tags and not planned.looked.head.tag_count and not gone:
            await self._put_tags(planned.key, tags)
            self._tally.changed += 1
        return planned

    async def _put_tags(self, key: str, tags: Mapping[str, str]) -> None:
        try:
            await self._storage.write_tags(object_s3_key(self._project, key), tags)
        except RefusedError as exc:
            # No lease bounds it: it is not for being late that it is refused.
            raise StorageUnavailableError("the storage refuses the tags") from exc

    # Noncurrent versions (SPEC 8.5).

    async def _noncurrent(self, row: Row, settled: set[str]) -> None:
        """Remove versions that the object's sealed state superseded; count what else is stale.

        An object is written once, so its older versions with an envelope are the same body
        under older wraps. Plaintext history, and versions under a delete marker (which Keyturn
        never leaves), are somebody's business: they are counted, never removed.
        """
        for version in row.noncurrent:
            async with self._by.slots:
                try:
                    stale, ours = await self._judged(row.key, version)
                except MissingError:
                    # Listed, as in `_look`. Removed by another attempt at this page, it is
                    # in the next listing no more.
                    self._fail(row.key, _not_found(), current=False)
                    continue
                # Where versioning is suspended, a copy made since the listing stands under
                # that name: it would be the object itself that is removed.
                current = version == NULL_VERSION and self._null_is_current
                if ours and row.key in settled and not self._dry_run and not current:
                    await self._remove(row.key, version)
                elif stale:
                    self._tally.noncurrent_stale += 1

    async def _remove(self, key: str, version: str) -> None:
        try:
            await self._storage.delete_version(object_s3_key(self._project, key), version)
        except RefusedError:
            self._tally.noncurrent_stale += 1
            self._tally.failures.append(Failure(key, LockedObjectError.code))
        else:
            self._tally.changed += 1

    async def _judged(self, key: str, version: str) -> tuple[bool, bool]:
        """Whether a version is not as desired, and whether it has an envelope of ours.

        Raises:
            MissingError: the storage says that there is no such version.
        """
        s3_key = object_s3_key(self._project, key)
        try:
            looked = ObjectView(
                *await self._storage.read_start(s3_key, HEADER_BYTES, version_id=version)
            )
        except MissingError:
            raise
        except StorageAnswerError:
            return True, False
        ours = any(name.startswith(OWN_PREFIX) for name in looked.head.metadata)
        try:
            decision, _ = await self._decided(key, looked)
        except TransientError:
            # A keyring that cannot be read now, or one that this version shows rolled back,
            # says nothing of the version.
            raise
        except CodedError:
            return True, ours
        return not isinstance(decision, NoOp), ours

    async def _recent(self) -> KeyringSnapshot:
        return self._leased(await self._by.keyrings.read_leased(self._project))

    async def _fresh(self) -> KeyringSnapshot:
        observed = await self._by.keyrings.read_fresh(self._project)
        if not observed.leased:
            observed = await self._by.keyrings.read_fresh(self._project)
        return self._leased(observed)

    def _leased(self, observed: KeyringSnapshot) -> KeyringSnapshot:
        if not observed.leased:
            raise _NoLeaseError
        return self._observe(observed)


def _not_found() -> NotFoundError:
    return NotFoundError("it was listed, and the storage answers that it does not exist")


def _is_ours(decision: PlannedAction) -> bool:
    """Whether what stands now is sealed by us, so that its older versions are superseded."""
    return not (isinstance(decision, NoOp) and decision.kind == "plaintext")


async def _all(work: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results in order; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from exc
    return [task.result() for task in tasks]
