"""Without faults everything succeeds, and the oracle detects what is wrong."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, Secret, seal
from tests.protocol.process import Options
from tests.protocol.stories import begin
from tests.protocol.world import World

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("versioned", [False, True])
def test_a_day_without_trouble(*, versioned: bool) -> None:
    with World(options=Options(versioned=versioned)) as world:
        begin(world, "a", "b", "c", "d", "e")
        rotation = world.rotate("acme")
        world.run()
        world.delete("acme", "b")
        world.sweep("*", master_key="m2")
        world.run()
        assert [event.type for event in world.ended(rotation)] == ["rotation.completed"]
        world.settle()
        assert world.oracle.violations == []
        # The rotation's claim, that of the sweep of all and its part, and the last sweep's.
        assert len(world.oracle.claims) == 4


def test_one_list_of_choices_gives_one_story() -> None:
    def published() -> list[tuple[str, float]]:
        with World() as world:
            begin(world, "a", "b", "c")
            world.rotate("acme")
            copy = next(iter(world.calls), None)
            world.run(seconds=2)
            world.crash(world.processes[0])
            world.run()
            assert copy is None
            return [(event.type, world.clock.seconds) for event in world.events]

    assert published() == published()


def _another_body(world: World) -> None:
    stored = world.server.current_objects()["acme/a"]
    body = seal(os.urandom(32), BODY_CONTEXT, b"a" * 100)
    world.oracle._object("acme/a", replace(stored, body=body))


def _no_object_any_more(world: World) -> None:
    world.oracle.deleted.add("acme/a")
    world.oracle._object("acme/a", world.server.current_objects()["acme/a"])


def _unknown_keys(world: World) -> None:
    world.oracle.projects["acme"].keks[1] = Secret(os.urandom(32))
    world.oracle._opened.clear()
    world.oracle.inspect("acme/a", world.server.current_objects()["acme/a"])


def _an_earlier_state(world: World) -> None:
    project = world.oracle.projects["acme"]
    project.states.append(replace(project.states[-1], generation=2))
    project.floor = 1
    world.oracle.check_all("acme", "now")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (_another_body, "the body of acme/a does not commit to its DEK"),
        (_no_object_any_more, "acme/a came back after its delete was published"),
        (_unknown_keys, "a wrap of acme/a does not open under any key that ever was"),
        (_an_earlier_state, "after a clean sweep"),
    ],
)
def test_the_oracle_sees_what_is_wrong(change: Callable[[World], None], found: str) -> None:
    with World() as world:
        begin(world, "a")
        assert world.oracle.violations == []
        change(world)
        assert any(found in what for what in world.oracle.violations)
