"""What a bucket writer plants among a sweep's records proves nothing and stops nothing (SPEC 13).

The ids of rounds are in the names of records, so an attacker who can write the bucket knows
where further ones will be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.identifiers import keyring_s3_key
from keyturn.messages import SweepCompleted
from keyturn_workers.core.keyring import next_serial, with_master_key
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.sweep_records import part_path, record_path, round_prefix
from tests.protocol.process import MASTER_KEYS
from tests.protocol.stories import hint
from tests.protocol.world import World
from tools.harness.local_keys import build_keyring, parse_keyring

if TYPE_CHECKING:
    from collections.abc import Iterator

JUNK = b'{"v": 1, "project": 5, "master_key": "m1", "sealed": "AAAA"}'
NOWHERE = b'{"v": 1, "project": "acme", "master_key": "gone", "sealed": "AAAA"}'


@pytest.fixture
def world() -> Iterator[World]:
    """Two projects with an object each."""
    with World() as made:
        for project in ("acme", "beta"):
            made.enroll(project)
        made.run()
        for project in ("acme", "beta"):
            made.upload(project, "k", project.encode() * 9)
        made.run()
        yield made


def plant(world: World, key: str, body: bytes) -> None:
    world.server.plant(key, body, Headers({}))


def end(world: World, sweep: str) -> SweepCompleted:
    world.run()
    (event,) = [e for e in world.ended(sweep) if isinstance(e, SweepCompleted)]
    return event


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", JUNK, NOWHERE, NOWHERE.replace(b"acme", b"*")],
    ids=["empty", "no", "odd", "gone", "gone, of all"],
)
def test_a_planted_end_of_a_part_does_not_hide_its_project(world: World, body: bytes) -> None:
    sweep = world.sweep("*", master_key="m2")
    world.run(until=lambda: world.oracle.round("*"))
    walk_id = world.oracle.round("*")["id"]
    for project in ("acme", "beta"):
        plant(world, part_path(walk_id, project), body)
    event = end(world, sweep)
    assert (event.clean, event.objects, event.rewrapped) == (True, 2, 2)
    world.settle()
    assert world.oracle.violations == []


@pytest.mark.parametrize("body", [JUNK, NOWHERE], ids=["odd", "gone"])
def test_planted_records_keep_no_master_key_from_being_rotated(world: World, body: bytes) -> None:
    sweep = world.sweep("*", master_key="m2")
    for name in ("x/y/z.json", f"acme/{sweep}/failures/z.json", f"*/{sweep}/z.json", "q"):
        plant(world, f".keyturn/sweeps/{name}", body)
    assert end(world, sweep).clean


def test_a_forged_keyring_is_a_failure_of_the_whole(world: World) -> None:
    plant(world, keyring_s3_key("beta"), JUNK)
    event = end(world, world.sweep("*"))
    assert (event.clean, event.failed, event.objects) == (False, 1, 1)


def test_another_sweep_with_the_same_id_cannot_stop_a_sweep_of_all(world: World) -> None:
    """A publisher of one project knows the id from an event."""
    sweep = world.sweep("*", master_key="m2")
    world._publish({"type": "sweep.requested", "sweep_id": sweep, "project": "beta"})
    world.run()
    ends: list[Any] = [e for e in world.events if isinstance(e, SweepCompleted)]
    (of_all,) = [e for e in ends if e.project == "*"]
    assert (of_all.clean, of_all.objects) == (True, 2)


@pytest.mark.parametrize("body", [b"", JUNK, NOWHERE], ids=["empty", "odd", "gone"])
@pytest.mark.parametrize("folder", ["results", "tags", "failures"])
def test_planted_results_and_notes_delay_nothing(world: World, folder: str, body: bytes) -> None:
    rotation = world.rotate("acme")
    world.run(until=lambda: world.oracle.round("acme"))
    names = {
        "results": "00000000-000000.json",
        "tags": "00000000-000000-x.json",
        "failures": "00000000.json",
    }
    prefix = round_prefix("acme", world.oracle.round("acme")["id"])
    plant(world, f"{prefix}{folder}/{names[folder]}", body)
    world.run()
    event: Any = world.ended(rotation)[-1]
    assert (event.type, event.clean, event.rewrapped) == ("rotation.completed", True, 1)
    assert world.clock.seconds < 600
    assert world.dead == []


def test_parts_that_end_while_the_whole_waits_are_summed_up(world: World) -> None:
    """The step that started them failed after that, and is delivered again much later."""
    sweep = world.sweep("*", master_key="m2")
    record = record_path("*")

    def changes_record(call: Any) -> bool:
        return bool(call.op == "put" and call.key == record and call.state == "sent")

    # The whole's own record cannot be changed while both parts run to their end.
    seen: list[Any] = []

    def held(call: Any) -> bool:
        if changes_record(call) and len(world.events_of_type("sweep.progressed")) < 2:
            seen.append(call)
            return len(seen) > 1  # its creation goes through
        return False

    world.run(hold=held)
    event = end(world, sweep)
    assert (event.clean, event.objects) == (True, 2)


@pytest.mark.parametrize("is_next", [True, False])
def test_a_project_enrolled_meanwhile_is_swept_whichever_sweep_resealed_it(
    world: World, *, is_next: bool
) -> None:
    """Its keyring is under the new master key already, and has no mark yet; its object is not.

    A worker that died leaves the next serial. A second record of a serial that is marked is none
    that a worker left, so the project is a failure.
    """
    sweep = world.sweep("*", master_key="m2")
    world.run(keep=hint)
    world.enroll("gamma")
    world.run(keep=hint)
    world.upload("gamma", "k", b"gamma")
    world.run(keep=hint)
    # Like a step that dies before the part's own record is created.
    key = keyring_s3_key("gamma")
    ring = parse_keyring(world.server._bucket.get(key).readable_body(), "gamma", MASTER_KEYS)
    assert (ring.master_key, ring.history) == ("m1", ())
    ring = next_serial(ring) if is_next else ring
    plant(world, key, build_keyring(with_master_key(ring, "m2"), MASTER_KEYS))
    event = end(world, sweep)
    assert (event.clean, event.failed) == (is_next, 0 if is_next else 1)
    assert (event.objects, event.rewrapped) == ((3, 3) if is_next else (2, 2))
