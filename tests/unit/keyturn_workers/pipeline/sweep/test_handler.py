"""Pages that a record waits for are processed, and late results removed again (SPEC 8.5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn_workers.core.sweep_record import ALL
from keyturn_workers.keys.sweep_records import SweepStore, record_path, round_prefix
from keyturn_workers.pipeline.sweep.handler import SweepHandler
from keyturn_workers.pipeline.sweep.messages import SweepPage, SweepStep
from tests.unit.keyturn_workers.factories import OPERATOR_KEYS
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    OTHER_ID,
    PAGE,
    RECORD,
    RESULT,
    ROUND_ID,
    round_of,
)
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.errors import CodedError
    from keyturn_workers.core.sweep_record import OpenPage, ProjectRecord, Result, Round
    from keyturn_workers.keys.sweep_records import StoredRecord

RESULTS = f"{round_prefix('acme', ROUND_ID)}results/"
HINT = SweepPage(project="acme", round=ROUND_ID, page=0, attempt=0)


@dataclass
class Scene:
    """A project with one page under way, and a worker with a slow attempt at it."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    leases_differ: bool = False
    processed: int = 0

    def __post_init__(self) -> None:
        self.store = SweepStore(self.storage, OPERATOR_KEYS)
        itself = cast("Any", self)
        self.handler = SweepHandler(self.store, itself, cast("Any", None), itself)
        self.meanwhile: Callable[[ProjectRecord], ProjectRecord] | None = None

    async def process(self, record: ProjectRecord, of: Round, page: OpenPage) -> Result:
        """Stands in for the page worker."""
        assert (of, page) == (record.round, PAGE)
        self.processed += 1
        if self.meanwhile is not None:
            await self.change(self.meanwhile)
        return replace(RESULT, state=record.state)

    async def extend_lease(self, stored: StoredRecord[ProjectRecord]) -> bool:
        """Stands in for the reconciler."""
        del stored
        return self.leases_differ

    async def begin(self, record: ProjectRecord = RECORD) -> None:
        assert await self.store.create(record, "m1")

    async def change(self, to: Callable[[ProjectRecord], ProjectRecord]) -> None:
        stored = await self.store.read("acme")
        assert await self.store.change(to(stored.record), stored.etag, "m1")

    def results(self) -> list[str]:
        return [key for key in self.storage.stored_keys() if key.startswith(RESULTS)]


class Steps:
    """Stands in for what makes the steps of one kind of record."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        self.calls.append(f"{hint.step} {again}")

    async def record_failure(self, hint: SweepStep, error: CodedError) -> None:
        self.calls.append(f"{hint.step} {error}")

    async def resume(self, project: str) -> bool:
        self.calls.append(project)
        return True


@pytest.mark.parametrize(("project", "calls"), [("acme", (3, 0)), (ALL, (0, 3))])
async def test_a_step_is_that_of_its_record(project: str, calls: tuple[int, int]) -> None:
    one, every, unused = Steps(), Steps(), cast("Any", None)
    handler = SweepHandler(unused, cast("Any", one), cast("Any", every), unused)
    hint = SweepStep(project=project, step=4)
    await handler.run_step(hint, again=True)
    await handler.record_failure(hint, cast("Any", "down"))
    assert await handler.resume(project)
    assert (len(one.calls), len(every.calls)) == calls
    assert [*one.calls, *every.calls] == ["4 True", "4 down", project]


OVER: dict[str, Callable[[ProjectRecord], ProjectRecord]] = {
    "the round ended": lambda record: replace(record, round=None),
    "another round": lambda record: replace(record, round=replace(round_of(PAGE), id=OTHER_ID)),
    "the page is proven": lambda record: replace(record, round=round_of()),
    "another attempt": lambda record: replace(record, round=round_of(replace(PAGE, attempts=1))),
}


@pytest.mark.parametrize("how", OVER.values(), ids=OVER)
async def test_a_page_that_the_record_does_not_wait_for_is_not_processed(
    how: Callable[[ProjectRecord], ProjectRecord],
) -> None:
    scene = Scene()
    await scene.handler.process_page(HINT)  # there is no record yet
    await scene.begin(how(RECORD))
    await scene.handler.process_page(HINT)
    assert (scene.processed, scene.results()) == (0, [])


async def test_a_worker_with_a_longer_lease_processes_no_page_before_the_record_names_it() -> None:
    scene = Scene(leases_differ=True)
    await scene.begin()
    await scene.handler.process_page(HINT)
    assert (scene.processed, scene.results()) == (0, [])


async def test_a_result_that_the_record_waits_for_is_kept() -> None:
    scene = Scene()
    await scene.begin()
    await scene.handler.process_page(HINT)
    assert scene.results() == [f"{RESULTS}00000000-000000.json"]


@pytest.mark.parametrize("meanwhile", OVER.values(), ids=OVER)
async def test_a_result_that_no_step_will_read_is_removed(
    meanwhile: Callable[[ProjectRecord], ProjectRecord],
) -> None:
    scene = Scene()
    await scene.begin()
    scene.meanwhile = meanwhile
    await scene.handler.process_page(HINT)
    assert scene.results() == []


async def test_a_result_is_removed_if_the_record_is_gone() -> None:
    scene = Scene()
    await scene.begin()

    async def removed() -> None:
        await scene.storage.delete(record_path("acme"))

    scene.storage.before_next("put", removed)
    await scene.handler.process_page(HINT)
    assert scene.storage.stored_keys() == []


@pytest.mark.parametrize("moment", ["put", "read"])
async def test_a_lost_connection_leaves_no_result_behind(moment: str) -> None:
    """It cancels the handler, in the middle of the put or before the read of the record."""
    scene = Scene()
    await scene.begin()
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def held() -> None:
        reached.set()
        await go_on.wait()

    async def end_and_hold() -> None:
        await scene.change(OVER["the round ended"])
        if moment == "put":
            await held()
        else:
            scene.storage.before_next(moment, held)

    scene.storage.before_next("put", end_and_hold)
    work = asyncio.create_task(scene.handler.process_page(HINT))
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    go_on.set()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others)
    assert scene.results() == []
