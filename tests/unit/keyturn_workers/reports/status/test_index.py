"""Records are listed, opened and kept in an index that listings renew (SPEC 5, 8.5, 16.1)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.counts import Counts
from keyturn.crypto import new_customer_secret
from keyturn.errors import CodedError, StorageUnavailableError
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages import CustomerKeyStatus
from keyturn_workers.core.errors import ArchivedError
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import Failure, KeyWait
from keyturn_workers.keys.keyring.marks import Mark
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.reports.status import index as index_module
from keyturn_workers.reports.status import records
from keyturn_workers.reports.status.index import Index, Snapshot
from keyturn_workers.reports.status.records import Opened, SweepRecord, list_records, open_record
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated, turned_to
from tests.unit.keyturn_workers.reports.status.bucket import (
    AT_ONCE,
    BEGIN,
    KEYS,
    Bucket,
    all_record,
    done,
    failed,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import ProjectStatus
    from keyturn_workers.core.sweep_record import Origin
    from keyturn_workers.reports.status.records import Record

_ACME = ".keyturn/keyrings/acme.json"
_NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
async def storage() -> MemoryStorage:
    bucket = MemoryStorage()
    for ring in (keyring(), keyring("other", master_key="m2")):
        await create_keyring(bucket, ring, KEYS, lease_s=15)
    store = SweepStore(bucket, KEYS)
    await store.create(record(done(1)), "m1")
    await store.create(all_record(origin(2)), "m2")
    await store.add_failures("acme", round_id(1), 0, (Failure("k", "no_usable_wrap"),), "m1")
    bucket.plant(".keyturn/sweeps/acme-2.json", b"x", Headers({}))
    bucket.plant(".keyturn/keyrings/No Project.json", b"x", Headers({}))
    return bucket


async def _listed(storage: MemoryStorage, project: str = "*", limit: int = 1000) -> list[Record]:
    found: list[Record] = []
    after: str | None = ""
    while after is not None:
        records, after = await list_records(storage, project, after, limit)
        found += records
    return found


async def _open_first(storage: MemoryStorage, known: str = "m1 m2") -> Any:
    keys = operator_keys({name: MASTER_KEYS[name] for name in known.split()})
    first = next(each for each in await _listed(storage) if each.listed.key == _ACME)
    return await open_record(storage, keys, first)


async def test_listed_records_have_the_project_that_they_are_sealed_for(
    storage: MemoryStorage,
) -> None:
    for limit in (1, 2, 1000):
        assert [each.project for each in await _listed(storage, limit=limit)] == [
            *("acme", "other"),
            *("*", "acme-2", "acme", "acme"),
        ]
    names = [each.listed.key for each in await _listed(storage, "acme")]
    assert names == [
        _ACME,
        ".keyturn/sweeps/acme.json",
        f".keyturn/sweeps/acme/{round_id(1)}/failures/00000000.json",
    ]


async def test_a_key_without_a_records_name_is_not_listed(storage: MemoryStorage) -> None:
    listed = await _listed(storage)
    for name in ("keyrings/No Project.json", "keyrings/acme", "sweeps/acme/x/failures/0.json"):
        storage.plant(f".keyturn/{name}", b"nothing", Headers({}))
    assert await _listed(storage) == listed


async def test_each_record_opens_as_what_it_is(storage: MemoryStorage) -> None:
    found = [await open_record(storage, KEYS, each) for each in await _listed(storage)]
    opened = [each for each in found if isinstance(each, Opened)]
    contents = [each.content for each in opened]
    assert [type(content) for content in contents] == [Keyring, Keyring] + [SweepRecord] * 3
    assert [content.master_key for content in contents] == ["m1", "m2", "m2", "m1", "m1"]
    of_sweeps = [each.record for each in contents if isinstance(each, SweepRecord)]
    assert of_sweeps == [all_record(origin(2)), record(done(1)), None]
    assert opened[0].etag == (await storage.head(_ACME)).etag


async def test_a_relabeled_record_does_not_open(storage: MemoryStorage) -> None:
    _, body = await storage.read(_ACME)
    forged = json.dumps(json.loads(body) | {"master_key": "m2"}).encode()
    storage.plant(_ACME, forged, Headers({}))
    assert (await _open_first(storage)).code == "corrupt_object"


async def test_a_record_of_an_unknown_master_key_names_it(storage: MemoryStorage) -> None:
    error = await _open_first(storage, known="m2")
    assert (error.code, error.detail) == ("unknown_master_key", "m1")


async def test_a_huge_record_is_not_read(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 100)
    reads = storage.calls["read"]
    error = await _open_first(storage)
    assert isinstance(error, CodedError)
    assert error.detail == "too large for a record"
    assert storage.calls["read"] == reads


async def test_an_archived_record_is_an_error_and_a_lost_one_is_none(
    storage: MemoryStorage,
) -> None:
    storage.fail_next("read", ArchivedError("InvalidObjectState"))
    assert (await _open_first(storage)).code == "archived_object"

    async def remove() -> None:
        await storage.delete(_ACME)

    storage.before_next("read", remove)
    assert await _open_first(storage) is None


async def test_an_outage_of_the_storage_is_no_matter_of_the_record(storage: MemoryStorage) -> None:
    storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await _open_first(storage)


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class _Scene:
    """A bucket, an index of it, and the clock by which it is renewed."""

    def __init__(self, **more: Any) -> None:
        self.bucket, self.clock = Bucket(), _Clock()
        self.index = Index(
            self.bucket.storage, KEYS, AT_ONCE, lambda: _NOW, clock_s=self.clock, **more
        )

    async def renewed(self) -> Snapshot:
        self.clock.seconds += 2
        return await self.index.snapshot(wait_s=None)

    @property
    def reads(self) -> int:
        return self.bucket.storage.calls["read"]


def _rows(snapshot: Snapshot) -> dict[str, ProjectStatus]:
    return {row.project: row for row in snapshot.projects}


async def test_only_records_that_changed_are_opened_again() -> None:
    scene = _Scene()
    await scene.bucket.enroll(*map(keyring, ("a", "b", "c")))
    await scene.bucket.add(record(done(1), project="a"))
    assert _rows(await scene.renewed()).keys() == {"a", "b", "c"}
    assert scene.reads == 4
    scene.bucket.replace(rotated(keyring("b")))
    await scene.bucket.storage.delete(keyring_s3_key("c"))
    await scene.bucket.enroll(keyring("d"))
    rows = _rows(await scene.renewed())
    assert {name: row.generation for name, row in rows.items()} == {"a": 1, "b": 2, "d": 1}
    assert scene.reads == 6


async def test_questions_within_two_seconds_share_one_listing() -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("a"))
    await asyncio.gather(*(scene.index.snapshot() for _ in range(3)))
    listings = scene.bucket.storage.calls["list_page"]
    scene.clock.seconds = 1.9
    await scene.index.snapshot()
    assert scene.bucket.storage.calls["list_page"] == listings


async def test_an_index_that_is_still_read_says_so_and_is_complete_in_the_end() -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("a"))
    assert not (await scene.index.snapshot(wait_s=0)).is_complete
    snapshot = await scene.renewed()
    assert snapshot.is_complete
    assert _rows(snapshot).keys() == {"a"}
    await scene.index.close()


async def test_too_many_records_are_cut_and_the_index_says_so() -> None:
    scene = _Scene(max_rows=2)
    await scene.bucket.enroll(*map(keyring, ("a", "b", "c")))
    snapshot = await scene.renewed()
    assert _rows(snapshot).keys() == {"a", "b"}
    assert not snapshot.is_complete


async def test_an_index_that_was_cut_is_not_complete_while_it_is_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = _Scene(max_rows=2)
    await scene.bucket.enroll(*map(keyring, ("a", "b", "c")))
    await scene.renewed()
    list_rows = scene.bucket.storage.list

    async def hang(prefix: str, **more: Any) -> AsyncIterator[Any]:
        if not more:
            await asyncio.Event().wait()
        async for row in list_rows(prefix, **more):
            yield row

    monkeypatch.setattr(scene.bucket.storage, "list", hang)
    scene.clock.seconds += 2
    await scene.index.snapshot(wait_s=0.01)
    scene.bucket.replace(rotated(keyring("a")))
    await scene.index.of_project("a")
    assert not (await scene.index.snapshot(wait_s=0)).is_complete
    await scene.index.close()


async def test_a_record_that_the_storage_does_not_give_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that is encrypted under another client's key (SSE-C)."""
    scene = _Scene()
    await scene.bucket.enroll(*map(keyring, ("0", "a")))
    read = scene.bucket.storage.read

    async def refuse(s3_key: str, **more: Any) -> Any:
        if s3_key == keyring_s3_key("0"):
            raise StorageUnavailableError("400 InvalidRequest")
        return await read(s3_key, **more)

    monkeypatch.setattr(scene.bucket.storage, "read", refuse)
    monkeypatch.setattr(index_module, "_READ_AT_ONCE", 1)
    snapshot = await scene.renewed()
    rows = _rows(snapshot)
    assert {name: row.code for name, row in rows.items()} == {
        "0": "storage_unavailable",
        "a": None,
    }
    assert snapshot.is_complete


