"""A sweep that cannot continue is recorded, published and logged (SPEC 8.5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from keyturn.crypto import Secret
from keyturn.errors import StorageUnavailableError
from keyturn_workers.sweep import (
    ALL,
    AllPlan,
    Plan,
    SweepContext,
    SweepDispatcher,
    SweepRequest,
    SweepStore,
)
from keyturn_workers.sweep.all_projects_sweep import AllProjectsSweep
from keyturn_workers.sweep.messages import SweepStep
from keyturn_workers.sweep.plan import State
from keyturn_workers.sweep.project_sweep import ProjectSweep
from keyturn_workers.testing.memory_storage import MemoryStorage
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from keyturn.messages import Event

SWEEP_ID = "2f6c9a0e-1111-4111-8111-111111111111"
ERROR = StorageUnavailableError("it was away for a week")


class Sender:
    """Notes what is published and sent."""

    def __init__(self) -> None:
        self.published: list[Event] = []
        self.sent: list[bytes] = []

    async def publish_event(self, event: Event) -> None:
        self.published.append(event)

    async def send(self, body: bytes, queue: str, delay_s: float) -> None:
        del queue, delay_s
        self.sent.append(body)


async def _running(
    project: str, sender: Sender
) -> tuple[SweepStore, ProjectSweep | AllProjectsSweep]:
    store = SweepStore(MemoryStorage(), operator_keys({"m1": Secret(bytes(32))}))
    dispatcher, unused, now = SweepDispatcher(sender), cast("Any", None), datetime.now(UTC)
    context = SweepContext(unused, unused, unused, store, dispatcher, unused)
    request = SweepRequest("sweep", SWEEP_ID, project, "")
    await store.mark_running(request)
    if project == ALL:
        assert await store.create(AllPlan(request, now, step=3), "m1")
        return store, AllProjectsSweep(context, unused)
    state = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
    assert await store.create(Plan(request, state, now, now, step=3), "m1")
    return store, ProjectSweep(context, unused, lease_s=15)


async def _plan(store: SweepStore, project: str) -> Plan | AllPlan:
    if project == ALL:
        return (await store.read_all(SWEEP_ID)).plan
    return (await store.read(SWEEP_ID, project)).plan


@pytest.mark.parametrize("project", ["acme", ALL])
async def test_a_sweep_that_cannot_continue_is_recorded_published_and_logged(project: str) -> None:
    sender = Sender()
    store, runner = await _running(project, sender)
    hint = SweepStep(sweep_id=SWEEP_ID, project=project, step=3)
    with capture_logs() as logs:
        await runner.record_failure(hint, ERROR)
        await runner.record_failure(hint, ERROR)  # its message came twice
    plan = await _plan(store, project)
    assert (plan.status, plan.code, plan.clean) == ("failed", ERROR.code, False)
    (event,) = cast("list[Any]", sender.published)
    assert (event.type, event.project, event.code) == ("sweep.failed", project, ERROR.code)
    (line,) = [line for line in logs if line["event"] == "sweep failed"]
    assert (line["log_level"], line["project"], line["code"]) == ("error", project, ERROR.code)
    assert [row async for row in store.running()] == []
    assert sender.sent == []


@pytest.mark.parametrize("project", ["acme", ALL])
async def test_only_the_current_step_can_fail_a_sweep(project: str) -> None:
    sender = Sender()
    store, runner = await _running(project, sender)
    for step in (2, 4):
        await runner.record_failure(SweepStep(sweep_id=SWEEP_ID, project=project, step=step), ERROR)
    assert (await _plan(store, project)).status == "running"
    assert sender.published == []
