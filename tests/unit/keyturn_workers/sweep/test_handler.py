"""A worker whose result comes too late removes it again (SPEC 8.5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from keyturn.crypto import Secret
from keyturn.identifiers import sweep_prefix
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.handler import SweepHandler
from keyturn_workers.sweep.messages import SweepPage
from keyturn_workers.sweep.plan import OpenPage, Plan, Result, State, SweepRequest
from keyturn_workers.sweep.sweep_store import StoredPlan, SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from collections.abc import Callable

SWEEP_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
FOLDER: Final = sweep_prefix(SWEEP_ID, "acme")
NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
STATE: Final = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
PAGE: Final = SweepPage(sweep_id=SWEEP_ID, project="acme", round=0, page=0, take=0)
OPEN_PAGE: Final = OpenPage(page=0, after="", last="", sent_at=NOW, sends=1)


@dataclass
class Scene:
    """A sweep with one page under way, and a worker with a slow attempt at it."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)

    def __post_init__(self) -> None:
        self.store = SweepStore(self.storage, operator_keys({"m1": Secret(bytes(32))}))
        unused, itself = cast("Any", None), cast("Any", self)
        self.handler = SweepHandler(self.store, itself, unused, itself)
        self.meanwhile: Callable[[Plan], Plan] | None = None

    async def process(self, plan: Plan, open_page: OpenPage) -> Result:
        """Stands in for the page worker."""
        if self.meanwhile is not None:
            await self.change(self.meanwhile)
        return Result(open_page.after, open_page.last, plan.state, NOW, Counts(), changed=0)

    async def extend_lease(self, stored: StoredPlan[Plan]) -> bool:
        """Stands in for the project sweep: leases are the same here."""
        del stored
        return False

    async def begin(self) -> None:
        plan = Plan(SweepRequest("sweep", SWEEP_ID, "acme", ""), STATE, NOW, NOW, live=(OPEN_PAGE,))
        assert await self.store.create(plan, "m1")

    async def change(self, to: Callable[[Plan], Plan]) -> None:
        stored = await self.store.read(SWEEP_ID, "acme")
        assert await self.store.change(to(stored.plan), stored.etag, "m1")

    def results(self) -> list[str]:
        return [key for key in self.storage.stored_keys() if key.startswith(f"{FOLDER}results/")]


OVER: dict[str, Callable[[Plan], Plan]] = {
    "the sweep ended": lambda plan: replace(plan, status="done", live=()),
    "it failed": lambda plan: replace(plan, status="failed"),
    "another round": lambda plan: replace(plan, round=1),
    "the page is proven": lambda plan: replace(plan, live=()),
    "another attempt": lambda plan: replace(plan, live=(replace(OPEN_PAGE, take=1),)),
}


async def test_a_result_that_the_record_waits_for_is_kept() -> None:
    scene = Scene()
    await scene.begin()
    await scene.handler.process_page(PAGE)
    assert scene.results() == [f"{FOLDER}results/000000-00000000-000000.json"]


@pytest.mark.parametrize("meanwhile", OVER.values(), ids=OVER)
async def test_a_result_that_no_step_will_read_is_removed(
    meanwhile: Callable[[Plan], Plan],
) -> None:
    scene = Scene()
    await scene.begin()
    scene.meanwhile = meanwhile
    await scene.handler.process_page(PAGE)
    assert scene.results() == []


async def test_a_result_is_removed_if_the_records_are_gone() -> None:
    scene = Scene()
    await scene.begin()

    async def removed() -> None:
        await scene.storage.delete(f"{FOLDER}sweep.json")

    scene.storage.before_next("put", removed)
    await scene.handler.process_page(PAGE)
    assert scene.storage.stored_keys() == []


@pytest.mark.parametrize("moment", ["put", "read"])
async def test_a_lost_connection_leaves_no_result_behind(moment: str) -> None:
    """It cancels the handler, in the middle of the put or before the read of the plan."""
    scene = Scene()
    await scene.begin()
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        reached.set()
        await go_on.wait()

    async def end_and_hold() -> None:
        await scene.change(OVER["the sweep ended"])
        if moment == "put":
            await held()
        else:
            scene.storage.before_next(moment, held)

    scene.storage.before_next("put", end_and_hold)
    work = asyncio.create_task(scene.handler.process_page(PAGE))
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    go_on.set()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others)
    assert scene.results() == []