async def test_while_the_storage_gives_nothing_the_index_is_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("a"))
    list_rows = scene.bucket.storage.list

    async def away(prefix: str, **more: Any) -> AsyncIterator[Any]:
        if more:
            raise StorageUnavailableError("away")
        async for row in list_rows(prefix):
            yield row

    async def refuse(*_: object, **__: object) -> None:
        raise StorageUnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(scene.bucket.storage, "list", away)
        patched.setattr(scene.bucket.storage, "read", refuse)
        with pytest.raises(StorageUnavailableError):
            await scene.renewed()
    assert (await scene.renewed()).projects[0].code is None


async def test_a_listing_that_fails_is_the_answer_and_the_next_question_lists_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("a"))
    with monkeypatch.context() as patched:

        async def refuse(*_: object, **__: object) -> None:
            raise StorageUnavailableError("away")

        patched.setattr(scene.bucket.storage, "list_entries", refuse)
        with pytest.raises(StorageUnavailableError):
            await scene.renewed()
    assert (await scene.renewed()).is_complete


async def test_a_keyring_that_does_not_open_is_a_row_and_is_tried_again_later() -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("acme"))
    scene.bucket.plant(".keyturn/keyrings/forged.json", {})
    scene.bucket.plant(".keyturn/sweeps/acme.json", {})
    rows = _rows(await scene.renewed())
    assert {name: row.code for name, row in rows.items()} == {
        "acme": None,
        "forged": "corrupt_object",
    }
    reads = scene.reads
    await scene.renewed()
    assert scene.reads == reads
    scene.clock.seconds += 30
    await scene.renewed()
    assert scene.reads == reads + 2


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ((), {}),
        ((origin(1),), {"running_sweeps": (sweep_id(1),)}),
        (
            (done(1), done(2), origin(3)),
            {
                "last_proof_sweep": sweep_id(2),
                "last_end_sweep": sweep_id(2),
                "last_end_clean": True,
                "running_sweeps": (sweep_id(3),),
            },
        ),
        (
            (done(1), done(2, clean=False)),
            {
                "last_proof_sweep": sweep_id(1),
                "last_end_sweep": sweep_id(2),
                "last_end_clean": False,
            },
        ),
        ((failed(4, "x"),), {"last_end_sweep": sweep_id(4), "last_end_clean": False}),
    ],
)
async def test_a_project_is_joined_with_its_record_of_sweeps(
    origins: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("acme"))
    if origins:
        await scene.bucket.add(record(*origins))
    names = ("last_proof_sweep", "last_end_sweep", "last_end_clean", "running_sweeps")
    for snapshot in (await scene.renewed(), await scene.index.of_project("acme")):
        (row,) = snapshot.projects
        assert {name: getattr(row, name) for name in names} == dict.fromkeys(names) | expected
        assert row.key_since == row.enrolled_at
        has_proof = "last_proof_sweep" in expected
        assert (row.last_proof_at is not None) is has_proof


