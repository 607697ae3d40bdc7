"""What is asked for, when, and how often."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from keyturn_workers.console.feeds.refresher import Refresher
from keyturn_workers.console.feeds.requester import StatusRequester
from tests.unit.keyturn_workers.console.feeds.publishers import FakePublisher
from tests.unit.keyturn_workers.console.model.messages import (
    accepted,
    make_model,
    progressed,
    project_status,
    projects_report,
    report,
    rotation_completed,
    sweep_completed,
    sweep_status,
    sweeps_report,
    uid,
)

if TYPE_CHECKING:
    from keyturn.messages import Event

DIGEST = "1" * 64


class Scene:
    def __init__(self, *, parts: bool = False) -> None:
        self.parts = parts
        self.model = make_model()
        self.publisher = FakePublisher(self.answer)
        self.requester = StatusRequester(self.publisher, self.model)
        self.refresher = Refresher(
            self.requester, self.model, refresh_s=300, is_viewed=lambda: True, single_pause_s=0
        )
        self.tasks: list[asyncio.Task[None]] = []

    def answer(self, asked: dict[str, Any]) -> Event:
        number = len(self.publisher.requests)
        if asked["view"] == "projects" and asked["project"] == "*":
            if asked["known"] == DIGEST:
                return report(number, "projects", digest=DIGEST, next="b", unchanged=True)
            after = asked["after"]
            name, following = ("a", "b") if after is None else ("c", None)
            digest = DIGEST if after is None else None
            return projects_report(
                number, project_status(name), after=after, next=following, digest=digest
            )
        if asked["view"] == "projects":
            return projects_report(number, project_status(asked["project"], 2))
        if asked["view"] == "sweep":
            status = sweep_status(
                asked["project"],
                int(asked["sweep_id"][-2:], 16),
                part_of_all=self.parts and asked["project"] != "*",
            )
            return report(
                number,
                "sweep",
                project=asked["project"],
                sweep_id=asked["sweep_id"],
                sweeps=(status,),
            )
        return sweeps_report(number) if asked["view"] == "sweeps" else report(number, asked["view"])

    async def run(self, *coroutines: Any) -> None:
        tasks = [asyncio.create_task(each) for each in coroutines]
        for _ in range(200):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def asked(self, view: str) -> list[str]:
        return [each["project"] for each in self.publisher.requests if each["view"] == view]


async def test_an_inventory_reads_all_pages_and_names_what_is_held() -> None:
    scene = Scene()
    await scene.refresher.read_all("projects")
    await scene.refresher.read_all("projects")
    asked = [(each["after"], each["known"]) for each in scene.publisher.requests]
    assert asked == [(None, None), ("b", None), (None, DIGEST), ("b", None)]
    assert scene.model.overview().is_inventory_complete


async def test_all_views_are_read_at_the_start_and_when_a_page_is_opened_nothing_new() -> None:
    scene = Scene()
    await scene.run(scene.refresher.run_inventories())
    assert [each["view"] for each in scene.publisher.requests] == [
        *("master_keys", "projects", "projects", "sweeps")
    ]


async def test_a_rotation_that_begins_lets_its_project_be_asked_for() -> None:
    scene = Scene()
    scene.refresher.notice(accepted(1))
    scene.refresher.notice(accepted(1))
    await scene.run(scene.refresher.run_singles())
    assert scene.asked("projects") == ["acme"]


async def test_an_end_lets_sweep_and_project_be_asked_for() -> None:
    scene = Scene()
    scene.refresher.notice(rotation_completed(1))
    await scene.run(scene.refresher.run_singles())
    assert (scene.asked("sweep"), scene.asked("projects")) == (["acme"], ["acme"])


async def test_an_unknown_sweep_is_looked_up_once_and_then_the_whole() -> None:
    scene = Scene(parts=True)
    for seconds in range(3):
        for project in ("acme", "acme"):
            scene.refresher.notice(progressed(seconds, project, 5))
    await scene.run(scene.refresher.run_singles())
    scene.refresher.notice(progressed(9, "beta", 5))
    await scene.run(scene.refresher.run_singles())
    assert scene.asked("sweep") == ["acme", "*"]


async def test_the_end_of_a_sweep_of_all_lets_everything_be_read_soon() -> None:
    scene = Scene()
    scene.refresher.notice(sweep_completed(1, "*", 5))
    assert scene.refresher._inventory_s() == 10.0
    await scene.run(scene.refresher.run_singles())
    assert scene.asked("projects") == []


async def test_what_is_under_way_is_asked_for_again() -> None:
    scene = Scene()
    scene.model.apply_event(progressed(1, "acme", 5), 0)
    await scene.run(scene.refresher.run_running())
    assert scene.publisher.requests[0]["sweep_id"] == uid(5)
    assert len(scene.publisher.requests) == 1


async def test_nothing_is_asked_for_during_a_pause_until_a_page_is_opened() -> None:
    scene = Scene()
    scene.publisher.answer = lambda _: None
    await scene.refresher.read_all("projects")
    await scene.run(scene.refresher.run_inventories())
    assert len(scene.publisher.requests) == 1
    scene.publisher.answer = scene.answer
    scene.refresher.look()
    await scene.run(scene.refresher.run_inventories())
    assert scene.asked("projects") == ["*", "*", "*"]


async def test_a_report_that_a_bug_cannot_take_ends_nothing() -> None:
    scene = Scene()

    def broken(_: dict[str, Any]) -> Event:
        raise KeyError("a bug")

    scene.publisher.answer = broken
    await scene.refresher.read_all("projects")
    scene.publisher.answer = scene.answer
    await scene.refresher.read_all("projects")
    assert scene.model.overview().projects == 2


async def test_each_of_many_that_are_under_way_has_its_turn() -> None:
    scene = Scene()
    for number in range(20):
        scene.model.apply_event(progressed(1, f"p{number}", 5), number)
    for _ in range(3):
        scene.refresher._looked_at_running.set()
        await scene.run(scene.refresher.run_running())
    assert {*scene.asked("sweep")} == {f"p{number}" for number in range(20)}
