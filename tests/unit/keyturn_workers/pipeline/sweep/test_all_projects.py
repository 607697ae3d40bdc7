"""Sweeps of all projects: one part for each, and no keyring is passed over (SPEC 6.6, 8.6).

A keyring that is listed and not found is not gone. If it were taken as gone, a project could be
left under the master key that is to be dropped, despite `clean: true`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from keyturn.counts import Counts
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import ALL, AllRecord, Origin, PartEnd, Walk
from keyturn_workers.core.sweep_transitions import open_origins
from keyturn_workers.keys.keyring.marks import Mark
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.messages import SweepDispatcher, SweepStep
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from keyturn_workers.pipeline.sweep.steps import SweepContext
from tests.unit.keyturn_workers.factories import MASTER_KEYS, OPERATOR_KEYS, keyring
from tests.unit.keyturn_workers.pipeline.sweep.records import LATER_ID, OTHER_ID, SWEEP_ID, origin
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import KEEP_FOR
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.messages import Event
    from keyturn_workers.core.sweep_record import End

GONE: Final = MissingError("read: NoSuchKey")
TO_M2: Final = origin(options=SweepOptions(master_key="m2"))
REFUSES_LATE: Final = Capabilities(late_writes_refused=True)
ONE: Final = Counts(objects=1, current=1)


class Sender:
    """Notes what is published, and how long each step of the walk waits."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.waits: list[float] = []

    async def publish_event(self, event: Event) -> None:
        self.published.append(event)

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        del queue
        if b'"*"' in body:
            self.waits.append(delay_s)


@dataclass
class Scenario:
    """Projects with keyrings under `m1`; a part that is added ends at once, and clean."""

    projects: tuple[str, ...] = ("acme", "bob")
    witness: FakeWitness | None = None
    ends_parts: bool = True
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    sender: Sender = field(default_factory=Sender)
    added: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.projects:
            body = build_keyring(keyring(name), MASTER_KEYS)
            self.storage.plant(keyring_s3_key(name), body, Headers({}))
        self.store = SweepStore(self.storage, OPERATOR_KEYS)
        self.keyrings = KeyringReader(
            self.storage, OPERATOR_KEYS, lease_s=15, cache_s=0, witness=self.witness
        )
        context = SweepContext(
            self.storage,
            self.keyrings,
            OPERATOR_KEYS,
            self.store,
            SweepDispatcher(self.sender),
            cast("Any", None),
            KEEP_FOR,
        )
        self.starter = SweepStarter(context, active_master_key="m1")
        self.all_projects = AllProjectsSweep(context, cast("Any", self))

    async def start(self, project: str, *parts: Origin) -> None:
        """Adds parts by the true starter, and ends them."""
        await self.starter.start(project, *parts)
        self.added.append(project)
        if self.ends_parts:
            await self.end_part(project)

    async def end_part(
        self,
        project: str,
        counts: Counts = ONE,
        *,
        clean: bool = True,
        late_writes_refused: bool | None = None,
    ) -> None:
        """What the steps of a project do at the end of its parts."""
        stored = await self.store.read(project)
        walk_id = str(stored.record.origins[0].walk_id)
        part = PartEnd(counts, clean, late_writes_refused=late_writes_refused)
        await self.store.add_part_end(walk_id, project, part, "m2")
        assert await self.store.change(replace(stored.record, origins=()), stored.etag, "m2")

    async def begin(self, *origins: Origin) -> None:
        """Requests, and the step that begins their walk."""
        for each in origins or (TO_M2,):
            await self.starter.start(ALL, each)
        await self.step()

    async def record(self) -> AllRecord:
        return (await self.store.read_all()).record

    async def step(self) -> AllRecord:
        hint = SweepStep(project=ALL, step=(await self.record()).step)
        await self.all_projects.run_step(hint, again=False)
        return await self.record()

    async def walk(self) -> Walk:
        """The walk after one more step."""
        found = (await self.step()).round
        assert found is not None
        return found

    async def finish(self) -> End:
        """The end of the oldest request."""
        for _ in range(20):
            first = (await self.step()).origins[0]
            if first.end is not None:
                return first.end
        raise AssertionError("it never ends")


