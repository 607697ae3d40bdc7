"""Rotations without a record are restarted, and what that costs (SPEC 8.6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn_workers.keyring import Keyring, retire_old_keys
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.lost_rotations import OpenRotations
from keyturn_workers.sweep.plan import Plan, State, SweepRequest
from keyturn_workers.sweep.recovery import recover
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.master_keys.fakes import FakeProvider
from tools.harness.local_keys import build_keyring, operator_keys

NOW = datetime.now(UTC)
STALLED, KEEP = timedelta(minutes=15), timedelta(days=8)


class CountingStorage(MemoryStorage):
    """Notes what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    async def read(self, key: str, **more: Any) -> Any:
        self.reads.append(key)
        return await super().read(key, **more)


class Scene:
    """A bucket, and one process's rounds over it."""

    def __init__(self) -> None:
        self.storage = CountingStorage()
        self.store = SweepStore(self.storage, operator_keys(MASTER_KEYS))
        self.restarted: list[tuple[str, str]] = []
        self.rotations = self.process()

    def process(self) -> OpenRotations:
        return OpenRotations(
            self.storage, self.store, cast("Any", self), operator_keys(MASTER_KEYS)
        )

    async def restart_rotation(self, rotation_id: str, project: str) -> bool:
        """Stands in for the starter."""
        self.restarted.append((rotation_id, project))
        return True

    async def resume(self, sweep_id: str, project: str) -> None:
        """Stands in for the handler."""
        del sweep_id, project

    async def put(self, ring: Keyring) -> None:
        body = build_keyring(ring, MASTER_KEYS)
        await self.storage.put(keyring_s3_key(ring.project), body, Headers({}))

    async def round(self, later: timedelta = timedelta(hours=1)) -> None:
        self.storage.reads.clear()
        await recover(
            self.store,
            cast("Any", self),
            stalled_after=STALLED,
            keep_for=KEEP,
            now=NOW + later,
            rotations=self.rotations,
        )

    async def add_ended_sweep(self, ring: Keyring, sweep_id: str) -> None:
        """The record of a sweep that ended, and was published."""
        state = State(2, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
        request = SweepRequest("rotation", sweep_id, ring.project, ring.current.requested_at)
        plan = Plan(request, state, NOW, NOW, status="done", told=True)
        assert await self.store.create(plan, "m1")


def _rotated(project: str = "acme") -> Keyring:
    ring = rotated(keyring(project))
    return replace(ring, current=replace(ring.current, at=format_time(NOW)))


async def test_a_rotation_without_a_record_is_restarted_in_the_second_round() -> None:
    scene = Scene()
    ring = _rotated()
    await scene.put(ring)
    await scene.round()
    assert scene.restarted == []
    await scene.round()
    assert scene.restarted == [(ring.current.rotation_id, "acme")]


async def test_a_rotation_of_a_moment_ago_is_left_alone() -> None:
    scene = Scene()
    await scene.put(_rotated())
    for _ in range(3):
        await scene.round(timedelta(minutes=14))
    assert scene.restarted == []


async def test_a_rotation_with_a_record_is_left_alone_however_it_ended() -> None:
    scene = Scene()
    ring = _rotated()
    await scene.put(ring)
    await scene.add_ended_sweep(ring, ring.current.rotation_id)
    for _ in range(3):
        await scene.round()
    assert scene.restarted == []


@pytest.mark.parametrize("of", ["enrolled", "clean"])
async def test_a_keyring_without_earlier_keys_needs_no_record(of: str) -> None:
    scene = Scene()
    await scene.put(keyring() if of == "enrolled" else retire_old_keys(_rotated()))
    for _ in range(3):
        await scene.round(KEEP / 2 + timedelta(minutes=1))
    assert scene.restarted == []


async def test_a_recent_rotation_without_a_record_is_restarted_without_earlier_keys() -> None:
    """Its record was not removed for its age, and nothing else says that its end was published."""
    scene = Scene()
    ring = retire_old_keys(_rotated())
    await scene.put(ring)
    for _ in range(2):
        await scene.round(KEEP / 2)
    assert scene.restarted == [(ring.current.rotation_id, "acme")]


async def test_a_recent_rotation_that_ended_and_has_its_record_is_left_alone() -> None:
    scene = Scene()
    ring = retire_old_keys(_rotated())
    await scene.put(ring)
    await scene.add_ended_sweep(ring, ring.current.rotation_id)
    for _ in range(3):
        await scene.round()
    assert scene.restarted == []


async def test_an_enrollment_without_a_sweep_is_no_lost_rotation() -> None:
    scene = Scene()
    await scene.put(replace(keyring(), current=replace(keyring().current, at=format_time(NOW))))
    for _ in range(3):
        await scene.round()
    assert scene.restarted == []


async def test_a_keyring_is_read_once_until_it_changes() -> None:
    scene = Scene()
    for number in range(20):
        await scene.put(keyring(f"p{number}"))
    await scene.round()
    assert len(scene.storage.reads) == 20
    await scene.round()
    assert scene.storage.reads == []
    await scene.put(_rotated("p7"))
    await scene.round()
    # The keyring that changed, and the record that its rotation should have.
    assert [key for key in scene.storage.reads if "keyrings" in key] == [keyring_s3_key("p7")]
    assert len(scene.storage.reads) == 2


async def test_a_round_reads_a_limited_number_of_keyrings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_workers.sweep.lost_rotations._READS_PER_ROUND", 8)
    scene = Scene()
    for number in range(20):
        await scene.put(keyring(f"p{number:02}"))
    read = []
    for _ in range(4):
        await scene.round()
        read.append(len(scene.storage.reads))
    assert read == [8, 8, 4, 0]


async def test_the_last_rotations_record_is_kept_while_earlier_keys_are() -> None:
    scene = Scene()
    ring = _rotated()
    rotation_id, enrollment_id = ring.current.rotation_id, ring.history[0].rotation_id
    await scene.put(ring)
    await scene.add_ended_sweep(ring, rotation_id)
    await scene.add_ended_sweep(ring, enrollment_id)
    for _ in range(2):
        await scene.round(timedelta(days=30))
    assert await scene.store.find_plan(rotation_id, "acme") is not None
    assert await scene.store.find_plan(enrollment_id, "acme") is None
    await scene.put(retire_old_keys(ring))
    for _ in range(2):
        await scene.round(timedelta(days=30))
    assert await scene.store.find_plan(rotation_id, "acme") is None


async def test_records_are_kept_if_the_keyring_of_their_project_does_not_open_here() -> None:
    scene = Scene()
    ring = _rotated()
    other = build_keyring(replace(ring, master_key="m9"), {"m9": Secret(bytes(32))})
    await scene.storage.put(keyring_s3_key("acme"), other, Headers({}))
    await scene.add_ended_sweep(ring, ring.current.rotation_id)
    await scene.round(timedelta(days=30))
    assert await scene.store.find_plan(ring.current.rotation_id, "acme") is not None


async def test_records_are_kept_while_the_provider_of_their_master_key_is_away() -> None:
    scene = Scene()
    ring = _rotated()
    await scene.put(ring)
    await scene.add_ended_sweep(ring, ring.current.rotation_id)
    away = OperatorKeys({"m1": FakeProvider(failure=KmsUnavailableError("down"))})
    rotations = OpenRotations(scene.storage, scene.store, cast("Any", scene), away)
    await rotations.refresh()
    assert rotations.needs_record(ring.current.rotation_id, "acme")


async def test_a_marker_without_a_plan_is_kept_for_a_rotation_to_restart() -> None:
    scene = Scene()
    ring = _rotated()
    await scene.put(ring)
    await scene.store.mark_running(SweepRequest("rotation", ring.current.rotation_id, "acme", ""))
    await scene.store.mark_running(SweepRequest("sweep", ring.history[0].rotation_id, "acme", ""))
    await scene.round()
    marks = [sweep_id async for sweep_id, _, _ in scene.store.running()]
    assert marks == [ring.current.rotation_id]
