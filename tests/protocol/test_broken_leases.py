"""Uploads by a worker with a longer lease than the keyring names (SPEC 5.2, 8.4).

A sweep worker names its lease before it writes. An upload worker changes no keyring, so it
replaces an object by no longer lease than the keyring names. The broken variant uses its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from tests.protocol.process import LEASE_S, Options
from tests.protocol.stories import OWN_LEASE, begin, hint, stop_at, stop_within, violations, without
from tests.protocol.wire import MID

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.process import Process
    from tests.protocol.wire import Call
    from tests.protocol.world import World

LONGER_LEASE: Final = Options(leases={0: 10 * LEASE_S})


def _own_copy(world: World) -> tuple[Process, Call]:
    """A copy by which an upload rewraps its own object, stored just before a rotation."""
    slow = world.processes[0]
    slow.stalled = True  # it writes no keyring, which would name its lease
    begin(world)
    slow.stalled = False
    world.upload("acme", "late", b"x" * 300, staged=True)
    (queued,) = world.ready()
    world.deliver(queued, slow)
    put = stop_within(world, "put_stream", "acme/late")
    world.step(put, respond=False)
    slow.stalled = True
    world.rotate("acme")
    world.run(until=lambda: world.events_of_type("rotation.accepted"), keep=hint)
    slow.stalled = False
    world.step(put)
    copy = stop_at(world, "copy_onto_itself", "acme/late", keep=hint)
    assert copy.sender is slow
    slow.stalled = True
    return slow, copy


def _land_late(world: World, slow: Process, copy: Call) -> None:
    """Within the lease of its sender, when two of the others' are long over."""
    without(world, copy, seconds=slow.lease_s - 2 * LEASE_S)
    slow.stalled = False
    while copy in world.calls:
        world.step(copy)
    world.run()


def a_delete_while_an_upload_rewraps_its_object(world: World) -> None:
    slow, copy = _own_copy(world)
    world.step(copy)
    assert copy.state == MID
    delete = world.delete("acme", "late")
    _land_late(world, slow, copy)
    assert world.ended(delete)


def a_rotation_while_an_upload_rewraps_its_object(world: World) -> None:
    slow, copy = _own_copy(world)
    rotation = world.rotate("acme")
    _land_late(world, slow, copy)
    assert world.ended(rotation)


@pytest.mark.parametrize(
    ("story", "violation"),
    [
        (a_delete_while_an_upload_rewraps_its_object, "acme/late came back after its delete"),
        (a_rotation_while_an_upload_rewraps_its_object, "acme/late is wrapped under (2,"),
    ],
)
def test_an_upload_has_no_longer_lease_than_the_keyring_names(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[World], None], violation: str
) -> None:
    assert violations(story, options=LONGER_LEASE) == []
    monkeypatch.setattr(KeyringSnapshot, "lease", OWN_LEASE)
    assert any(violation in what for what in violations(story, options=LONGER_LEASE))
