"""The world goes its way where nothing goes wrong, and the oracle sees what is wrong."""

from __future__ import annotations

from tests.unit.protocol.world import Options, World
from workers.storage import Differences


def test_a_day_without_trouble() -> None:
    with World() as world:
        world.enroll("acme")
        world.run()
        for key in ("a", "b", "c", "d", "e"):
            world.upload("acme", key, key.encode() * 300, staged=key == "c")
        world.run()
        rotation = world.rotate("acme")
        world.run()
        world.delete("acme", "b")
        world.sweep("*", master_key="m2")
        world.run()
        assert [event.type for event in world.ended(rotation)] == ["rotation.completed"]
        world.settle()
        assert world.oracle.violations == []
