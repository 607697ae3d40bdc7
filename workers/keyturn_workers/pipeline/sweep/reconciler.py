"""The loop that brings one project to its desired state, and proves it (SPEC 8.4 to 8.6).

A step reads the project's record and its keyring, applies the results of pages, adds further
pages, changes the record by one conditional put (a clean end takes several, see `evidence`), and
only then sends the resulting messages. No result triggers a step: each step schedules the next one.
A step that arrives twice, late or out of order finds that the record waits for another step. The
worker that continues after another died finds all its state in the record.

The record holds the state that is proven. Whenever the keyring shows another state, the round
begins again, whoever changed it. Once every page is proven, each origin of the round has its end.

While the project's customer key gives no secret, no page is sent; steps go on, and look for it.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

import structlog

from keyturn.counts import Counts
from keyturn.errors import (
    CodedError,
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    EvidenceError,
    StorageUnavailableError,
)
from keyturn.evidence.envelope import Evidence, parse
from keyturn.evidence.statement import ErasurePredicate, Predicate
from keyturn.identifiers import parse_time
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.erasure import FRESH_FOR, KeyState, StoreAnswer
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.keyring import (
    Keyring,
    forbid_plaintext,
    retire_old_keys,
    with_evidence,
)
from keyturn_workers.core.keyring_erasure import erase
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.sweep_progress import progress_of
from keyturn_workers.core.sweep_proof import apply_results, mark_due_pages, next_due_at, with_writes
from keyturn_workers.core.sweep_record import (
    CleanEnd,
    End,
    OpenPage,
    Origin,
    ProjectRecord,
    Round,
    State,
)
from keyturn_workers.core.sweep_transitions import (
    begin_round,
    end_erased,
    end_overtaken,
    end_refused,
    end_round,
    find_erasure,
    open_origins,
    reconcile_clock,
    served_origins,
    unpublished_origins,
    with_contradictions,
    with_key_wait,
    with_lease,
    with_pages_unsent,
    with_state,
)
from keyturn_workers.keys.keyring.marks import KeyringErasedError, StoredKeyring
from keyturn_workers.keys.keyring.store import delete_older_versions, replace_keyring
from keyturn_workers.keys.sweep_records import StoredRecord
from keyturn_workers.pipeline.sweep.eraser import Erased, Eraser, Refused, Wait
from keyturn_workers.pipeline.sweep.evidence import counts_of
from keyturn_workers.pipeline.sweep.page import restore_noted_tags
from keyturn_workers.pipeline.sweep.paginator import Paginator
from keyturn_workers.pipeline.sweep.steps import StepRunner, SweepContext

# Between steps of a record with work to do. Progress is published no more often.
STEP_INTERVAL_S: Final = 1.0
# Between progress events of one part of a sweep of all: there may be many parts.
_PART_PROGRESS_INTERVAL_S: Final = 120
# Pauses between idle steps: after so many of them, so many seconds.
_IDLE_S: Final = ((60, 30.0), (10, 9.0), (3, 5.0), (0, STEP_INTERVAL_S))
_MAX_LOGGED: Final = 16

_log = structlog.get_logger()


class Reconciler(StepRunner[ProjectRecord]):
    """Makes the steps of projects.

    `lease_s` is the lease of this process, which should be that of all (SPEC 8.4). What waits for
    a customer key for longer than `max_wait` fails.
    """

    def __init__(
        self,
        context: SweepContext,
        paginator: Paginator,
        customer_keys: CustomerKeys,
        *,
        lease_s: int,
        max_wait: timedelta,
    ) -> None:
        super().__init__(context)
        self._customer_keys = customer_keys
        self._max_wait = max_wait
        self._evidence = context.evidence
        self._eraser = Eraser(context, customer_keys)
        self._paginator = paginator
        self._lease_s = lease_s

    async def _read(self, project: str) -> StoredRecord[ProjectRecord]:
        return await self._store.read(project)

    def _unsent(self, record: ProjectRecord) -> ProjectRecord:
        return with_pages_unsent(record)

    async def _send_again(self, record: ProjectRecord) -> None:
        if not open_origins(record):
            return
        current = record.round
        if current is not None:
            results = await self._store.results(record)
            for page in current.open_pages:
                if page.sent_at is not None and page.page not in results:
                    await self._dispatcher.send_page(record.project, current.id, page)
        await self._dispatcher.send_step(record)

    async def _discard_results(self, project: str) -> None:
        await self._store.delete_old_results(project)

    async def _fail(self, stored: StoredRecord[ProjectRecord], error: CodedError) -> None:
        # Keep the pages' evidence of wrong clocks, which is lost with the round.
        results = await self._store.results(stored.record)
        record = with_contradictions(stored.record, results.values())
        await super()._fail(replace(stored, record=record), error)

    async def _step(self, stored: StoredRecord[ProjectRecord]) -> bool:
        if stored.record.clean_end is not None:
            is_made = await self._finish_clean_end(stored, stored.record.clean_end)
            if is_made is not None:
                return is_made
            stored = replace(stored, record=replace(stored.record, clean_end=None))
        erasing = find_erasure(stored.record)
        if erasing is not None:
            return await self._erase(stored, erasing)
        try:
            return await self._sweep(stored, await self._keyrings.read_fresh(stored.record.project))
        except KeyringErasedError as exc:
            ended = end_erased(stored.record, exc, exc.stored.read_at)
            return await self._leave(stored, ended, exc.stored.keyring.master_key)

    async def _sweep(self, stored: StoredRecord[ProjectRecord], snapshot: KeyringSnapshot) -> bool:
        """Make a step of a round; False as `_step`."""
        record, project = stored.record, stored.record.project
        state, now = State.of(snapshot.keyring), snapshot.lease.read_at
        record, is_longer = with_lease(record, snapshot.lease_s, snapshot.keyring.lease_s, now)
        record, is_late = reconcile_clock(record, now, proves=snapshot.proves)
        # No proof may rest on a former state, nor on a wrong date.
        begins_again = is_longer or is_late or state != record.state
        proven: tuple[OpenPage, ...] = ()
        results = await self._store.results(record)
        if begins_again:
            record = with_writes(record, results.values())
        elif record.round is not None:
            round_id = record.round.id
            applied = apply_results(record, record.round, results, now)
            record, proven = applied.record, applied.proven
            for page, result in applied.failing.items():
                await self._store.add_failures(
                    project, round_id, page, result.failures, state.master_key
                )
        if state != record.state:
            record = with_state(record, state, now, dated=snapshot.proves)
        record = end_overtaken(record, snapshot.keyring, now)
        problem = await self._key_problem(snapshot.keyring)
        record = with_key_wait(record, problem, now, self._max_wait)
        if record.round is None or begins_again:
            record = await self._begin_round(record)
        own = self._keyrings.clock.is_contradicted
        record = with_contradictions(record, results.values(), own=own)
        if record.round is None:
            return await self._continue(stored, record, snapshot)
        extended = await self._paginator.extend(project, record.round)
        record = replace(record, round=extended)
        if extended.complete:
            return await self._complete(stored, record, extended)
        marked, sent = (extended, ()) if problem else mark_due_pages(extended, now)
        return await self._continue(stored, replace(record, round=marked), snapshot, sent, proven)

    async def _key_problem(self, keyring: Keyring) -> CodedError | None:
        """The reason why the current customer secret is not given; None if nothing is missing."""
        try:
            await self._customer_keys.unlock(keyring)
        except (CustomerKeyRefusedError, CustomerKeyUnavailableError) as exc:
            return exc
        return None

    async def _begin_round(self, record: ProjectRecord) -> ProjectRecord:
        is_first = record.round is None
        record = begin_round(record, str(uuid4()))
        begun = record.round
        if begun is None:
            return record
        if is_first:
            begun = replace(begun, ranges=await self._paginator.key_ranges(record.project))
            if not self._refuses_late_writes:
                _log.warning("the storage does not refuse late writes", project=record.project)
        ids = [name[1] for name in begun.origins[:_MAX_LOGGED]]
        _log.info("round begun", project=record.project, round=begun.id, sweep_ids=ids)
        return replace(record, round=begun)

    async def _continue(
        self,
        stored: StoredRecord[ProjectRecord],
        record: ProjectRecord,
        snapshot: KeyringSnapshot,
        sent: tuple[OpenPage, ...] = (),
        proven: tuple[OpenPage, ...] = (),
    ) -> bool:
        """Change the record, and send the resulting messages; False as `_step`."""
        now, project, current = snapshot.lease.read_at, record.project, record.round
        idle_steps = 0 if _has_progressed(stored.record, record) else record.idle_steps + 1
        record = replace(record, step=record.step + 1, stepped_at=now, idle_steps=idle_steps)
        with_parts = _is_due_for_parts(record, now)
        notified = _origins_to_notify(stored.record, record, with_parts=with_parts)
        if notified and with_parts:
            record = replace(record, parts_notified_at=now)
        if not await self._store.change(record, stored.etag, snapshot.desired.master_key):
            return False
        if unpublished_origins(record):
            await self._publish_ends(project)
        if current is not None:
            for page in sent:
                await self._dispatcher.send_page(project, current.id, page)
            due_at = next_due_at(current)
            wait_s = 0.0 if due_at is None else (due_at - now).total_seconds()
            idle_s = next(pause_s for steps, pause_s in _IDLE_S if idle_steps >= steps)
            await self._dispatcher.send_step(record, max(idle_s, wait_s))
            for origin in notified:
                await self._dispatcher.publish_progress(
                    project,
                    origin,
                    record.counts_of(origin),
                    progress=progress_of(record, origin),
                )
            await self._store.delete_page_results(project, current.id, proven)
        return True

    async def extend_lease(self, stored: StoredRecord[ProjectRecord]) -> bool:
        """Write this worker's longer lease into a record, and begin its round again.

        Returns True if the record's lease was shorter. Then this worker's writes could arrive later
        than the round's proofs allow for, so it must not process a page before (SPEC 8.4). Its
        writes may even outlive this round, so the keyring must name the lease to later rounds.

        Raises:
            StorageUnavailableError: the keyring changed meanwhile: try later.
            CorruptObjectError, UnknownProjectError, UnknownMasterKeyError: it cannot be read.
        """
        record, own_s = stored.record, self._lease_s
        snapshot = await self._keyrings.read_recent(record.project)
        named_s = snapshot.keyring.lease_s or record.lease_s
        if own_s <= min(named_s, record.lease_s):
            return False
        if own_s > named_s:
            snapshot = await self._keyrings.read_fresh(record.project)
            if not await self._change(snapshot, snapshot.keyring):
                raise StorageUnavailableError(
                    "the keyring changed before the new lease was written to it"
                )
            await self._keyrings.read_fresh(record.project)  # marks the keyring
        fields = {"project": record.project, "lease_s": own_s, "was_s": record.lease_s}
        _log.warning("sweep's lease lengthened", **fields)
        record = replace(record, lease_s=max(own_s, record.lease_s), stepped_lease_s=own_s)
        results = await self._store.results(record)
        record = begin_round(with_contradictions(record, results.values()), str(uuid4()))
        record = replace(record, step=record.step + 1)
        if await self._store.change(record, stored.etag, stored.master_key):
            await self._dispatcher.send_step(record)
        return True

    # The end of a round.

    async def _complete(
        self, stored: StoredRecord[ProjectRecord], record: ProjectRecord, current: Round
    ) -> bool:
        """End the round, whose pages are all proven, and let the keyring show it (SPEC 8.6).

        False as `_step`.
        """
        project = record.project
        notes = await restore_noted_tags(self._storage, self._store, project)
        snapshot = await self._keyrings.read_fresh(project)
        state, now = State.of(snapshot.keyring), snapshot.lease.read_at
        if notes or state != record.state:
            # The state changed since this step began, or tags that no page has shown are back: the
            # proof does not cover the present objects.
            begun = await self._begin_again(stored, record, snapshot)
            for note in notes if begun else ():
                await self._store.delete_tag_note(note)
            return begun
        if not current.counts.all_as_desired:
            names = [each.name for each in served_origins(record, current, snapshot.keyring)]
            end = End(
                now,
                clean=False,
                counts=current.counts,
                round_id=current.id,
                late_writes_refused=self._refused_late_writes(record),
                state=state,
            )
            ended = end_round(record, names, end, record.written)
            return await self._end(stored, ended, end, state.master_key)
        if current.options.encrypt_plaintext and snapshot.keyring.plaintext_allowed:
            # Forbid plaintext first, and prove once more: an upload may have stored plaintext
            # behind the attempt at its page, by a keyring that still allowed it.
            await self._change(snapshot, forbid_plaintext(snapshot.keyring))
            forbidden = await self._keyrings.read_fresh(project)
            return await self._begin_again(stored, record, forbidden)
        return await self._begin_clean_end(stored, record, current, snapshot)

    async def _begin_again(
        self,
        stored: StoredRecord[ProjectRecord],
        record: ProjectRecord,
        snapshot: KeyringSnapshot,
    ) -> bool:
        """Begin the round again for the state that the keyring shows now; False as `_step`."""
        now = snapshot.lease.read_at
        record = with_state(record, State.of(snapshot.keyring), now, dated=snapshot.proves)
        record = end_overtaken(record, snapshot.keyring, now)
        return await self._continue(stored, await self._begin_round(record), snapshot)

    # A clean end, and its evidence (SPEC 15.1). `evidence` lists the order of writes.

    async def _begin_clean_end(
        self,
        stored: StoredRecord[ProjectRecord],
        record: ProjectRecord,
        current: Round,
        snapshot: KeyringSnapshot,
    ) -> bool:
        """Keep the evidence of the end in the record, and continue from there; False as `_step`.

        The step stays the same: its message is redelivered if this worker dies.
        """
        origins = served_origins(record, current, snapshot.keyring)
        envelope = await self._evidence.build(
            record,
            current,
            origins,
            snapshot.keyring,
            late_writes_refused=self._refused_late_writes(record),
        )
        names = tuple(each.name for each in origins)
        clean_end = CleanEnd(envelope.decode(), record.state, names, record.written)
        return await self._keep_clean_end(stored, record, clean_end, snapshot.desired.master_key)

    async def _keep_clean_end(
        self,
        stored: StoredRecord[ProjectRecord],
        record: ProjectRecord,
        clean_end: CleanEnd,
        master_key: str,
    ) -> bool:
        record = replace(record, clean_end=clean_end)
        if not await self._store.change(record, stored.etag, master_key):
            return False
        stored = await self._store.read(record.project)
        if (stored.record.step, stored.record.clean_end) != (record.step, clean_end):
            return False  # the record was resumed, and the worker that resumed it continues
        return bool(await self._finish_clean_end(stored, clean_end))

    async def _finish_clean_end(
        self, stored: StoredRecord[ProjectRecord], clean_end: CleanEnd
    ) -> bool | None:
        """Make the end whose evidence is kept in the record; False as `_step`.

        None if that is no longer possible: another keyring first replaced the one that the evidence
        rests on. No other evidence is made before this is known. Evidence that cannot be read is in
        no chain: nothing names it before it is read here.
        """
        record = stored.record
        try:
            evidence = parse(clean_end.envelope.encode())
        except EvidenceError as exc:
            _log.error("evidence cannot be read", project=record.project, problem=str(exc))
            return None
        kept = await self._keyrings.read_record(record.project)
        # Not `kept.read_at`: this worker may have stalled since, or one front end's clock is off.
        now = self._keyrings.clock.now()
        if State.of(kept.keyring) == clean_end.state and _is_fresh(evidence, now):
            after = _ended_keyring(kept.keyring, evidence.predicate)
            await self._change(kept, with_evidence(after, evidence.digest))
            # Whichever write won, the keyring shows which evidence is in the chain.
            kept = await self._keyrings.read_record(record.project)
        if kept.keyring.evidence != evidence.digest:
            _log.info("evidence is regenerated", project=record.project)
            return None
        await self._evidence.publish(evidence)
        await self._delete_older_keyrings(record.project)
        if record.state == clean_end.state:
            # This end has changed the keyring once, but not the proven state.
            record = replace(record, state=replace(record.state, serial=record.state.serial + 1))
        predicate = evidence.predicate
        refused = predicate.late_writes_refused if isinstance(predicate, Predicate) else None
        end = End(
            kept.read_at,
            clean=True,
            counts=counts_of(evidence),
            round_id=predicate.id,
            late_writes_refused=refused,
            state=clean_end.state,
            evidence=evidence.digest,
        )
        record = replace(record, evidence=clean_end.envelope)
        ended = end_round(record, clean_end.origins, end, clean_end.written)
        return await self._end(stored, ended, end, kept.keyring.master_key)

    # Erasures.

    async def _erase(self, stored: StoredRecord[ProjectRecord], origin: Origin) -> bool:
        """Make a step of an erasure; False as `_step`."""
        record = stored.record
        kept = await self._keyrings.read_record(record.project)
        master_key = kept.keyring.master_key
        match await self._eraser.advance(record, origin, kept):
            case CleanEnd() as clean_end:
                return await self._keep_clean_end(stored, record, clean_end, master_key)
            case Refused(error):
                refused = end_refused(record, origin.name, error, kept.read_at)
                return await self._leave(stored, refused, master_key)
            case Erased(evidence):
                state, now = State.of(kept.keyring), kept.read_at
                end = End(now, clean=True, counts=Counts(), state=state, evidence=evidence)
                ended = end_round(record, (origin.name,), end, record.written)
                return await self._end(stored, ended, end, master_key)
            case Wait(wait_s):
                record = replace(record, step=record.step + 1, stepped_at=kept.read_at)
                if not await self._store.change(record, stored.etag, master_key):
                    return False
                await self._dispatcher.send_step(record, wait_s)
                return True

    async def _leave(
        self, stored: StoredRecord[ProjectRecord], record: ProjectRecord, master_key: str
    ) -> bool:
        """Write and publish ends that no proof brought, and continue; False as `_step`."""
        record = replace(record, step=record.step + 1, idle_steps=0)
        if not await self._store.change(record, stored.etag, master_key):
            return False
        await self._publish_ends(record.project)
        if open_origins(record):
            await self._dispatcher.send_step(record)
        return True

    async def _end(
        self,
        stored: StoredRecord[ProjectRecord],
        record: ProjectRecord,
        end: End,
        master_key: str,
    ) -> bool:
        """Write and publish the ends of a round, and continue with any other; False as `_step`."""
        fields = {"project": record.project, "round": end.round_id, "clean": end.clean}
        _log.info("round ended", **fields, **end.counts.to_json())
        return await self._leave(stored, record, master_key)

    def _refused_late_writes(self, record: ProjectRecord) -> bool:
        """Check that no write from before this round can have arrived after its proof.

        A front end whose clock lags accepts a late write that the others refuse, and nothing bounds
        how long that write was held.
        """
        return self._refuses_late_writes and not record.clock_contradicted

    async def _delete_older_keyrings(self, project: str) -> None:
        try:
            await delete_older_versions(self._storage, project)
        except RefusedError as exc:
            # The versions stay sealed under the master key. The objects are proven all the same.
            _log.warning("an older version of the keyring stays", project=project, problem=str(exc))

    async def _change(self, snapshot: KeyringSnapshot | StoredKeyring, keyring: Keyring) -> bool:
        return await replace_keyring(
            self._storage, keyring, snapshot.etag, self._keys, lease_s=self._lease_s
        )


def _is_fresh(evidence: Evidence, now: datetime) -> bool:
    """Return False if stores must be asked again: a key may have been enabled meanwhile."""
    predicate = evidence.predicate
    if not isinstance(predicate, ErasurePredicate):
        return True
    return all(abs(now - parse_time(key.answered_at)) <= FRESH_FOR for key in predicate.keys)


def _ended_keyring(keyring: Keyring, predicate: Predicate | ErasurePredicate) -> Keyring:
    """The keyring after a clean end with this evidence."""
    if not isinstance(predicate, ErasurePredicate):
        return retire_old_keys(keyring, keeps_secrets=not predicate.late_writes_refused)
    if keyring.erasure is None:
        raise ValueError("the project is not being erased")
    answers = {
        key.secret_id: StoreAnswer(KeyState(key.answer), key.answered_at) for key in predicate.keys
    }
    return erase(keyring, replace(keyring.erasure, answers=answers))


def _has_progressed(before: ProjectRecord, record: ProjectRecord) -> bool:
    """Check if a step found anything to do."""
    return (before.round, len(open_origins(before))) != (record.round, len(open_origins(record)))


def _origins_to_notify(
    before: ProjectRecord, record: ProjectRecord, *, with_parts: bool
) -> tuple[Origin, ...]:
    """The origins whose progress is to be published: empty if nothing progressed."""
    if record.round is None:
        return ()
    origins = [each for each in open_origins(record) if each.name in record.round.origins]
    if not any(_is_news(before, record, each) for each in origins):
        return ()
    return tuple(each for each in origins if with_parts or each.kind != "part")


def _is_news(before: ProjectRecord, record: ProjectRecord, origin: Origin) -> bool:
    """Check if the progress of an origin has changed. Of a part, only the counts matter.

    A round that has only begun is not progress: its event could come before the one that accepts
    the request.
    """
    if record.counts_of(origin) != before.counts_of(origin):
        return True
    then, now = progress_of(before, origin), progress_of(record, origin)
    is_key_back = then.waits_for_key is not None and now.waits_for_key is None
    if origin.kind != "part" and (is_key_back or (now.waits_for_key and record.idle_steps == 1)):
        return True
    if origin.kind == "part" or (now.phase == "rewrapping" and not now.done):
        return False
    if now.phase == "proving" and before.proof_after != record.proof_after:
        return True  # dated anew: watchers must learn that the wait is longer
    return (then.phase, then.total) != (now.phase, now.total)


def _is_due_for_parts(record: ProjectRecord, now: datetime) -> bool:
    """Check if progress of parts of a sweep of all may be published again."""
    pause = timedelta(seconds=_PART_PROGRESS_INTERVAL_S)
    return record.parts_notified_at is None or now - record.parts_notified_at >= pause
