"""The periodic look: what was lost is resumed or added again, and what that costs (SPEC 8.5)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from keyturn.errors import KmsUnavailableError, StorageUnavailableError
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn_workers.core.keyring import Keyring, retire_old_keys
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import ALL, AllRecord, Origin, ProjectRecord
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.sweep_records import SweepStore, record_path, round_prefix
from keyturn_workers.pipeline.sweep.periodic import PeriodicScan, scan_periodically
from keyturn_workers.pipeline.sweep.steps import SweepContext
from tests.unit.keyturn_workers.factories import MASTER_KEYS, OPERATOR_KEYS, keyring, rotated
from tests.unit.keyturn_workers.keys.master_keys.fakes import FakeProvider
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    NOW,
    OTHER_ID,
    PAGE,
    RESULT,
    ROUND_ID,
    SWEEP,
    ended,
    origin,
    record,
    round_of,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import KEEP_FOR
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.keys.keyring.marks import MarkWatch

STALLED: Final = timedelta(minutes=16)
DONE: Final = ended(SWEEP, at=NOW)
AWAY: Final = OperatorKeys(
    {
        "m1": LocalMasterKey(MASTER_KEYS["m1"]),
        "m2": FakeProvider(failure=KmsUnavailableError("down")),
    }
)


class CountingStorage(MemoryStorage):
    """Notes what is read. Its clock begins at `NOW`."""

    def __init__(self) -> None:
        super().__init__()
        self.advance((NOW - self.now).total_seconds())
        self.reads: list[str] = []

    async def read(self, key: str, **more: Any) -> Any:
        self.reads.append(key)
        return await super().read(key, **more)


class Scans:
    """A bucket and one process's scans of it, in place of the starter and the handler."""

    def __init__(self, keys: OperatorKeys = OPERATOR_KEYS, watch: MarkWatch | None = None) -> None:
        self.storage = CountingStorage()
        self.store = SweepStore(self.storage, OPERATOR_KEYS)
        self.added: list[tuple[str, Origin]] = []
        self.resumed: list[str] = []
        self.refuses: set[str] = set()
        self.periodic = self.process(keys, watch)

    def process(
        self, keys: OperatorKeys = OPERATOR_KEYS, watch: MarkWatch | None = None
    ) -> PeriodicScan:
        unused, fake = cast("Any", None), cast("Any", self)
        store = SweepStore(self.storage, keys)
        context = SweepContext(self.storage, unused, keys, store, unused, unused, KEEP_FOR)
        return PeriodicScan(context, fake, fake, watch)

    async def start(self, project: str, added: Origin) -> None:
        if project in self.refuses:
            raise StorageUnavailableError("down")
        self.added.append((project, added))

    async def resume(self, project: str) -> bool:
        self.resumed.append(project)
        return True

    def put_keyring(self, ring: Keyring) -> None:
        body = build_keyring(ring, MASTER_KEYS)
        self.storage.plant(keyring_s3_key(ring.project), body, Headers({}))

    async def put(self, *origins: Origin, project: str = "acme", **more: Any) -> None:
        """The record of a project with these origins."""
        made: ProjectRecord | AllRecord = AllRecord(origins=origins)
        if project != ALL:
            made = record(*origins, **{"project": project, **more})
        await self.storage.delete(record_path(project))
        assert await self.store.create(made, "m1")

    async def scan(self, later: timedelta = timedelta(hours=1)) -> int:
        self.storage.reads.clear()
        return await self.periodic.scan(NOW + later)

    def ids(self) -> list[str]:
        return [each.id for _, each in self.added]


def _rotated(before: Keyring | None = None, *, at: datetime = NOW) -> Keyring:
    ring = rotated(before or keyring())
    return replace(ring, current=replace(ring.current, at=format_time(at)))


def _rotation(ring: Keyring) -> Origin:
    return origin("rotation", ring.current.rotation_id)


# Records that have something to do.


