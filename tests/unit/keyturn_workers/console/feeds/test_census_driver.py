"""A census goes from page to page, survives silence, and goes on where it stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from keyturn_workers.console.feeds import StatusRequester
from keyturn_workers.console.feeds.census_driver import CensusDriver
from tests.unit.keyturn_workers.console.feeds.publishers import FakePublisher
from tests.unit.keyturn_workers.console.model.messages import make_model, objects_report, report

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn_workers.console.model import Model

PAGES = {None: "b", "b": "c", "c": None}


class Scene:
    def __init__(self) -> None:
        self.model: Model = make_model()
        self.publisher = FakePublisher(self.page)
        self.silent_once: set[str | None] = set()
        self.time = 0
        requester = StatusRequester(self.publisher, self.model, pauses_s=(0.0,))
        self.driver = CensusDriver(requester, self.model, pause_s=0.0)

    def page(self, asked: dict[str, Any]) -> Event | None:
        self.time += 1
        after = asked["after"]
        if after in self.silent_once:
            self.silent_once.discard(after)
            return report(self.time, "objects", code="storage_unavailable", detail="away")
        return objects_report(self.time, ("encrypted", "main", 1), after=after, next=PAGES[after])

    async def ended(self) -> None:
        while self.driver.is_running:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)


async def test_all_pages_are_read() -> None:
    scene = Scene()
    scene.driver.start("ada")
    assert scene.model.census().is_running
    await scene.ended()
    await asyncio.sleep(0)
    census = scene.model.census()
    assert (census.is_complete, census.inspected, census.is_running) == (True, 3, False)


async def test_a_page_that_could_not_be_read_is_asked_for_again() -> None:
    scene = Scene()
    scene.silent_once.add("b")
    scene.driver.start(None)
    await scene.ended()
    assert [asked["after"] for asked in scene.publisher.requests] == [None, "b", "b", "c"]


async def test_it_goes_on_where_it_stopped() -> None:
    scene = Scene()
    scene.model.apply_report(objects_report(0, ("encrypted", "main", 1), next="b"))
    scene.driver.start(None)
    await scene.ended()
    assert [asked["after"] for asked in scene.publisher.requests] == ["b", "c"]
    assert scene.model.census().inspected == 3


async def test_it_can_be_cancelled() -> None:
    scene = Scene()
    scene.publisher.gate.clear()
    scene.driver.start(None)
    await asyncio.sleep(0)
    await scene.driver.close()
    assert not scene.model.census().is_running
