"""A sweep of all projects: a keyring that is listed and not found is not gone (SPEC 8.6).

If it were taken as gone, a project could be left under the master key that is to be dropped,
despite `clean: true`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from keyturn.errors import MarksUnavailableError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import KeyringReader, Mark
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import (
    ALL,
    AllPlan,
    SweepContext,
    SweepDispatcher,
    SweepRequest,
    SweepStore,
)
from keyturn_workers.sweep.all_projects_sweep import AllProjectsSweep
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.messages import SweepStep
from keyturn_workers.sweep.plan import PartResult
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.witness import FakeWitness
from tools.harness.local_keys import build_keyring, operator_keys

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn_workers.sweep.plan import Origins

SWEEP_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
GONE: Final = MissingError("read: NoSuchKey")


class Sender:
    """Notes what is published, and how long each step waits."""

    def __init__(self) -> None:
        self.published: list[Event] = []
        self.waits: list[float] = []

    async def publish_event(self, event: Event, *_: object) -> None:
        self.published.append(event)

    async def send(self, body: bytes, queue: str, delay_s: float) -> None:
        del body, queue
        self.waits.append(delay_s)


@dataclass
class Scenario:
    """Projects with keyrings under `m2`; a part that is started ends at once, and clean."""

    projects: tuple[str, ...] = ("acme", "bob")
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    sender: Sender = field(default_factory=Sender)
    witness: FakeWitness | None = None

    def __post_init__(self) -> None:
        for name in self.projects:
            body = build_keyring(keyring(name, master_key="m2"), MASTER_KEYS)
            self.storage.plant(keyring_s3_key(name), body, Headers({}))
        self.store = SweepStore(self.storage, operator_keys(MASTER_KEYS))
        self.keyrings = KeyringReader(
            self.storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=0, witness=self.witness
        )
        keys, starter = operator_keys(MASTER_KEYS), cast("Any", self)
        dispatcher = SweepDispatcher(cast("Any", self.sender))
        unused = cast("Any", None)
        context = SweepContext(self.storage, self.keyrings, keys, self.store, dispatcher, unused)
        self.all_projects_sweep = AllProjectsSweep(context, starter)
        self.started: list[str] = []

    async def start(self, request: SweepRequest, origins: Origins) -> None:
        """Stands in for the starter."""
        del origins
        await self.keyrings.read_fresh(request.project)
        self.started.append(request.project)
        result = PartResult(Counts(objects=1, current=1), clean=True)
        await self.store.add_part_result(SWEEP_ID, request.project, result, "m2")

    async def begin(self) -> None:
        request = SweepRequest("sweep", SWEEP_ID, ALL, "", master_key="m2")
        assert await self.store.create(AllPlan(request, datetime.now(UTC)), "m2")

    async def step(self) -> AllPlan:
        plan = (await self.store.read_all(SWEEP_ID)).plan
        hint = SweepStep(sweep_id=SWEEP_ID, project=ALL, step=plan.step)
        await self.all_projects_sweep.run_step(hint, again=False)
        return (await self.store.read_all(SWEEP_ID)).plan

    async def finished(self) -> AllPlan:
        """The record of the sweep at its end."""
        for _ in range(20):
            plan = await self.step()
            if plan.status != "running":
                return plan
        raise AssertionError("it never ends")


async def test_a_keyring_that_is_not_found_once_is_swept_in_a_later_walk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario()
    await scenario.begin()
    with monkeypatch.context() as hidden:
        _hide(hidden, scenario.storage, "acme")
        plan = await scenario.step()
    assert (plan.status, plan.not_found) == ("running", {"acme": 1})
    plan = await scenario.finished()
    assert (plan.clean, plan.projects) == (True, 2)


async def test_a_keyring_that_is_listed_and_never_found_fails_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario()
    _hide(monkeypatch, scenario.storage, "acme")
    await scenario.begin()
    plan = await scenario.finished()
    assert (plan.clean, plan.projects, plan.sums.failed) == (False, 2, 1)
    assert plan.not_found == {}
    result = await scenario.store.read_part_result(SWEEP_ID, "acme")
    assert result == PartResult(Counts(failed=1), clean=False)
    # With nothing else to do it waits a little before the next walk.
    assert scenario.sender.waits[-1] == 5


async def test_a_keyring_that_a_later_listing_no_longer_shows_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario()
    await scenario.begin()
    with monkeypatch.context() as hidden:
        _hide(hidden, scenario.storage, "acme")
        assert (await scenario.step()).not_found == {"acme": 1}
    await scenario.storage.delete(keyring_s3_key("acme"))
    plan = await scenario.finished()
    assert (plan.clean, plan.projects) == (True, 1)


async def test_a_keyring_that_is_not_found_at_the_end_is_not_under_the_master_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All parts ended; the last listing shows a keyring that cannot be read."""
    scenario = Scenario()
    await scenario.begin()
    await scenario.step()
    _hide(monkeypatch, scenario.storage, "bob")
    plan = await scenario.finished()
    assert not plan.clean