@pytest.mark.parametrize("project", ["acme", ALL])
@pytest.mark.parametrize(
    ("origins", "resumes"),
    [
        ((SWEEP,), True),
        ((ended(SWEEP, published=False),), True),
        ((DONE, origin(origin_id=OTHER_ID)), True),
        ((DONE,), False),
        ((ended(SWEEP, clean=False, code="x", failed_at_step=3),), False),
        ((), False),
    ],
    ids=["open", "not published", "one of two", "ended", "failed", "empty"],
)
async def test_a_record_that_has_stalled_is_resumed_if_it_has_something_to_do(
    origins: tuple[Origin, ...], project: str, *, resumes: bool
) -> None:
    on = Scans()
    await on.put(*origins, project=project)
    assert await on.scan(timedelta(minutes=14)) == 0
    assert await on.scan(STALLED) == int(resumes)
    assert on.resumed == [project] * resumes
    # Whatever its age: a record is never removed.
    await on.scan(timedelta(days=900))
    assert on.storage.stored_keys() == [record_path(project)]


async def test_a_record_that_rests_is_read_once_until_it_changes() -> None:
    """There are thousands of records, and many looks."""
    on = Scans()
    await on.put(DONE)
    for _ in range(3):
        await on.scan()
    assert on.storage.reads == []
    await on.put(SWEEP)
    await on.scan()
    assert on.resumed == ["acme"]


@pytest.mark.parametrize("how", ["forged", "of another master key", "of a provider that is away"])
async def test_a_record_that_cannot_be_read_here_does_not_stop_the_others(how: str) -> None:
    """Nothing of it is removed: a key may be disabled for longer than records are kept."""
    on = Scans(AWAY if "away" in how else operator_keys({"m1": MASTER_KEYS["m1"]}))
    await on.put(SWEEP, project="bob")
    if how == "forged":
        on.storage.plant(record_path("acme"), b"{}", Headers({}))
    else:
        assert await on.store.create(record(SWEEP), "m2")
    assert await on.store.add_result("acme", ROUND_ID, PAGE, RESULT, "m1")
    before = on.storage.stored_keys()
    await on.scan(2 * KEEP_FOR)
    assert on.resumed == ["bob"]
    assert on.storage.stored_keys() == before


async def test_a_look_reads_a_limited_number_of_keyrings_and_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.periodic._READS_PER_SCAN", 8)
    on = Scans()
    for number in range(10):
        on.put_keyring(keyring(f"p{number:02}"))
        await on.put(DONE, project=f"p{number:02}")
    read = []
    for _ in range(4):
        await on.scan()
        read.append(len(on.storage.reads))
    assert read == [16, 4, 0, 0]


