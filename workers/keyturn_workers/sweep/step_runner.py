"""What a message does to a sweep: the same for one project's and for one of all (SPEC 8.5).

Messages are hints: they come twice, late, out of order, or not at all, and the record alone
says where the sweep stands. What its steps are is the business of `steps` and `everyone`.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Generic

import structlog

from keyturn.errors import CodedError, NotFoundError, StorageUnavailableError, all_errors
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.messages import SweepStep
from keyturn_workers.sweep.outbox import Outbox
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.store import PlanT, Standing, SweepStore

# By two: what still travels of the step before is then no step before the current one.
HURRY_STEPS: Final = 2
_MAX_TURNS: Final = 8

_log = structlog.get_logger()


class StepRunner(ABC, Generic[PlanT]):
    """Carries sweeps of one kind on.

    Args:
        store: The records of sweeps.
        outbox: Hints and events.
    """

    def __init__(self, store: SweepStore, outbox: Outbox) -> None:
        self._store = store
        self._outbox = outbox

    @abstractmethod
    async def _read(self, sweep_id: str, project: str) -> Standing[PlanT]:
        """The record; `MissingError` where there is none."""

    @abstractmethod
    async def _step(self, standing: Standing[PlanT]) -> bool:
        """Make the step; False where somebody else had changed the record meanwhile."""

    @abstractmethod
    async def _send_again(self, plan: PlanT) -> None:
        """What the step before should have sent: whoever made it may have died before that."""

    @abstractmethod
    async def _before_told(self, standing: Standing[PlanT]) -> None:
        """What must be durable before the end counts as published, at least once."""

    def _unsent(self, plan: PlanT) -> PlanT:
        """The plan with everything to be sent again; of a sweep of all that is its step alone."""
        return plan

    def _resumed(self, plan: PlanT) -> PlanT:
        """The plan as it goes on after it had failed."""
        return self._unsent(plan)

    async def serve(self, hint: SweepStep, *, again: bool) -> None:
        """Carry the sweep on; `again` says that this very message may have been served before.

        Raises:
            NotFoundError: there is no such sweep.
            CorruptObjectError, UnknownProjectError: its record or its keyring was forged, or
                the keyring is gone.
            KeyringRolledBackError, UnknownMasterKeyError, StorageUnavailableError: later.
        """
        try:
            standing = await self._read(hint.sweep_id, hint.project)
        except MissingError as exc:
            # Nothing can be done for it; a request with the same id begins it anew.
            raise NotFoundError("no record of this sweep stands in the bucket") from exc
        plan = standing.plan
        if plan.status == "done" or (plan.status == "failed" and hint.step != plan.step):
            await self._tell_end(standing)
        elif hint.step == plan.step:
            if plan.status == "failed":
                # Its dead letter was replayed, or its request came again.
                await self._store.mark_running(plan.ask)
                # Hints of pages that came meanwhile found it ended, and went with that.
                plan = self._resumed(plan)
            standing = replace(standing, plan=replace(plan, status="running", told=False))
            if not await self._step(standing) and again:
                await self._follow(hint)
        elif again and hint.step + 1 == plan.step:
            await self._send_again(plan)

    async def _follow(self, hint: SweepStep) -> None:
        """Go on from a step that somebody else made just before this message could.

        That may have been its own earlier try: a put that came late, from a worker that died,
        or lost its connection, and sent nothing. A request that joined the sweep meanwhile
        changed no step, and sends it again by itself.
        """
        try:
            standing = await self._read(hint.sweep_id, hint.project)
        except MissingError:
            return
        if standing.plan.status != "running":
            await self._tell_end(standing)
        elif hint.step + 1 == standing.plan.step:
            await self._send_again(standing.plan)

    async def _tell_end(self, standing: Standing[PlanT]) -> None:
        """Publish how a sweep ended, at least once to each request that asked for it."""
        first = 0
        for _ in range(_MAX_TURNS):
            plan = standing.plan
            if not plan.told:
                await self._before_told(standing)
                if not plan.ask.of_all:
                    await self._publish_end(plan, first)
                    # Those who join meanwhile are the only ones left for the next turn.
                    first = len(plan.origins)
                told = replace(plan, told=True)
                if not await self._store.change(told, standing.etag, standing.master_key):
                    standing = await self._read(plan.ask.sweep_id, plan.ask.project)
                    if standing.plan.status == "running":
                        return  # its request came again after it had failed
                    continue
            await self._store.unmark_running(plan.ask.sweep_id, plan.ask.project)
            return
        raise StorageUnavailableError("the sweep's record kept changing")

    async def _publish_end(self, plan: PlanT, first: int) -> None:
        for origin in plan.origins[first:]:
            if plan.status == "failed":
                await self._outbox.failed(plan.ask, error_of(plan), origin)
            else:
                await self._outbox.ended(plan, origin)

    async def resume(self, sweep_id: str, project: str) -> None:
        """Make sure that a sweep goes on whose messages may be lost.

        Its record moves to the next step first, so that of many who hurry it one sends that
        step, and whatever still travels is out of date. Its pages are sent again as well.
        """
        try:
            standing = await self._read(sweep_id, project)
        except MissingError:
            return
        plan = standing.plan
        if plan.status != "running":
            await self._tell_end(standing)
            return
        plan = self._unsent(replace(plan, step=plan.step + HURRY_STEPS))
        if await self._store.change(plan, standing.etag, standing.master_key):
            await self._outbox.step(plan)

    async def fail(self, hint: SweepStep, error: CodedError) -> None:
        """Record and tell that a sweep cannot go on; a replay of its message carries it on.

        Raises:
            StorageUnavailableError, UnknownMasterKeyError: its record cannot be changed.
        """
        try:
            standing = await self._read(hint.sweep_id, hint.project)
        except MissingError:
            return
        plan = standing.plan
        if plan.status != "running" or hint.step != plan.step:
            return
        plan = replace(
            plan,
            status="failed",
            told=False,
            clean=False,
            code=error.code,
            detail=error.detail,
            ended_at=datetime.now(UTC),
        )
        if await self._store.change(plan, standing.etag, standing.master_key):
            said = {"sweep_id": hint.sweep_id, "project": hint.project, "code": error.code}
            _log.error("sweep failed", **said, detail=error.detail)
            await self._tell_end(await self._read(hint.sweep_id, hint.project))


def error_of(plan: Plan | AllPlan) -> CodedError:
    """The error with which a sweep failed."""
    return all_errors().get(plan.code, StorageUnavailableError)(plan.detail)
