"""Ends that were copied from a later sweep, with a guard taken out (SPEC 8.6).

Both stories were found by a review of this protocol: each ended `clean` while an object was
still wrapped under an earlier key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keyturn.errors import CorruptObjectError
from keyturn.identifiers import format_time
from keyturn_workers.sweep.messages import SweepStep
from keyturn_workers.sweep.project_sweep import ProjectSweep
from tests.protocol.process import Options
from tests.protocol.stories import (
    accept_early_proofs,
    begin,
    hint,
    is_page,
    stop_at,
    violations,
    without,
)

if TYPE_CHECKING:
    import pytest

    from keyturn_workers.sweep.plan import Plan
    from keyturn_workers.sweep.sweep_store import StoredPlan
    from tests.protocol.broker import QueuedMessage
    from tests.protocol.world import World

_RUNNING = ".keyturn/sweeps/_running/"


def _plan(world: World, sweep_id: str) -> Any:
    return world.oracle.plan(sweep_id, "acme")


def a_sweep_requested_again_after_its_successor_failed(world: World) -> None:
    """It had proven pages for the state before the rotation that took it over."""
    begin(world, "a", "b", "c")
    sweep = world.sweep("acme")
    proven = lambda: (  # noqa: E731
        _plan(world, sweep) is not None and _plan(world, sweep)["proven"]["objects"] == 2
    )
    assert world.run(until=proven, keep=lambda queued: is_page(queued, 2))
    rotation = world.rotate("acme")
    taken = lambda: sweep in (_plan(world, rotation) or {}).get("taken", ())  # noqa: E731

    def of_the_first(queued: QueuedMessage) -> bool:
        return is_page(queued) or hint(queued).get("sweep_id") == sweep

    assert world.run(until=taken, keep=of_the_first)
    world.run(keep=hint)
    # As after a permanent error of one of its steps: the message of that step is a dead letter.
    world.queue[:] = [each for each in world.queue if hint(each).get("sweep_id") != rotation]
    failing = SweepStep(sweep_id=rotation, project="acme", step=_plan(world, rotation)["step"])
    handler: Any = world.processes[0].sweep_handler
    error = CorruptObjectError("a step of its own failed")
    world.loop.create_task(handler.record_failure(failing, error))
    world.loop.run_until_idle()
    assert world.run(until=lambda: world.events_of_type("sweep.failed"), keep=is_page)
    world.replay(sweep)
    world.run()
    end: Any = world.ended(sweep)[-1]
    assert end.type == "sweep.completed"
    for key in "abc":
        label = world.server.current_objects()[f"acme/{key}"].headers.metadata["enc-kek-user"]
        if end.clean and not label.startswith("2:"):
            world.oracle.violated(f"a clean end while acme/{key} is wrapped under {label}")


def _keeps_what_it_had_proven(self: ProjectSweep, plan: Plan) -> Plan:
    return replace(self._unsent(plan), successor=None)


def test_a_sweep_that_continues_after_its_successor_failed_proves_every_page_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story, options = a_sweep_requested_again_after_its_successor_failed, Options(page_keys=1)
    assert violations(story, options=options, settle=False) == []
    accept_early_proofs(monkeypatch)
    monkeypatch.setattr(ProjectSweep, "_resumed", _keeps_what_it_had_proven)
    found = violations(story, options=options, settle=False)
    assert any("acme/" in what for what in found), found


def a_mark_set_after_the_later_sweep_has_ended(world: World) -> None:
    """A worker stalls between reading the later sweep and marking the earlier one."""
    begin(world, "a")
    earlier = format_time(world.clock.now)
    world.advance(1)
    sweep = world.sweep("acme")
    listing = stop_at(world, "list", _RUNNING)
    world.disconnect(listing.sender, noticed=False)
    assert without(world, listing, until=lambda: world.ended(sweep))
    # Signed before the sweep, and delivered after its end.
    rotation = world.rotate("acme", requested_at=earlier)
    assert without(world, listing, until=lambda: _plan(world, rotation), keep=hint)
    world.step(listing)
    world.run()
    assert [event.type for event in world.ended(rotation)] == ["rotation.completed"]


async def _follows_any_sweep(
    self: ProjectSweep, stored: StoredPlan[Plan], successor: StoredPlan[Plan]
) -> bool:
    noted = replace(successor.plan, taken=(stored.plan.ask.sweep_id,))
    return await _follow(self, stored, replace(successor, plan=noted))


_follow = ProjectSweep._follow_successor


def test_no_sweep_copies_the_end_of_one_that_did_not_note_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_mark_set_after_the_later_sweep_has_ended
    assert violations(story, settle=False) == []
    monkeypatch.setattr(ProjectSweep, "_follow_successor", _follows_any_sweep)
    found = violations(story, settle=False)
    assert any("an earlier KEK opens acme/a" in what for what in found), found
