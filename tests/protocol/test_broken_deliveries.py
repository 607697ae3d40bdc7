"""Deliveries that come again and again, against the broker's limit, with a guard taken out.

Each story holds with the workers' own classes, and is caught without the guard (SPEC 6.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.topology import DELIVERY_LIMIT
from keyturn_workers.pipeline.amqp import settlement
from tests.protocol.process import Options
from tests.protocol.stories import begin, violations

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.world import World

_ALARM_S: Final = 3600.0
_ONE: Final = Options(processes=1)


def a_broker_that_confirms_nothing_for_an_hour(world: World) -> None:
    """All that a worker can do is to keep a delivery, or to give it back."""
    begin(world)
    world.nothing_confirmed_until = world.clock.seconds + _ALARM_S
    world.upload("acme", "k", b"x")
    world.rotate("acme")
    world.run(seconds=_ALARM_S)
    assert world.events_of_type("upload.stored") == []
    world.run(seconds=60)  # not as late as the next delivery would come


def a_worker_that_dies_at_each_delivery(world: World) -> None:
    """A message may end each worker that it is delivered to, or each connection."""
    begin(world)
    world.upload("acme", "k", b"x")
    for _ in range(DELIVERY_LIMIT + 1):
        if not world.ready():
            break
        (queued,) = world.queue
        world.deliver(queued, world.processes[0])
        if any(call.op == "put off" for call in world.calls):
            assert world.run(until=lambda: queued.acknowledged)  # noqa: B023  # at once
        else:
            world.crash(world.processes[0])
    world.run()


_STORIES: Final[list[tuple[Callable[[World], None], str, Any]]] = [
    (a_broker_that_confirms_nothing_for_an_hour, "hold_s", lambda _: 1),
    (a_worker_that_dies_at_each_delivery, "RENEWED_AFTER", DELIVERY_LIMIT + 1),
]


@pytest.mark.parametrize("story", [story for story, _, _ in _STORIES])
def test_every_request_is_answered(story: Callable[[World], None]) -> None:
    assert violations(story, options=_ONE) == []


@pytest.mark.parametrize(("story", "guard", "broken"), _STORIES)
def test_a_guard_that_is_missing_is_caught(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[World], None], guard: str, broken: Any
) -> None:
    monkeypatch.setattr(settlement, guard, broken)
    assert any("waits forever" in each for each in violations(story, options=_ONE))