def _hide(patch: pytest.MonkeyPatch, storage: MemoryStorage, *projects: str) -> None:
    """Let reads of these keyrings answer 404, whatever listings show."""
    read, hidden = storage.read, {keyring_s3_key(project) for project in projects}

    async def answered(key: str, **more: Any) -> Any:
        if key in hidden:
            raise GONE
        return await read(key, **more)

    patch.setattr(storage, "read", answered)


# A walk, and the requests that it serves.


async def test_each_project_gets_a_part_and_the_end_has_the_sums_of_all() -> None:
    on = Scenario()
    await on.begin()
    end = await on.finish()
    assert on.added == ["acme", "bob"]
    assert (end.clean, end.counts, end.parts) == (True, Counts(objects=2, current=2), 2)
    (event,) = [each for each in on.sender.published if each.type == "sweep.completed"]
    assert (event.project, event.sweep_id, event.objects, event.clean) == (ALL, SWEEP_ID, 2, True)
    assert event.late_writes_refused is end.late_writes_refused
    for project in on.projects:
        assert (await on.keyrings.read_fresh(project)).keyring.master_key == "m2"
        assert (await on.store.read(project)).master_key == "m2"


@pytest.mark.parametrize(
    ("by_part", "clean", "refused"),
    [(True, True, True), (False, True, False), (None, False, True), (None, True, False)],
)
async def test_late_writes_are_refused_if_they_are_in_each_part(
    by_part: bool | None, *, clean: bool, refused: bool
) -> None:
    """A part is not sure of it if a clock was off, or if it ended clean and does not say."""
    on = Scenario(storage=MemoryStorage(capabilities=REFUSES_LATE), ends_parts=False)
    await on.begin()
    await on.step()
    await on.end_part("acme", late_writes_refused=True)
    await on.end_part("bob", clean=clean, late_writes_refused=by_part)
    assert (await on.finish()).late_writes_refused is refused


async def test_a_part_has_the_id_and_publisher_of_its_request() -> None:
    on = Scenario(("acme",), ends_parts=False)
    await on.begin(TO_M2, replace(TO_M2, id=OTHER_ID, publisher="web"))
    walk = await on.walk()
    parts = (await on.store.read("acme")).record.origins
    assert [(each.kind, each.id, each.publisher, each.walk_id) for each in parts] == [
        ("part", SWEEP_ID, "api", walk.id),
        ("part", OTHER_ID, "web", walk.id),
    ]
    assert {each.options for each in parts} == {TO_M2.options}


async def test_a_step_adds_and_inspects_a_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.all_projects.MAX_OPEN_PARTS", 3)
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.all_projects._PROJECTS_PER_STEP", 2)
    on = Scenario(("a", "b", "c", "d"), ends_parts=False)
    await on.begin()
    assert (await on.walk()).open_parts == ("a", "b")
    assert (await on.walk()).open_parts == ("a", "b", "c")
    await on.end_part("b")
    assert (await on.walk()).open_parts == ("a", "c", "d")


async def test_a_project_whose_master_key_no_worker_here_holds_is_put_off() -> None:
    on = Scenario(("acme", "bob"))
    lacking = replace(keyring("acme"), master_key="m9")
    keys = {**MASTER_KEYS, "m9": MASTER_KEYS["m1"]}
    on.storage.plant(keyring_s3_key("acme"), build_keyring(lacking, keys), Headers({}))
    await on.begin()
    for _ in range(3):  # the last one begins a pass that has nothing else to do
        await on.step()
    assert on.added == ["bob"]
    assert on.sender.waits[-1] == 30
    on.storage.plant(
        keyring_s3_key("acme"), build_keyring(keyring("acme"), MASTER_KEYS), Headers({})
    )
    assert ((await on.finish()).clean, on.added) == (True, ["bob", "acme"])


# Keyrings that are listed and not found.


