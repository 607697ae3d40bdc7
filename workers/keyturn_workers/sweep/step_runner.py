"""What a step message does to a sweep, of one project or of all (SPEC 8.5).

Messages are hints: they arrive twice, late, out of order or not at all. Only the record says how
far the sweep is. `project_sweep` and `all_projects_sweep` define what a step does.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Generic

import structlog

from keyturn.errors import (
    CodedError,
    NotFoundError,
    StorageUnavailableError,
    all_errors,
)
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.dispatcher import SweepDispatcher
from keyturn_workers.sweep.messages import SweepStep
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.sweep_store import PlanT, StoredPlan, SweepStore

# By two, so that no message of the step before can be taken for the step that is current now.
RESUME_STEPS: Final = 2
_MAX_ATTEMPTS: Final = 8

_log = structlog.get_logger()


class StepRunner(ABC, Generic[PlanT]):
    """Runs the steps of sweeps of one kind.

    Args:
        store: The records of sweeps.
        dispatcher: Sends hints and publishes events.
    """

    def __init__(self, store: SweepStore, dispatcher: SweepDispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher

    @abstractmethod
    async def _read(self, sweep_id: str, project: str) -> StoredPlan[PlanT]:
        """The record; `MissingError` if there is none."""

    @abstractmethod
    async def _step(self, stored: StoredPlan[PlanT]) -> bool:
        """Make the step; False if the record changed meanwhile."""

    @abstractmethod
    async def _send_again(self, plan: PlanT) -> None:
        """Send what the last step had to send: its worker may have died before that."""

    @abstractmethod
    async def _before_end_published(self, stored: StoredPlan[PlanT]) -> None:
        """Do what must be durable before the end counts as published, at least once."""

    def _unsent(self, plan: PlanT) -> PlanT:
        """The plan with everything to be sent again; for a sweep of all that is only its step."""
        return plan

    def _resumed(self, plan: PlanT) -> PlanT:
        """The plan as it continues after it had failed."""
        return self._unsent(plan)

    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        """Run a step of the sweep.

        Args:
            hint: The message.
            again: Whether this very message may have been served before.

        Raises:
            NotFoundError: there is no such sweep.
            CorruptObjectError, UnknownProjectError: its record or its keyring is forged, or the
                keyring is gone.
            KeyringRolledBackError, UnknownMasterKeyError, StorageUnavailableError: try later.
        """
        try:
            stored = await self._read(hint.sweep_id, hint.project)
        except MissingError as exc:
            # Nothing can be done for it. A request with the same id starts it again.
            raise NotFoundError("no record of this sweep exists in the bucket") from exc
        plan = stored.plan
        if plan.status == "done" or (plan.status == "failed" and hint.step != plan.step):
            await self._finish(stored)
        elif hint.step == plan.step:
            if plan.status == "failed":
                # Its dead letter was replayed, or its request was sent again.
                await self._store.mark_running(plan.ask)
                # Hints of pages that arrived meanwhile were dropped, since the sweep had ended.
                plan = self._resumed(plan)
            stored = replace(stored, plan=replace(plan, status="running", told=False))
            if not await self._step(stored) and again:
                await self._follow_up(hint)
        elif again and hint.step + 1 == plan.step:
            await self._send_again(plan)

    async def _follow_up(self, hint: SweepStep) -> None:
        """Continue after a step that was made just before this message could make it.

        That may have been an earlier delivery of this message: a put that arrived late, from a
        worker that died or lost its connection and sent nothing. A request that joined the sweep
        meanwhile changed no step, and sends the step itself.
        """
        try:
            stored = await self._read(hint.sweep_id, hint.project)
        except MissingError:
            return
        if stored.plan.status != "running":
            await self._finish(stored)
        elif hint.step + 1 == stored.plan.step:
            await self._send_again(stored.plan)

    async def _finish(self, stored: StoredPlan[PlanT]) -> None:
        """Publish how a sweep ended, at least once to each request, and remove its marker."""
        published = 0
        for _ in range(_MAX_ATTEMPTS):
            plan = stored.plan
            if not plan.told:
                await self._before_end_published(stored)
                if not plan.ask.of_all:
                    await self._publish_end(plan, published)
                    # Only requests that join meanwhile are left for the next attempt.
                    published = len(plan.origins)
                told = replace(plan, told=True)
                if not await self._store.change(told, stored.etag, stored.master_key):
                    stored = await self._read(plan.ask.sweep_id, plan.ask.project)
                    if stored.plan.status == "running":
                        return  # its request was sent again after it had failed
                    continue
            await self._store.unmark_running(plan.ask.sweep_id, plan.ask.project)
            return
        raise StorageUnavailableError("the sweep's record kept changing")

    async def _publish_end(self, plan: PlanT, first: int) -> None:
        for origin in plan.origins[first:]:
            if plan.status == "failed":
                await self._dispatcher.publish_failure(plan.ask, error_of(plan), origin)
            else:
                await self._dispatcher.publish_end(plan, origin)

    async def resume(self, sweep_id: str, project: str) -> None:
        """Make sure that a sweep continues whose messages may be lost.

        The record moves to the next step first. So of many workers that resume the sweep, one
        sends that step, and any older message is out of date. Its pages are sent again too.
        """
        try:
            stored = await self._read(sweep_id, project)
        except MissingError:
            return
        plan = stored.plan
        if plan.status != "running":
            await self._finish(stored)
            return
        plan = self._unsent(replace(plan, step=plan.step + RESUME_STEPS))
        if await self._store.change(plan, stored.etag, stored.master_key):
            await self._dispatcher.send_step(plan)

    async def record_failure(self, hint: SweepStep, error: CodedError) -> None:
        """Record and publish that a sweep cannot continue; a replay of its message resumes it.

        Raises:
            StorageUnavailableError, UnknownMasterKeyError: its record cannot be changed.
        """
        try:
            stored = await self._read(hint.sweep_id, hint.project)
        except MissingError:
            return
        plan = stored.plan
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
        if await self._store.change(plan, stored.etag, stored.master_key):
            fields = {"sweep_id": hint.sweep_id, "project": hint.project, "code": error.code}
            _log.error("sweep failed", **fields, detail=error.detail)
            await self._finish(await self._read(hint.sweep_id, hint.project))


def error_of(plan: Plan | AllPlan) -> CodedError:
    """The error with which a sweep failed."""
    return all_errors().get(plan.code, StorageUnavailableError)(plan.detail)