@pytest.mark.parametrize(
    ("origins", "waits"),
    [
        ((origin(1),), True),
        ((part(1),), True),
        ((origin(1, kind="erase"),), False),
        ((failed(1, "customer_key_refused"),), False),
    ],
)
async def test_a_project_says_since_when_what_runs_waits_for_its_customer_key(
    origins: tuple[Origin, ...], waits: bool
) -> None:
    scene = _Scene()
    await scene.bucket.enroll(turned_to(keyring("acme"), new_customer_secret()))
    wait = KeyWait("customer_key_refused", "disabled", BEGIN)
    await scene.bucket.add(record(*origins, key_wait=wait))
    (row,) = (await scene.renewed()).projects
    shown = {"code": "customer_key_refused", "since": format_time(BEGIN)} if waits else {}
    assert row.customer_key == CustomerKeyStatus(store="kms", key="acme", **shown)


async def test_an_erasure_is_neither_a_proof_nor_an_end_of_a_sweep() -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("acme"))
    refused = failed(2, "generation_mismatch", kind="erase")
    await scene.bucket.add(record(done(1, kind="erase"), refused, origin(3, kind="erase")))
    snapshot = await scene.renewed()
    (row,) = snapshot.projects
    assert (row.last_proof_at, row.last_end_sweep, row.last_end_clean) == (None, None, None)
    assert row.running_sweeps is None
    assert {each.kind for each in snapshot.sweeps} == {"erasure"}