@pytest.mark.parametrize("is_marked", [False, True])
@pytest.mark.parametrize(
    ("then", "clean", "parts", "failed"),
    [("is found", True, 2, 0), ("is never found", False, 2, 1), ("is gone", True, 1, 0)],
)
async def test_a_keyring_that_is_listed_and_not_found_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    parts: int,
    failed: int,
    *,
    clean: bool,
    is_marked: bool,
) -> None:
    """The storage's fault holds up no other project. A removed one has a mark: it fails."""
    on = Scenario(witness=FakeWitness() if is_marked else None)
    if is_marked:
        await on.keyrings.read_fresh("acme")
    await on.begin()
    with monkeypatch.context() as hidden:
        _hide(hidden, on.storage, "acme")
        assert (await on.walk()).not_found == {"acme": 1}
        if then == "is never found":
            await on.finish()
    if then == "is gone":
        await on.storage.delete(keyring_s3_key("acme"))
        clean, parts, failed = (False, 2, 1) if is_marked else (clean, parts, failed)
    end = (await on.record()).origins[0].end or await on.finish()
    assert (end.clean, end.parts, end.counts.failed) == (clean, parts, failed)
    part = await on.store.read_part_end(str(end.round_id), "acme")
    assert (part is None, bool(part and part.code)) == (parts == 1, bool(failed))
    # With nothing else to do it waits a little before the next pass.
    assert (5 in on.sender.waits) is (then == "is never found")


@pytest.mark.parametrize(
    ("change", "clean"),
    [("hidden", False), ("resealed", False), ("rolled back", False), ("removed", True)],
)
async def test_at_the_end_every_keyring_must_be_under_the_master_key(
    monkeypatch: pytest.MonkeyPatch, change: str, *, clean: bool
) -> None:
    """All parts ended. A last listing shows whether a keyring is left that says otherwise."""
    witness = FakeWitness() if change == "rolled back" else None
    on = Scenario(witness=witness)
    await on.begin()
    await on.step()
    if witness is not None:
        witness.receive("bob", Mark(7, bytes(32), 2))
    elif change == "hidden":
        _hide(monkeypatch, on.storage, "bob")
    elif change == "resealed":
        body = build_keyring(keyring("bob"), MASTER_KEYS)
        on.storage.plant(keyring_s3_key("bob"), body, Headers({}))
    else:
        read = on.storage.read

        async def removed_first(key: str, **more: Any) -> Any:
            if key == keyring_s3_key("bob"):
                await on.storage.delete(key)
            return await read(key, **more)

        monkeypatch.setattr(on.storage, "read", removed_first)
    assert (await on.finish()).clean is clean


async def test_each_of_many_keyrings_that_are_not_found_is_counted_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record stays small; none of them is passed over."""
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.all_projects._MAX_NOT_FOUND", 1)
    on = Scenario(("acme", "bob", "carol"))
    _hide(monkeypatch, on.storage, *on.projects)
    await on.begin()
    end = await on.finish()
    assert (end.clean, end.counts.failed) == (False, 3)


# Marks.


async def test_a_keyring_that_was_rolled_back_fails_its_part_and_the_others_go_on() -> None:
    """Also where the project has a record: its part would wait for a week."""
    witness = FakeWitness()
    on = Scenario(("acme", "bob", "carol"), witness=witness)
    await on.starter.start("bob", origin())
    witness.receive("bob", Mark(7, bytes(32), 2))
    for options in (SweepOptions(), TO_M2.options):
        await on.begin(
            replace(TO_M2, id=LATER_ID if options.master_key else OTHER_ID, options=options)
        )
        on.added.clear()
        while open_origins(await on.record()):
            await on.step()
        end = (await on.record()).origins[-1].end
        assert end is not None
        assert on.added == ["acme", "carol"]
        assert (end.clean, end.parts, end.counts) == (
            False,
            3,
            Counts(objects=2, current=2, failed=1),
        )
        part = await on.store.read_part_end(str(end.round_id), "bob")
        assert part is not None
        assert (part.clean, part.code) == (False, "keyring_rolled_back")


async def test_the_first_step_of_a_walk_has_the_marks_signed_by_the_current_event_key() -> None:
    witness = FakeWitness()
    on = Scenario(witness=witness)
    ring = replace(keyring("acme"), serial=1)
    body = build_keyring(ring, MASTER_KEYS)
    on.storage.plant(keyring_s3_key("acme"), body, Headers({}))
    witness.receive("acme", mark_of(body))
    witness.signed_before = {"acme": "earlier"}
    await on.begin()
    assert (await on.record()).step == 1
    assert ("acme", mark_of(body)) in witness.published
    assert (await on.finish()).clean