async def test_looks_go_on_though_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker may be down. They come at random intervals, so that workers are out of step."""
    looks, pauses = list[datetime](), list[float]()

    class Failing:
        async def scan(self, now: datetime) -> int:
            looks.append(now)
            raise ConnectionError

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr("keyturn_workers.pipeline.sweep.periodic.asyncio.sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        await scan_periodically(cast("Any", Failing()), interval_s=100)
    assert len(looks) == 3
    assert all(50 <= seconds <= 150 for seconds in pauses)
    assert len(set(pauses)) > 1


# Folders of rounds.


def _folders(on: Scans) -> list[str]:
    prefix = round_prefix("acme", "")[:-1]
    keys = [key for key in on.storage.stored_keys() if key.startswith(prefix)]
    return sorted({key.removeprefix(prefix).partition("/")[0] for key in keys})


@pytest.mark.parametrize(
    ("origins", "running", "later", "left"),
    [
        ((DONE,), False, KEEP_FOR + STALLED, []),
        ((DONE,), False, KEEP_FOR - STALLED, [OTHER_ID, ROUND_ID]),
        ((ended(SWEEP, at=NOW + KEEP_FOR, round_id=ROUND_ID),), False, 2 * KEEP_FOR, [ROUND_ID]),
        ((ended(SWEEP, at=NOW, round_id=ROUND_ID),), False, 2 * KEEP_FOR, []),
        ((DONE,), True, 2 * KEEP_FOR, [ROUND_ID]),
    ],
    ids=["old", "young", "named by an end", "named by an old end", "of the running round"],
)
async def test_the_folder_of_a_round_is_removed_once_nothing_needs_it(
    origins: tuple[Origin, ...], later: timedelta, left: list[str], *, running: bool
) -> None:
    on = Scans()
    await on.put(*origins, round=round_of(PAGE) if running else None)
    for round_id in (ROUND_ID, OTHER_ID):
        assert await on.store.add_result("acme", round_id, PAGE, RESULT, "m1")
    await on.scan(later)
    assert _folders(on) == left
    assert on.resumed == []


async def test_noted_tags_are_left_to_the_end_of_the_round_that_is_under_way() -> None:
    """A tag can hold a wrap: put back now, it may come after its page was proven."""
    on = Scans()
    await on.put(DONE, round=round_of(PAGE))
    on.storage.plant("acme/k", b"", Headers({}))
    await on.store.add_tag_note("acme", OTHER_ID, PAGE, {"k": {"team": "legal"}}, "m1")
    await on.scan(2 * KEEP_FOR)
    assert await on.storage.read_tags("acme/k") == {}
    assert len([note async for note in on.store.tag_notes("acme")]) == 1


async def test_no_folder_is_removed_before_its_tags_are_back_on_their_objects() -> None:
    """Nor if the storage does not take them now."""
    on = Scans()
    await on.put(DONE)
    on.storage.plant("acme/k", b"", Headers({}))
    await on.store.add_tag_note("acme", ROUND_ID, PAGE, {"k": {"team": "legal"}}, "m1")
    on.storage.fail_next("write_tags", StorageUnavailableError("503"))
    await on.scan(2 * KEEP_FOR)
    assert _folders(on) == [ROUND_ID]
    await on.scan(2 * KEEP_FOR)
    assert _folders(on) == []
    assert await on.storage.read_tags("acme/k") == {"team": "legal"}


async def test_the_ends_of_the_parts_of_an_old_walk_are_removed() -> None:
    on = Scans()
    await on.put(DONE, project=ALL)
    on.storage.plant(f"{round_prefix(ALL, ROUND_ID)}acme.json", b"{}", Headers({}))
    await on.scan(2 * KEEP_FOR)
    assert on.storage.stored_keys() == [record_path(ALL)]


# Rotations that no record has.


async def test_a_rotation_without_a_record_is_added_by_the_second_look_that_misses_it() -> None:
    on = Scans()
    ring = _rotated()
    on.put_keyring(ring)
    assert await on.scan() == 0
    assert await on.scan() == 1
    ((project, added),) = on.added
    assert project == "acme"
    assert added == replace(_rotation(ring), added_at=added.added_at)
    assert (added.publisher, added.digests) == ("api", ("0" * 64,))


@pytest.mark.parametrize("has_record", [False, True])
async def test_a_rotation_of_a_moment_ago_is_left_alone(*, has_record: bool) -> None:
    """Its worker is about to add it."""
    on = Scans()
    on.put_keyring(_rotated())
    if has_record:
        await on.put(DONE)
    for _ in range(3):
        await on.scan(timedelta(minutes=14))
    assert on.added == []
    for _ in range(2):
        await on.scan(STALLED)
    assert len(on.added) == 1


async def test_each_rotation_whose_keys_are_kept_is_added_however_old_it_is() -> None:
    on = Scans()
    first = _rotated(at=NOW - 2 * KEEP_FOR)
    second = _rotated(first)
    on.put_keyring(second)
    await on.put(ended(_rotation(first), clean=False))
    for _ in range(2):
        await on.scan()
    assert on.ids() == [second.current.rotation_id]
    await on.storage.delete(record_path("acme"))
    on.added.clear()
    for _ in range(2):
        await on.scan()
    assert sorted(on.ids()) == sorted(each.current.rotation_id for each in (first, second))


async def test_a_rotation_that_was_too_young_for_one_look_is_looked_for_by_the_next() -> None:
    """The record rests, and neither of the two changes meanwhile."""
    on = Scans()
    first = _rotated(at=NOW - KEEP_FOR)
    second = _rotated(first)
    on.put_keyring(second)
    await on.put(ended(_rotation(first), clean=False))
    await on.scan(timedelta(minutes=10))
    for _ in range(2):
        await on.scan(STALLED)
    assert on.ids() == [second.current.rotation_id]


@pytest.mark.parametrize(
    "known",
    [{}, {"clean": False}, {"published": False}, {"code": "x", "failed_at_step": 3}],
    ids=str,
)
async def test_a_rotation_that_its_record_has_is_left_alone_however_it_ended(
    known: dict[str, Any],
) -> None:
    on = Scans()
    ring = _rotated()
    on.put_keyring(ring)
    await on.put(ended(_rotation(ring), **known))
    for _ in range(3):
        await on.scan()
    assert on.added == []


@pytest.mark.parametrize(
    ("of", "later", "added"),
    [
        ("enrolled", timedelta(hours=1), 0),
        ("cleared", KEEP_FOR / 2, 1),
        ("cleared", KEEP_FOR / 2 + timedelta(minutes=1), 0),
    ],
)
async def test_a_keyring_without_earlier_keys_needs_its_last_rotation_for_a_while(
    of: str, later: timedelta, added: int
) -> None:
    """Nothing else says that its end was published. Later, it may have left for its age."""
    on = Scans()
    enrolled = replace(keyring(), current=replace(keyring().current, at=format_time(NOW)))
    on.put_keyring(enrolled if of == "enrolled" else retire_old_keys(_rotated()))
    for _ in range(2):
        await on.scan(later)
    assert len(on.added) == added


@pytest.mark.parametrize("how", ["forged", "of a master key that this worker lacks"])
async def test_a_record_that_is_forged_has_no_rotation_and_one_unread_may_have_it(how: str) -> None:
    on = Scans(operator_keys({"m1": MASTER_KEYS["m1"]}))
    on.put_keyring(_rotated())
    if how == "forged":
        on.storage.plant(record_path("acme"), b"{}", Headers({}))
    else:
        assert await on.store.create(record(DONE), "m2")
    for _ in range(2):
        await on.scan()
    assert len(on.added) == int(how == "forged")


async def test_a_rotation_that_cannot_be_added_now_does_not_stop_the_others() -> None:
    on = Scans()
    for project in ("acme", "bob"):
        on.put_keyring(_rotated(keyring(project)))
    on.refuses = {"acme"}
    for _ in range(2):
        await on.scan()
    assert [project for project, _ in on.added] == ["bob"]
    on.refuses.clear()
    for _ in range(2):
        await on.scan()
    assert "acme" in [project for project, _ in on.added]


@pytest.mark.parametrize("how", ["forged", "of a master key that this worker lacks"])
async def test_a_keyring_that_says_nothing_here_adds_nothing(how: str) -> None:
    on = Scans(operator_keys({"m1": MASTER_KEYS["m1"]}))
    ring = _rotated()
    if how == "forged":
        on.storage.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    else:
        on.put_keyring(replace(ring, master_key="m2"))
    for _ in range(2):
        await on.scan()
    assert on.added == []


async def test_a_rotation_in_a_history_that_names_no_request_has_none_to_add() -> None:
    on = Scans()
    before = _rotated()
    after = _rotated(before)
    history = (*before.history, before.current)  # which names no origin
    on.put_keyring(replace(after, history=history))
    for _ in range(2):
        await on.scan()
    assert on.ids() == [after.current.rotation_id]


async def test_a_keyring_is_read_once_until_it_changes() -> None:
    on = Scans()
    for number in range(20):
        on.put_keyring(keyring(f"p{number}"))
    await on.scan()
    assert len(on.storage.reads) == 20
    await on.scan()
    assert on.storage.reads == []
    ring = _rotated(keyring("p7"))
    on.put_keyring(ring)
    await on.put(ended(_rotation(ring)), project="p7")
    await on.scan()
    assert set(on.storage.reads) == {keyring_s3_key("p7"), record_path("p7")}
    await on.scan()
    assert on.storage.reads == []
