"""Rotations in a burst do not multiply work (SPEC 8.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn_workers.core.sweep_transitions import open_origins
from tests.protocol.process import Options
from tests.protocol.stories import establish_clock
from tests.protocol.world import World

if TYPE_CHECKING:
    import pytest

OBJECTS = 51
ROTATIONS = 14


def _reads_in_a_burst(rotations: int, gap_s: float | None = None) -> int:
    """Reads of objects by a number of rotations of one project that are requested at once."""
    looks = 0
    with World(options=Options(page_keys=500)) as world:
        world.enroll("acme")
        world.run()
        for number in range(OBJECTS):
            world.upload("acme", f"k{number:02}", b"x")
        world.run()
        establish_clock(world)
        network: Any = world.network
        ask = network.ask

        def counted(client: Any, op: str, key: str, *args: Any, **more: Any) -> Any:
            nonlocal looks
            looks += op == "read_start" and key.startswith("acme/")
            return ask(client, op, key, *args, **more)

        network.ask = counted
        requested = []
        for _ in range(rotations):
            requested.append(world.rotate("acme"))
            world.clock.seconds += 0.001
            if gap_s is not None:
                world.run(seconds=gap_s)
        world.run()
        ends: list[Any] = [world.ended(rotation) for rotation in requested]
        assert [[event.type for event in each] for each in ends] == [["rotation.completed"]] * (
            rotations
        )
        assert all(event.clean for each in ends for event in each)
        assert world.oracle.projects["acme"].states[-1].generation == rotations + 1
        assert world.oracle.violations == []
    return looks


def test_14_rotations_at_once_read_each_object_twice() -> None:
    """Once to rewrap it, once for the proof: as often as one rotation alone."""
    assert _reads_in_a_burst(1) == 2 * OBJECTS
    assert _reads_in_a_burst(ROTATIONS) == 2 * OBJECTS


def test_of_14_consecutive_rotations_each_reads_once_and_the_last_proves() -> None:
    assert _reads_in_a_burst(ROTATIONS, gap_s=0.5) == (ROTATIONS + 1) * OBJECTS


def test_a_round_for_each_request_would_multiply_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "keyturn_workers.core.sweep_transitions.choose_origins",
        lambda record: open_origins(record)[:1],
    )
    monkeypatch.setattr(
        "keyturn_workers.pipeline.sweep.reconciler.served_origins",
        lambda record, of, _: [each for each in open_origins(record) if each.name in of.origins],
    )
    assert _reads_in_a_burst(ROTATIONS) > ROTATIONS * OBJECTS
