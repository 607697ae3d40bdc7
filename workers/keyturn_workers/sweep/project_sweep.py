"""The steps of a sweep of one project: planner and prover (SPEC 8.4 to 8.6).

A step reads the sweep's record and the keyring, applies the results of pages, plans further
pages, changes the record by one conditional put, and only then sends what follows from it. A
step that arrives twice, late or out of order finds that the record waits for another one. A
worker that dies leaves nothing behind but a message that is delivered again.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    StorageUnavailableError,
)
from keyturn.evidence import parse
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.keyring import (
    Keyring,
    KeyringSnapshot,
    delete_older_versions,
    forbid_plaintext,
    replace_keyring,
    retire_old_keys,
    with_evidence,
)
from keyturn_workers.sweep.clean_end import end_with, has_all_dates
from keyturn_workers.sweep.context import SweepContext
from keyturn_workers.sweep.effective_snapshot import effective_snapshot
from keyturn_workers.sweep.messages import SweepPage
from keyturn_workers.sweep.page_tags import restore_noted_tags, restore_page_tags
from keyturn_workers.sweep.plan import KeptEnvelope, OpenPage, PartResult, Plan, State
from keyturn_workers.sweep.planner import Planner
from keyturn_workers.sweep.progress import (
    apply_results,
    mark_due_pages,
    next_due_at,
    reconcile_clock,
    start_round,
    with_lease,
)
from keyturn_workers.sweep.step_runner import RESUME_STEPS, StepRunner
from keyturn_workers.sweep.sweep_store import StoredPlan
from keyturn_workers.sweep.takeover import copy_end, pause_s, take_over_earlier

# Between steps of a sweep that has something to do. Progress is published no more often.
STEP_INTERVAL_S: Final = 1.0
# Between progress events of one part of a sweep of all: there may be many parts.
_PART_PROGRESS_INTERVAL_S: Final = 120
# Steps that find nothing to do wait longer and longer: after this many of them, seconds.
_IDLE_S: Final = ((60, 30.0), (10, 9.0), (3, 5.0), (0, STEP_INTERVAL_S))
_MAX_ATTEMPTS: Final = 8

_log = structlog.get_logger()


class ProjectSweep(StepRunner[Plan]):
    """Runs the steps of sweeps of single projects.

    Args:
        context: What the parts of a sweep share.
        planner: Plans pages.
        lease_s: The lease of this process, which should be that of all (SPEC 8.4).
    """

    def __init__(self, context: SweepContext, planner: Planner, *, lease_s: int) -> None:
        super().__init__(context.store, context.dispatcher)
        self._storage = context.storage
        self._keyrings = context.keyrings
        self._keys = context.keys
        self._evidence = context.evidence
        self._planner = planner
        self._lease_s = lease_s

    @property
    def _refuses_late_writes(self) -> bool:
        return self._storage.capabilities.late_writes_refused

    async def _read(self, sweep_id: str, project: str) -> StoredPlan[Plan]:
        return await self._store.read(sweep_id, project)

    def _unsent(self, plan: Plan) -> Plan:
        # Processing a page twice does no harm.
        return replace(plan, live=tuple(replace(each, sent_at=None) for each in plan.live))

    def _resumed(self, plan: Plan) -> Plan:
        if plan.successor is None:
            return self._unsent(plan)
        # The sweep that had taken it over failed, and its end was copied. What this one had
        # proven before was for another state than the one that was copied.
        return replace(start_round(plan, plan.state, plan.turned_at, dated=False), successor=None)

    async def _send_again(self, plan: Plan) -> None:
        if plan.successor is not None:
            await self._dispatcher.send_step(plan)
            return
        results = await self._store.results(plan)
        for open_page in plan.live:
            if open_page.sent_at == plan.stepped_at and open_page.page not in results:
                await self._dispatcher.send_page(plan, open_page)
        await self._dispatcher.send_step(plan)

    async def _step(self, stored: StoredPlan[Plan]) -> bool:
        before = stored.plan
        if before.successor is not None:
            successor = await self._successor(before)
            if successor is not None:
                return await self._follow_successor(stored, successor)
            _log.warning("sweep resumed without its successor", **_log_fields(before))
            before = replace(self._unsent(before), successor=None)
        return await self._step_alone(stored, before)

    async def _step_alone(
        self, stored: StoredPlan[Plan], before: Plan, proven: tuple[OpenPage, ...] = ()
    ) -> bool:
        """The step of a sweep that continues by itself; False as `_step`.

        `proven` are the pages whose results can be deleted once it has ended.
        """
        if before.envelope is not None:
            is_made = await self._resume_clean_end(stored, before, before.envelope, proven)
            if is_made is not None:
                return is_made
            before = replace(before, envelope=None)
        return await self._make_step(stored, before)

    async def _make_step(self, stored: StoredPlan[Plan], before: Plan) -> bool:
        """A step towards the proof of every page; False as `_step`."""
        snapshot = await self._effective(
            before, await self._keyrings.read_fresh(before.ask.project)
        )
        state, now = State.of(snapshot), snapshot.lease.read_at
        if state.generation < before.state.generation:
            raise KeyringRolledBackError(
                f"the keyring is at generation {state.generation}, "
                f"and was at {before.state.generation}"
            )
        before = with_lease(before, snapshot.lease_s, snapshot.keyring.lease_s, now)
        before = reconcile_clock(before, now, proves=snapshot.proves)
        if before.step == 0:
            if not self._refuses_late_writes and not before.ask.of_all:
                _log.warning("the storage does not refuse late writes", **_log_fields(before))
            ranges = await self._planner.key_ranges(before.ask.project)
            before = replace(before, ranges=ranges)
        lease_s = before.lease_s or snapshot.lease_s
        applied = apply_results(before, await self._store.results(before), now, lease_s)
        plan, proven = applied.plan, applied.proven
        if state != plan.state:
            # Pages of the new round have the numbers of the old ones: none of them is proven.
            plan, proven = start_round(plan, state, now, dated=snapshot.proves), ()
            _log.info("sweep overtaken", **_log_fields(plan), round=plan.round)
        if before.step == 0 or plan.round != before.round:
            # Nothing is proven yet that could be older than what is taken over here.
            master_key = snapshot.desired.master_key
            plan = await take_over_earlier(self._store, self._dispatcher, plan, master_key)
        if plan.round == before.round:
            for page, result in applied.failing.items():
                await self._store.add_failures(
                    plan, page, result.failures, snapshot.desired.master_key
                )
        plan = await self._planner.extend(plan)
        if plan.complete:
            return await self._complete(stored, plan, proven)
        plan, sent = mark_due_pages(plan, now)
        return await self._continue(stored, plan, snapshot, sent, proven)

    async def extend_lease(self, stored: StoredPlan[Plan]) -> bool:
        """Write this worker's longer lease into a sweep's record, and start a new round.

        Returns whether the record's lease was shorter. What this worker writes could then arrive
        later than the sweep's proofs allow for, so it must not process a page before (SPEC 8.4).
        Its writes may even outlive this sweep, so the keyring must name the lease to the sweeps
        that follow.

        Raises:
            StorageUnavailableError: the keyring changed meanwhile: try later.
            CorruptObjectError, UnknownProjectError, UnknownMasterKeyError: it cannot be read.
        """
        plan, own_s = stored.plan, self._lease_s
        if plan.ask.dry_run:
            return False  # it writes nothing
        snapshot = await self._keyrings.read_recent(plan.ask.project)
        named_s = snapshot.keyring.lease_s or plan.lease_s or own_s
        if own_s <= min(named_s, plan.lease_s or own_s):
            return False
        if own_s > named_s:
            snapshot = await self._keyrings.read_fresh(plan.ask.project)
            if not await self._change(snapshot, snapshot.keyring):
                raise StorageUnavailableError("the keyring changed while it was to name a lease")
            await self._keyrings.read_fresh(plan.ask.project)  # which marks it
        _log.warning(
            "sweep's lease lengthened", **_log_fields(plan), lease_s=own_s, was_s=plan.lease_s
        )
        longer = replace(plan, lease_s=own_s)
        plan = start_round(longer, plan.state, plan.turned_at, dated=plan.turn_dated)
        plan = replace(plan, step=plan.step + RESUME_STEPS, stepped_lease_s=own_s)
        if await self._store.change(plan, stored.etag, stored.master_key):
            await self._dispatcher.send_step(plan)
        return True

    async def _successor(self, plan: Plan) -> StoredPlan[Plan] | None:
        """The sweep that took this one over; None if its record is gone."""
        try:
            return await self._store.read(str(plan.successor), plan.ask.project)
        except (MissingError, CorruptObjectError):
            return None

    async def _follow_successor(
        self, stored: StoredPlan[Plan], successor: StoredPlan[Plan]
    ) -> bool:
        """Wait for the end of the sweep that took this one over, or copy it; False as `_step`.

        The record is written under the successor's master key, which follows the keyring's.
        """
        plan, later = stored.plan, successor.plan
        if later.status != "running" and plan.ask.sweep_id not in later.taken:
            # It was marked by a worker that stalled until the other sweep had ended, or whose
            # step was lost: that end says nothing about this sweep's state.
            _log.warning("sweep resumed: its successor never took it over", **_log_fields(plan))
            return await self._step_alone(stored, replace(self._unsent(plan), successor=None))
        if later.status == "running":
            plan = replace(plan, step=plan.step + 1, idle=plan.idle + 1)
            if not await self._store.change(plan, stored.etag, successor.master_key):
                return False
            await self._dispatcher.send_step(plan, pause_s(plan))
            return True
        await restore_noted_tags(self._storage, self._store, plan)
        ended = copy_end(plan, later)
        if not await self._store.change(ended, stored.etag, successor.master_key):
            return False
        _log.info("sweep ended with its successor", **_log_fields(plan), clean=ended.clean)
        await self._finish(await self._read(plan.ask.sweep_id, plan.ask.project))
        return True

    async def _continue(
        self,
        stored: StoredPlan[Plan],
        plan: Plan,
        snapshot: KeyringSnapshot,
        sent: tuple[OpenPage, ...] = (),
        proven: tuple[OpenPage, ...] = (),
    ) -> bool:
        """Change the record, and send what follows from it; False as `_step`."""
        now = snapshot.lease.read_at
        idle = 0 if _has_progressed(stored.plan, plan) else plan.idle + 1
        plan = replace(plan, step=plan.step + 1, stepped_at=now, idle=idle)
        if _is_worth_an_event(stored.plan, plan, now):
            plan = replace(plan, progressed_at=now)
        if not await self._store.change(plan, stored.etag, snapshot.desired.master_key):
            return False
        for open_page in sent:
            await self._dispatcher.send_page(plan, open_page)
        due_at = next_due_at(plan)
        wait_s = 0.0 if due_at is None else (due_at - now).total_seconds()
        idle_s = next(pause_s for steps, pause_s in _IDLE_S if idle >= steps)
        await self._dispatcher.send_step(plan, max(idle_s, wait_s))
        if plan.progressed_at == now:
            await self._dispatcher.publish_progress(plan.ask, plan.counts, plan.origins)
        await self._store.delete_page_results(plan, proven)
        return True

    async def _complete(
        self, stored: StoredPlan[Plan], plan: Plan, proven: tuple[OpenPage, ...]
    ) -> bool:
        """Every page is proven: let the keyring show it, and end the sweep (SPEC 8.6).

        False as `_step`.
        """
        await restore_noted_tags(self._storage, self._store, plan)
        named = plan.ask.master_key
        clean = plan.counts.all_as_desired and named in (None, plan.state.master_key)
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._keyrings.read_fresh(plan.ask.project)
            state = State.of(await self._effective(plan, snapshot))
            if state != plan.state:
                # It changed since this step began: what was proven is not the desired state now.
                at_now = snapshot.lease.read_at
                after = start_round(plan, state, at_now, dated=snapshot.proves)
                return await self._continue(stored, after, snapshot)
            if not clean or plan.ask.dry_run:
                break
            if plan.ask.encrypt_plaintext and snapshot.keyring.plaintext_allowed:
                # Forbidden first, and proven once more: an upload may have stored plaintext
                # behind the attempt at its page, by a keyring that still allowed it.
                if await self._change(snapshot, forbid_plaintext(snapshot.keyring)):
                    now = await self._keyrings.read_fresh(plan.ask.project)
                    again = start_round(plan, State.of(now), now.lease.read_at, dated=now.proves)
                    return await self._continue(stored, again, now)
                continue
            if not has_all_dates(plan):
                at_now = snapshot.lease.read_at
                again = start_round(plan, state, at_now, dated=snapshot.proves)
                return await self._continue(stored, again, snapshot)
            own = await self._evidence.find_own(plan, snapshot.keyring)
            if own is None:
                return await self._begin_clean_end(stored, plan, snapshot, proven)
            # It ended before, and was requested again once its record had been removed.
            refused = own.predicate.late_writes_refused
            plan = replace(plan, evidence=own.digest, late_writes_refused=refused)
            without_earlier = retire_old_keys(snapshot.keyring)
            if without_earlier == snapshot.keyring:
                break
            if await self._change(snapshot, without_earlier):
                await self._keyrings.read_fresh(plan.ask.project)  # which marks it
                break
        else:
            raise StorageUnavailableError("the keyring kept changing")
        return await self._end(stored, plan, snapshot, proven, clean=clean)

    # A clean end, and its evidence (SPEC 15.1). `evidence_log` lists the order of writes.

    async def _begin_clean_end(
        self,
        stored: StoredPlan[Plan],
        plan: Plan,
        snapshot: KeyringSnapshot,
        proven: tuple[OpenPage, ...],
    ) -> bool:
        """Keep the evidence of the end in the record, and go on from there; False as `_step`.

        The step stays the same: its message is delivered again if this worker dies.
        """
        envelope = await self._evidence.build(
            plan, snapshot.keyring, late_writes_refused=self._refuses_late_writes
        )
        kept = KeptEnvelope(envelope.decode(), State.of(snapshot))
        plan = replace(plan, envelope=kept)
        if not await self._store.change(plan, stored.etag, snapshot.desired.master_key):
            return False
        stored = await self._store.read(plan.ask.sweep_id, plan.ask.project)
        if (stored.plan.step, stored.plan.envelope) != (plan.step, kept):
            return False  # it was taken over, or resumed, and the worker that did so goes on
        return await self._step_alone(stored, stored.plan, proven)

    async def _resume_clean_end(
        self,
        stored: StoredPlan[Plan],
        plan: Plan,
        kept: KeptEnvelope,
        proven: tuple[OpenPage, ...],
    ) -> bool | None:
        """Make the end whose evidence is kept in the record; False as `_step`.

        None if it can no longer be made: the keyring that the evidence rests on was replaced by
        another one first.
        """
        evidence = parse(kept.text.encode())
        for _ in range(_MAX_ATTEMPTS):
            snapshot = await self._keyrings.read_fresh(plan.ask.project)
            if snapshot.etag == kept.state.etag:
                after = retire_old_keys(snapshot.keyring)
                await self._change(snapshot, with_evidence(after, evidence.digest))
                continue  # whichever write won, the keyring says which evidence follows
            if not await self._evidence.is_chained(evidence, snapshot.keyring):
                _log.info("evidence is regenerated", **_log_fields(plan))
                return None
            await self._evidence.publish(evidence)
            ended = end_with(plan, kept, evidence)
            return await self._end(stored, ended, snapshot, proven, clean=True)
        raise StorageUnavailableError("the keyring kept changing")

    async def _end(
        self,
        stored: StoredPlan[Plan],
        plan: Plan,
        snapshot: KeyringSnapshot,
        proven: tuple[OpenPage, ...],
        *,
        clean: bool,
    ) -> bool:
        if clean and not plan.ask.dry_run:
            await self._delete_older_keyrings(plan)
        refused = None if plan.ask.dry_run else self._refuses_late_writes
        ended = replace(
            plan,
            status="done",
            clean=clean,
            ended_at=snapshot.read_at,
            # Evidence says what its end says.
            late_writes_refused=plan.late_writes_refused if plan.evidence else refused,
        )
        if not await self._store.change(ended, stored.etag, snapshot.desired.master_key):
            return False
        _log.info("sweep ended", **_log_fields(plan), clean=clean, **plan.counts.to_json())
        await self._store.delete_page_results(plan, proven)
        await self._finish(await self._store.read(plan.ask.sweep_id, plan.ask.project))
        return True

    async def _delete_older_keyrings(self, plan: Plan) -> None:
        try:
            await delete_older_versions(self._storage, plan.ask.project)
        except RefusedError as exc:
            # They stay sealed under the master key. The objects are proven all the same.
            fields = _log_fields(plan)
            _log.warning("an older version of the keyring stays", **fields, problem=str(exc))

    async def _change(self, snapshot: KeyringSnapshot, keyring: Keyring) -> bool:
        return await replace_keyring(
            self._storage,
            keyring,
            snapshot.etag,
            self._keys,
            lease_s=self._lease_s,
        )

    async def restore_page_tags(self, plan: Plan, hint: SweepPage) -> None:
        """Put back the tags that were noted for a page of a sweep that was taken over."""
        await restore_page_tags(self._storage, self._store, plan, hint.round, hint.page)

    async def _before_end_published(self, stored: StoredPlan[Plan]) -> None:
        plan = stored.plan
        if plan.ask.of_all:
            await self._add_part_result(plan, stored.master_key)
        await self._store.delete_results(plan.ask.sweep_id, plan.ask.project)

    async def _add_part_result(self, plan: Plan, master_key: str) -> None:
        """Let the sweep of all know how this part ended: that one publishes the end."""
        result, request = PartResult.of(plan), plan.ask
        await self._store.add_part_result(request.sweep_id, request.project, result, master_key)
        await self._dispatcher.publish_progress(
            request, result.counts, plan.origins, clean=result.clean
        )

    async def _effective(self, plan: Plan, snapshot: KeyringSnapshot) -> KeyringSnapshot:
        return await effective_snapshot(plan.ask, snapshot, self._keys)


def _has_progressed(before: Plan, plan: Plan) -> bool:
    """Whether a step found anything to do."""
    return (before.round, before.live, before.ranges, before.proven) != (
        plan.round,
        plan.live,
        plan.ranges,
        plan.proven,
    )


def _is_worth_an_event(before: Plan, plan: Plan, now: datetime) -> bool:
    """Whether progress is published: not if the counts are the same, and not too often."""
    if plan.counts == before.counts:
        return False
    pause = timedelta(seconds=_PART_PROGRESS_INTERVAL_S if plan.ask.of_all else 0)
    return plan.progressed_at is None or now - plan.progressed_at >= pause


def _log_fields(plan: Plan) -> dict[str, str]:
    return {"sweep_id": plan.ask.sweep_id, "project": plan.ask.project}
