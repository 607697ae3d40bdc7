"""Planner and prover: a sweep carried on by one step (SPEC 8.4 to 8.6).

A step reads the sweep's record and the keyring, judges what the pages' results tell, plans
further pages, changes the record by one conditional put, and only then sends what follows
from it. A step that comes twice, late or out of order finds that the record waits for
another one. Whoever dies leaves nothing behind but a message that comes again.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import structlog

from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    StorageUnavailableError,
)
from keyturn.identifiers import object_s3_key
from keyturn.metadata import ALGO, DELETED
from keyturn_workers.errors import MissingError, RefusedError, StorageAnswerError
from keyturn_workers.keyring import (
    Keyring,
    KeyringReader,
    KeyringSnapshot,
    delete_older_versions,
    forbid_plaintext,
    replace_keyring,
    retire_old_keys,
)
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.effective_state import wanted
from keyturn_workers.sweep.messages import SweepPage
from keyturn_workers.sweep.outbox import Outbox
from keyturn_workers.sweep.plan import Ended, OpenPage, Plan, State, SweepRequest
from keyturn_workers.sweep.planner import Planner
from keyturn_workers.sweep.progress import at, due, judge, moved, waits_until, with_lease
from keyturn_workers.sweep.step_runner import HURRY_STEPS, StepRunner
from keyturn_workers.sweep.store import Standing, SweepStore
from keyturn_workers.sweep.takeover import copied, pause_s, take_over_earlier

# Steps of a sweep that has something to do: progress is told no more often than this.
_BETWEEN_STEPS_S: Final = 1.0
_BETWEEN_TOLD_OF_ALL_S: Final = 120
# A step that found nothing to do comes again later and later: after so many of them, seconds.
_IDLE_S: Final = ((60, 30.0), (10, 9.0), (3, 5.0), (0, _BETWEEN_STEPS_S))
_MAX_TURNS: Final = 8

_log = structlog.get_logger()


class ProjectSweep(StepRunner[Plan]):
    """Carries sweeps of single projects on.

    Args:
        storage: The bucket.
        keyrings: The process's reads of keyrings.
        keys: The operator's.
        store: The records of sweeps.
        planner: Lists keys as pages.
        outbox: Hints and events.
        lease_s: The same in all processes (SPEC 8.4).
    """

    def __init__(
        self,
        storage: Storage,
        keyrings: KeyringReader,
        keys: OperatorKeys,
        store: SweepStore,
        planner: Planner,
        outbox: Outbox,
        *,
        lease_s: int,
    ) -> None:
        super().__init__(store, outbox)
        self._storage = storage
        self._keyrings = keyrings
        self._keys = keys
        self._planner = planner
        self._lease_s = lease_s

    @property
    def _refuses_late_writes(self) -> bool:
        return self._storage.capabilities.late_writes_refused

    async def _read(self, sweep_id: str, project: str) -> Standing[Plan]:
        return await self._store.read(sweep_id, project)

    def _unsent(self, plan: Plan) -> Plan:
        # A page done twice does no harm.
        return replace(plan, live=tuple(replace(live, sent_at=None) for live in plan.live))

    def _resumed(self, plan: Plan) -> Plan:
        if plan.successor is None:
            return self._unsent(plan)
        # The sweep that had taken it over failed, and its end was copied. What this one had
        # proven before was proven for another state than the one that was copied.
        return replace(moved(plan, plan.state, plan.turned_at, dated=False), successor=None)

    async def _send_again(self, plan: Plan) -> None:
        if plan.successor is not None:
            await self._outbox.step(plan)
            return
        told = await self._store.results(plan)
        sent = [live for live in plan.live if live.sent_at == plan.stepped_at]
        for live in (live for live in sent if live.page not in told):
            await self._outbox.page(plan, live)
        await self._outbox.step(plan)

    async def _step(self, standing: Standing[Plan]) -> bool:
        before = standing.plan
        if before.successor is not None:
            successor = await self._successor(before)
            if successor is not None:
                return await self._follow_successor(standing, successor)
            _log.warning("sweep resumed without its successor", **_named(before))
            before = replace(self._unsent(before), successor=None)
        return await self._make_step(standing, before)

    async def _make_step(self, standing: Standing[Plan], before: Plan) -> bool:
        """The step of a sweep that goes on by itself; False as `_step`."""
        observed = self._wanted(before.ask, await self._keyrings.read_fresh(before.ask.project))
        state, now = State.of(observed), observed.lease.read_at
        if state.generation < before.state.generation:
            raise KeyringRolledBackError(
                f"the keyring stands at generation {state.generation}, "
                f"and stood at {before.state.generation}"
            )
        before = with_lease(before, observed.lease_s, observed.keyring.lease_s, now)
        before = at(before, now, proves=observed.proves)
        if before.step == 0:
            if not self._refuses_late_writes and not before.ask.of_all:
                _log.warning("the storage does not refuse late writes", **_named(before))
            ranges = await self._planner.key_ranges(before.ask.project)
            before = replace(before, ranges=ranges)
        lease_s = before.lease_s or observed.lease_s
        judged = judge(before, await self._store.results(before), now, lease_s)
        plan, proven = judged.plan, judged.proven
        if state != plan.state:
            # Pages of the new round bear the numbers of the old one's: none of them is done.
            plan, proven = moved(plan, state, now, dated=observed.proves), ()
            _log.info("sweep overtaken", **_named(plan), round=plan.round)
        if before.step == 0 or plan.round != before.round:
            # Nothing is proven yet that could be older than what is taken over here.
            master_key = observed.desired.master_key
            plan = await take_over_earlier(self._store, self._outbox, plan, master_key)
        if plan.round == before.round:
            for page, result in judged.failing.items():
                await self._store.add_failures(
                    plan, page, result.failures, observed.desired.master_key
                )
        plan = await self._planner.extend(plan)
        if plan.complete:
            return await self._settle(standing, plan, proven)
        plan, sent = due(plan, now)
        return await self._go_on(standing, plan, observed, sent, proven)

    async def lengthen(self, standing: Standing[Plan]) -> bool:
        """Write this worker's longer lease into a sweep's record, and begin a new round.

        Gives whether the record's was shorter: what this worker writes may then arrive later
        than its proofs are held against, so it may do no page of it before (SPEC 8.4). It may
        even outlive this sweep, so the keyring is to name the lease to the sweeps that follow.

        Raises:
            StorageUnavailableError: the keyring changed meanwhile: later.
            CorruptObjectError, UnknownProjectError, UnknownMasterKeyError: it cannot be read.
        """
        plan, own_s = standing.plan, self._lease_s
        if plan.ask.dry_run:
            return False  # it writes nothing
        observed = await self._keyrings.read_recent(plan.ask.project)
        named_s = observed.keyring.lease_s or plan.lease_s or own_s
        if own_s <= min(named_s, plan.lease_s or own_s):
            return False
        if own_s > named_s:
            observed = await self._keyrings.read_fresh(plan.ask.project)
            if not await self._change(observed, observed.keyring):
                raise StorageUnavailableError("the keyring changed while it was to name a lease")
        _log.warning("sweep's lease lengthened", **_named(plan), lease_s=own_s, was_s=plan.lease_s)
        longer = replace(plan, lease_s=own_s)
        plan = moved(longer, plan.state, plan.turned_at, dated=plan.turn_dated)
        plan = replace(plan, step=plan.step + HURRY_STEPS, stepped_lease_s=own_s)
        if await self._store.change(plan, standing.etag, standing.master_key):
            await self._outbox.step(plan)
        return True

    async def _successor(self, plan: Plan) -> Standing[Plan] | None:
        """The sweep that took this one over; None where its record is gone."""
        try:
            return await self._store.read(str(plan.successor), plan.ask.project)
        except (MissingError, CorruptObjectError):
            return None

    async def _follow_successor(self, standing: Standing[Plan], successor: Standing[Plan]) -> bool:
        """Wait for the end of the sweep that took this one over, or copy it; False as `_step`.

        The record is written under the successor's master key, which follows the keyring's.
        """
        plan, later = standing.plan, successor.plan
        if later.status != "running" and plan.ask.sweep_id not in later.taken:
            # It was marked by a worker that stalled until the other sweep had ended, or whose
            # step was lost: that end says nothing of this sweep's state.
            _log.warning("sweep resumed: its successor never took it", **_named(plan))
            return await self._make_step(standing, replace(self._unsent(plan), successor=None))
        if later.status == "running":
            plan = replace(plan, step=plan.step + 1, idle=plan.idle + 1)
            if not await self._store.change(plan, standing.etag, successor.master_key):
                return False
            await self._outbox.step(plan, pause_s(plan))
            return True
        await self._restore_noted_tags(plan)
        ended = copied(plan, later)
        if not await self._store.change(ended, standing.etag, successor.master_key):
            return False
        _log.info("sweep ended with its successor", **_named(plan), clean=ended.clean)
        await self._tell_end(await self._read(plan.ask.sweep_id, plan.ask.project))
        return True

    async def _go_on(
        self,
        standing: Standing[Plan],
        plan: Plan,
        observed: KeyringSnapshot,
        sent: tuple[OpenPage, ...] = (),
        proven: tuple[OpenPage, ...] = (),
    ) -> bool:
        """Change the record, and send what follows from it; False as `_step`."""
        now = observed.lease.read_at
        idle = 0 if _has_moved(standing.plan, plan) else plan.idle + 1
        plan = replace(plan, step=plan.step + 1, stepped_at=now, idle=idle)
        if _has_news(standing.plan, plan, now):
            plan = replace(plan, progressed_at=now)
        if not await self._store.change(plan, standing.etag, observed.desired.master_key):
            return False
        for live in sent:
            await self._outbox.page(plan, live)
        waits = waits_until(plan)
        wait_s = 0.0 if waits is None else (waits - now).total_seconds()
        idle_s = next(pause_s for steps, pause_s in _IDLE_S if idle >= steps)
        await self._outbox.step(plan, max(idle_s, wait_s))
        if plan.progressed_at == now:
            await self._outbox.progressed(plan.ask, plan.counts, plan.origins)
        await self._store.forget(plan, proven)
        return True

    async def _settle(
        self, standing: Standing[Plan], plan: Plan, proven: tuple[OpenPage, ...]
    ) -> bool:
        """Every page is proven: let the keyring show it, and end the sweep (SPEC 8.6).

        False as `_step`.
        """
        await self._restore_noted_tags(plan)
        named = plan.ask.master_key
        clean = plan.counts.nothing_left and named in (None, plan.state.master_key)
        for _ in range(_MAX_TURNS):
            observed = await self._keyrings.read_fresh(plan.ask.project)
            wanted = self._wanted(plan.ask, observed)
            if State.of(wanted) != plan.state:
                # It moved since this step began: what was proven is not what is wanted now.
                at_now = observed.lease.read_at
                after = moved(plan, State.of(wanted), at_now, dated=observed.proves)
                return await self._go_on(standing, after, observed)
            if not clean or plan.ask.dry_run:
                break
            if plan.ask.encrypt_plaintext and observed.keyring.plaintext_allowed:
                # Forbidden first, and proven once more: an upload may have stored plaintext
                # behind the look at its page, by a keyring that still allowed it.
                if await self._change(observed, forbid_plaintext(observed.keyring)):
                    now = await self._keyrings.read_fresh(plan.ask.project)
                    again = moved(plan, State.of(now), now.lease.read_at, dated=now.proves)
                    return await self._go_on(standing, again, now)
                continue
            after_all = retire_old_keys(observed.keyring)
            if after_all == observed.keyring or await self._change(observed, after_all):
                break
        else:
            raise StorageUnavailableError("the keyring kept changing")
        if clean and not plan.ask.dry_run:
            await self._forget_older_keyrings(plan)
        ended = replace(
            plan,
            status="done",
            clean=clean,
            ended_at=observed.read_at,
            late_writes_refused=None if plan.ask.dry_run else self._refuses_late_writes,
        )
        if not await self._store.change(ended, standing.etag, observed.desired.master_key):
            return False
        _log.info("sweep ended", **_named(plan), clean=clean, **plan.counts.to_json())
        await self._store.forget(plan, proven)
        await self._tell_end(await self._store.read(plan.ask.sweep_id, plan.ask.project))
        return True

    async def _forget_older_keyrings(self, plan: Plan) -> None:
        try:
            await delete_older_versions(self._storage, plan.ask.project)
        except RefusedError as exc:
            # They stay sealed under the master key; the objects are proven all the same.
            _log.warning("an older version of the keyring stays", **_named(plan), problem=str(exc))

    async def _change(self, observed: KeyringSnapshot, keyring: Keyring) -> bool:
        return await replace_keyring(
            self._storage,
            keyring,
            observed.etag,
            self._keys.master_keys,
            lease_s=self._lease_s,
        )

    async def _restore_noted_tags(self, plan: Plan) -> None:
        """Put back what a worker that died left noted, of rounds that were given up too."""
        async for note, tags_by_key in self._store.noted_tags(plan):
            for key, tags in tags_by_key.items():
                await self._restore_tags(plan, object_s3_key(plan.ask.project, key), tags)
            await self._store.forget_note(note)

    async def restore_tags_of(self, plan: Plan, hint: SweepPage) -> None:
        """Put back the tags that were noted for a page of a sweep that was taken over.

        A worker that died in the midst of the page may have left them noted, and no other
        worker does that page again. A note stays until the sweep's end: the page may be under
        way all the same.
        """
        page = OpenPage(page=hint.page, after="", last="")
        async for note, tags_by_key in self._store.noted_tags(
            replace(plan, round=hint.round), page
        ):
            for key, tags in tags_by_key.items():
                await self._restore_tags(plan, object_s3_key(plan.ask.project, key), tags)
            if plan.status != "running":
                await self._store.forget_note(note)

    async def _restore_tags(self, plan: Plan, s3_key: str, tags: Mapping[str, str]) -> None:
        try:
            head = await self._storage.head(s3_key)
            if not head.tag_count and head.metadata.get(ALGO) != DELETED:
                await self._storage.write_tags(s3_key, tags)
        except MissingError:
            return
        except StorageAnswerError as exc:
            _log.error("tags not put back", **_named(plan), s3_key=s3_key, problem=str(exc))

    async def _before_told(self, standing: Standing[Plan]) -> None:
        plan = standing.plan
        if plan.ask.of_all:
            await self._add_to_all(plan, standing.master_key)
        await self._store.forget_all_results(plan)

    async def _add_to_all(self, plan: Plan, master_key: str) -> None:
        """Let the sweep of all know how this part of it ended: that publishes one end."""
        ended = Ended.of(plan)
        await self._store.add_ended(plan.ask.sweep_id, plan.ask.project, ended, master_key)
        await self._outbox.progressed(plan.ask, ended.counts, plan.origins, clean=ended.clean)

    def _wanted(self, ask: SweepRequest, observed: KeyringSnapshot) -> KeyringSnapshot:
        return wanted(ask, observed, self._keys.master_keys)


def _has_moved(before: Plan, plan: Plan) -> bool:
    """Whether a step did anything but come by."""
    return (before.round, before.live, before.ranges, before.proven) != (
        plan.round,
        plan.live,
        plan.ranges,
        plan.proven,
    )


def _has_news(before: Plan, plan: Plan, now: datetime) -> bool:
    """Whether progress is worth an event: not of the same counts, nor too often."""
    if plan.counts == before.counts:
        return False
    # The parts of a sweep of all may be many.
    pause = timedelta(seconds=_BETWEEN_TOLD_OF_ALL_S if plan.ask.of_all else 0)
    return plan.progressed_at is None or now - plan.progressed_at >= pause


def _named(plan: Plan) -> dict[str, str]:
    return {"sweep_id": plan.ask.sweep_id, "project": plan.ask.project}