async def test_a_project_has_the_objects_that_its_last_whole_sweep_counted() -> None:
    """Without tombstones; what a sweep that failed had counted is only a part."""
    scene = _Scene()
    await scene.bucket.enroll(keyring("acme"))
    counts = Counts(objects=12, current=10, deleted=2)
    end = done(1).end
    assert end is not None
    ended = replace(done(1), end=replace(end, counts=counts))
    await scene.bucket.add(record(ended, failed(4, "x")))
    (row,) = (await scene.renewed()).projects
    assert row.objects == 10
    assert row.objects_at == format_time(end.at)


async def test_of_one_project_two_records_are_listed_and_read() -> None:
    scene = _Scene()
    await scene.bucket.enroll(keyring("acme"), keyring("acme-2"))
    await scene.bucket.add(record(part(2), origin(3)), record(origin(4), project="acme-2"))
    snapshot = await scene.index.of_project("acme")
    assert _rows(snapshot).keys() == {"acme"}
    assert {row.sweep_id for row in snapshot.sweeps} == {sweep_id(2), sweep_id(3)}
    assert scene.reads == 2
    assert (await scene.index.of_project("acm")).projects == ()
    of_all = all_record(origin(5))
    await scene.bucket.add(of_all)
    assert [row.sweep_id for row in (await scene.index.of_project("*")).sweeps] == [sweep_id(5)]


async def test_each_keyring_is_compared_with_its_mark_also_if_its_row_is_kept() -> None:
    witness = FakeWitness()
    scene = _Scene(witness=witness)
    bucket = scene.bucket
    await bucket.enroll(*map(keyring, ("a", "b", "c", "d")))
    bucket.replace(replace(keyring("e"), serial=0))
    for name in ("a", "b", "c"):
        _, body = await bucket.storage.read(keyring_s3_key(name))
        witness.receive(name, mark_of(body, name))

    async def marks() -> dict[str, str | None]:
        return {name: row.mark for name, row in _rows(await scene.renewed()).items()}

    expected = {
        "a": "current", "b": "current", "c": "current", "d": "unknown", "e": "unmarked",
    }  # fmt: skip
    assert await marks() == expected
    reads = scene.reads
    witness.receive("b", Mark(2, bytes(32), 1))
    assert await marks() == expected | {"b": "rolled_back"}
    assert scene.reads == reads
    await bucket.storage.delete(keyring_s3_key("c"))
    await bucket.storage.delete(keyring_s3_key("d"))
    witness.receive("f", Mark(2, bytes(32), 1))
    assert await marks() == {
        "a": "current", "b": "rolled_back", "c": "removed", "e": "unmarked", "f": "removed",
    }  # fmt: skip
    assert [row.mark for row in (await scene.index.of_project("c")).projects] == ["removed"]
    assert (await scene.index.of_project("d")).projects == ()
    witness.is_current = False
    assert set((await marks()).values()) <= {None, "removed"}