async def test_a_keyring_that_was_removed_before_the_end_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario()
    await scenario.begin()
    await scenario.step()
    read = scenario.storage.read

    async def removed_first(key: str, **more: Any) -> Any:
        if key == keyring_s3_key("bob"):
            await scenario.storage.delete(key)
        return await read(key, **more)

    monkeypatch.setattr(scenario.storage, "read", removed_first)
    plan = await scenario.finished()
    assert plan.clean


async def test_each_of_many_keyrings_that_are_not_found_is_counted_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record stays small; none of them is passed over."""
    monkeypatch.setattr("keyturn_workers.sweep.all_projects_sweep._MAX_NOT_FOUND", 1)
    scenario = Scenario(("acme", "bob", "carol"))
    _hide(monkeypatch, scenario.storage, *scenario.projects)
    await scenario.begin()
    plan = await scenario.finished()
    assert (plan.clean, plan.sums.failed) == (False, 3)


async def test_a_keyring_that_was_rolled_back_fails_its_part_and_the_others_go_on() -> None:
    witness = FakeWitness()
    scenario = Scenario(("acme", "bob", "carol"), witness=witness)
    witness.receive("bob", Mark(7, bytes(32), 2))
    await scenario.begin()
    plan = await scenario.finished()
    assert scenario.started == ["acme", "carol"]
    assert (plan.clean, plan.projects, plan.sums.failed, plan.sums.current) == (False, 3, 1, 2)
    result = await scenario.store.read_part_result(SWEEP_ID, "bob")
    assert result == PartResult(Counts(failed=1), clean=False)


async def test_a_keyring_that_is_rolled_back_before_the_end_is_not_under_the_master_key() -> None:
    witness = FakeWitness()
    scenario = Scenario(witness=witness)
    await scenario.begin()
    await scenario.step()
    witness.receive("bob", Mark(7, bytes(32), 2))
    assert not (await scenario.finished()).clean


async def test_a_keyring_that_cannot_be_compared_holds_the_sweep_up() -> None:
    """While the marks are not known, nothing says which keyrings are the newest."""
    witness = FakeWitness()
    scenario = Scenario(witness=witness)
    await scenario.begin()
    witness.is_current = False
    with pytest.raises(MarksUnavailableError):
        await scenario.step()
    witness.is_current = True
    assert (await scenario.finished()).clean


async def test_a_marked_keyring_that_is_listed_and_never_found_fails_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The storage's fault holds up no other project."""
    witness = FakeWitness()
    scenario = Scenario(("acme", "bob"), witness=witness)
    await scenario.keyrings.read_fresh("acme")
    _hide(monkeypatch, scenario.storage, "acme")
    await scenario.begin()
    plan = await scenario.finished()
    assert scenario.started == ["bob"]
    assert (plan.clean, plan.projects, plan.sums.failed) == (False, 2, 1)


async def test_its_first_step_has_the_marks_signed_by_the_current_event_key() -> None:
    witness = FakeWitness()
    scenario = Scenario(witness=witness)
    await scenario.begin()
    plan = await scenario.step()
    assert (plan.step, witness.signed_anew) == (1, 1)
    assert (await scenario.finished()).clean
    assert witness.signed_anew == 1


def _hide(patch: pytest.MonkeyPatch, storage: MemoryStorage, *projects: str) -> None:
    """Let reads of these keyrings answer 404, whatever listings show."""
    read, hidden = storage.read, {keyring_s3_key(project) for project in projects}

    async def answered(key: str, **more: Any) -> Any:
        if key in hidden:
            raise GONE
        return await read(key, **more)

    patch.setattr(storage, "read", answered)
