"""Markers of running sweeps are hints: a sweep without one continues (SPEC 8.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn.identifiers import SWEEPS_PREFIX
from keyturn_workers.sweep import recovery
from tests.protocol.stories import begin, hint, violations

if TYPE_CHECKING:
    import pytest

    from tests.protocol.world import World


def a_rotation_whose_messages_and_marker_are_gone(world: World) -> None:
    """The broker was emptied, and a bucket writer removed the marker."""
    begin(world, "a")
    world.rotate("acme")
    world.run(
        until=lambda: world.events_of_type("rotation.accepted"), keep=lambda each: bool(hint(each))
    )
    world.run(keep=lambda each: bool(hint(each)))
    world.queue[:] = [queued for queued in world.queue if not hint(queued)]
    world.bucket_writer.remove(f"{SWEEPS_PREFIX}_running/")


async def _leaves_them_alone(*_: Any) -> int:
    """`_UnmarkedSweeps.recover` of a round that trusts the markers."""
    return 0


def test_a_sweep_without_a_marker_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_rotation_whose_messages_and_marker_are_gone) == []
    monkeypatch.setattr(recovery._UnmarkedSweeps, "recover", _leaves_them_alone)
    found = violations(a_rotation_whose_messages_and_marker_are_gone)
    assert "the waiter of api's rotation.requested waits forever" in found
