"""The records of sweeps in a bucket that an attacker can write (SPEC 5.1, 8.5)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from keyturn.counts import Counts
from keyturn.crypto import Secret
from keyturn.errors import CorruptObjectError, KmsUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import SWEEPS_PREFIX, keyring_s3_key
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.sweep_record import (
    ALL,
    AllRecord,
    Failure,
    PartEnd,
    ProjectRecord,
    to_json,
)
from keyturn_workers.keys.keyring import sealed_records
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.sweep_records import (
    RecordPath,
    SweepStore,
    UnknownRecordError,
    gather_limited,
    parse_record_path,
    part_path,
)
from tests.unit.keyturn_workers.factories import OPERATOR_KEYS
from tests.unit.keyturn_workers.keys.master_keys.fakes import FakeProvider
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    OTHER_ID,
    PAGE,
    RECORD,
    RESULT,
    ROUND_ID,
    SWEEP,
    Scene,
    record,
    round_of,
)
from tools.harness.local_keys import operator_keys

PATH = ".keyturn/sweeps/acme.json"
FOLDER = f".keyturn/sweeps/acme/{ROUND_ID}/"
RESULT_PATH = f"{FOLDER}results/00000000-000000.json"
TAGS = {"k": {"team": "legal"}}


async def _plant_sealed(
    scene: Scene, value: Any, s3_key: str = PATH, *, at: str = "", project: str = "acme"
) -> None:
    """A record that a worker sealed, for this path or for another one."""
    body = await sealed_records.build(at or s3_key, project, "m1", to_json(value), OPERATOR_KEYS)
    scene.plant(s3_key, body)


# Paths.


@pytest.mark.parametrize(
    ("path", "parsed"),
    [
        (PATH, RecordPath("acme")),
        (".keyturn/sweeps/*.json", RecordPath(ALL)),
        (f"{FOLDER}failures/00000001.json", RecordPath("acme", ROUND_ID, "failures/00000001.json")),
        (part_path(ROUND_ID, "acme"), RecordPath(ALL, ROUND_ID, "acme.json")),
    ],
)
def test_a_path_says_whose_record_it_is(path: str, parsed: RecordPath) -> None:
    assert parse_record_path(path) == parsed
    assert parsed.is_main is not bool(parsed.name)
    assert parsed.is_failures is ("failures" in path)


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("results/00000012-000003.json", (12, 3)),
        ("results/12-3.json", None),
        ("results/00000012-000003.json.bak", None),
        ("tags/00000012-000003-x.json", None),
    ],
)
def test_the_path_of_a_result_names_its_page_and_attempt(
    name: str, attempt: tuple[int, int] | None
) -> None:
    path = parse_record_path(FOLDER + name)
    assert path is not None
    assert path.attempt == attempt


@pytest.mark.parametrize(
    "s3_key",
    [
        *("", "x", "acme", "ACME.json", "../acme.json", f"ACME/{ROUND_ID}/x", "acme/x/results/y"),
        *(f"../acme/{ROUND_ID}/x", f"acme/{ROUND_ID.upper()}/x", f"acme/../{ROUND_ID}/x"),
        *(f"{OTHER_ID}/acme/sweep.json", "_running/x"),
    ],
)
def test_any_other_name_is_no_record(s3_key: str) -> None:
    assert parse_record_path(SWEEPS_PREFIX + s3_key) is None
    assert parse_record_path(f"acme/{s3_key}") is None
    assert parse_record_path(keyring_s3_key("acme")) is None


# The record of a project, and that of all.


@pytest.mark.parametrize(
    ("value", "path"),
    [(RECORD, PATH), (AllRecord(origins=(SWEEP,)), ".keyturn/sweeps/*.json")],
    ids=["project", "all"],
)
async def test_a_record_is_created_once_and_changed_as_it_was_read(value: Any, path: str) -> None:
    scene = Scene()
    store, project = scene.store, value.project
    assert await store.find(project) is None
    assert await store.create(value, "m1")
    assert not await store.create(replace(value, step=1), "m1")
    assert await store.find(project) == value
    stored: Any = await (store.read_all() if project == ALL else store.read(project))
    assert (stored.record, stored.master_key) == (value, "m1")
    assert await store.change(replace(value, step=7), stored.etag, "m2")
    assert not await store.change(replace(value, step=8), stored.etag, "m2")
    changed = await store.find(project)
    assert changed is not None
    assert changed.step == 7
    assert scene.storage.stored_keys() == [path]


@pytest.mark.parametrize("body", [b"", b"{}", b"moved", b"of another project"])
async def test_a_forged_record_is_replaced(body: bytes) -> None:
    scene = Scene()
    if body == b"moved":
        await _plant_sealed(scene, RECORD, at=".keyturn/sweeps/bob.json")
    elif body == b"of another project":
        await _plant_sealed(scene, RECORD, project="bob")
    else:
        scene.plant(PATH, body)
    with pytest.raises(CorruptObjectError):
        await scene.store.read("acme")
    assert await scene.store.create(RECORD, "m1")
    assert await scene.store.find("acme") == RECORD


async def test_of_two_workers_that_replace_a_forged_record_one_does() -> None:
    scene = Scene()
    scene.plant(PATH)

    async def other() -> None:
        assert await scene.store.create(replace(RECORD, step=9), "m1")

    async def create_fails_first() -> None:
        scene.storage.before_next("put", other)

    scene.storage.before_next("put", create_fails_first)
    assert not await scene.store.create(RECORD, "m1")
    assert await scene.store.find("acme") == replace(RECORD, step=9)


async def test_a_record_that_opens_but_is_of_another_kind_is_not_replaced() -> None:
    """Only a worker can have sealed it: its requests would be lost."""
    scene = Scene()
    await _plant_sealed(scene, SWEEP)
    before = await scene.storage.read(PATH)
    with pytest.raises(UnknownRecordError):
        await scene.store.find("acme")
    with pytest.raises(UnknownRecordError):
        await scene.store.create(RECORD, "m1")
    assert await scene.storage.read(PATH) == before


async def test_a_record_under_a_master_key_of_other_workers_is_not_replaced() -> None:
    scene = Scene()
    assert await scene.store.create(RECORD, "m2")
    store = SweepStore(scene.storage, operator_keys({"m1": Secret(bytes([1]) * 32)}))
    with pytest.raises(UnknownMasterKeyError):
        await store.create(RECORD, "m1")
    assert await scene.store.find("acme") == RECORD


async def test_records_are_listed_and_nothing_else() -> None:
    scene = Scene()
    for project in ("a", "a-b", "c"):
        assert await scene.store.create(replace(RECORD, project=project), "m1")
        assert await scene.store.add_result(project, ROUND_ID, PAGE, RESULT, "m1")
    assert await scene.store.create(AllRecord(), "m1")
    for name in ("x", "UP.json", "_running/x", f"{OTHER_ID}/acme/sweep.json"):
        scene.plant(SWEEPS_PREFIX + name)
    listed = [each async for each in scene.store.projects()]
    assert [project for project, _, _ in listed] == [ALL, "a-b", "a", "c"]
    assert [etag for project, _, etag in listed if project == "a"] == [
        (await scene.store.read("a")).etag
    ]


async def test_all_records_are_resealed_except_those_that_do_not_open() -> None:
    scene = Scene()
    assert await scene.store.create(RECORD, "m1")
    assert await scene.store.create(AllRecord(), "m1")
    assert await scene.store.add_result("acme", ROUND_ID, PAGE, RESULT, "m1")
    end = PartEnd(Counts(objects=1), clean=True)
    await scene.store.add_part_end(ROUND_ID, "acme", end, "m1")
    scene.plant(f"{FOLDER}failures/00000000.json", b"forged")
    scene.plant(f"{SWEEPS_PREFIX}junk", b"none of ours")
    await scene.store.reseal_records("m2")
    alone = SweepStore(scene.storage, operator_keys({"m2": Secret(bytes([2]) * 32)}))
    assert (await alone.read("acme")).record == RECORD
    assert await alone.find(ALL) == AllRecord()
    assert await alone.read_part_end(ROUND_ID, "acme") == end
    assert (await scene.storage.read(f"{FOLDER}failures/00000000.json"))[1] == b"forged"


# Results.


async def test_the_first_result_of_an_attempt_is_kept() -> None:
    scene = Scene()
    assert await scene.store.add_result("acme", ROUND_ID, PAGE, RESULT, "m1")
    other = replace(RESULT, changed=1)
    assert not await scene.store.add_result("acme", ROUND_ID, PAGE, other, "m1")
    assert await scene.store.results(RECORD) == {0: RESULT}
    assert scene.storage.stored_keys() == [RESULT_PATH]


@pytest.mark.parametrize(
    "waiting",
    [
        record(SWEEP, round=round_of(replace(PAGE, attempts=1))),
        record(SWEEP, round=round_of(replace(PAGE, sent_at=None))),
        record(SWEEP, round=replace(round_of(PAGE), id=OTHER_ID)),
        record(SWEEP, round=round_of()),
        record(SWEEP),
    ],
    ids=["another attempt", "not sent", "another round", "no page", "no round"],
)
async def test_only_results_of_attempts_under_way_are_read(waiting: ProjectRecord) -> None:
    store = Scene().store
    assert await store.add_result("acme", ROUND_ID, PAGE, RESULT, "m1")
    assert await store.results(waiting) == {}


async def test_a_forged_result_is_deleted_and_replaced() -> None:
    scene = Scene()
    scene.plant(RESULT_PATH)
    assert await scene.store.results(RECORD) == {}
    assert scene.storage.stored_keys() == []
    # The result of another page, or of another round, which a worker has sealed there.
    await _plant_sealed(scene, RESULT, RESULT_PATH, at=f"{FOLDER}results/00000001-000000.json")
    assert await scene.store.add_result("acme", ROUND_ID, PAGE, RESULT, "m1")
    assert await scene.store.results(RECORD) == {0: RESULT}


async def test_a_result_under_another_master_key_proves_no_state() -> None:
    store = Scene().store
    assert await store.add_result("acme", ROUND_ID, PAGE, RESULT, "m2")
    assert await store.results(RECORD) == {0: replace(RESULT, state=None)}


async def test_a_result_that_cannot_be_read_now_is_not_taken_for_a_forged_one() -> None:
    """Deleting it would have the page done again for each minute that the provider is away."""
    scene = Scene()
    assert await scene.store.add_result("acme", ROUND_ID, PAGE, RESULT, "m1")
    provider = FakeProvider(failure=KmsUnavailableError("down"))
    store = SweepStore(scene.storage, OperatorKeys({"m1": provider}))
    with pytest.raises(KmsUnavailableError):
        await store.results(RECORD)
    assert await scene.store.results(RECORD) == {0: RESULT}


async def test_the_results_of_all_attempts_at_proven_pages_are_deleted() -> None:
    scene = Scene()
    other = replace(PAGE, page=1)
    for page in (*(replace(PAGE, attempts=attempt) for attempt in range(3)), other):
        assert await scene.store.add_result("acme", ROUND_ID, page, RESULT, "m1")
    await scene.store.delete_page_results("acme", ROUND_ID, [replace(PAGE, attempts=2)])
    assert scene.storage.stored_keys() == [f"{FOLDER}results/00000001-000000.json"]


async def test_the_results_of_other_rounds_than_the_running_one_are_deleted() -> None:
    """One that is over, and one that began again because the keyring changed."""
    scene = Scene()
    assert await scene.store.create(RECORD, "m1")
    for round_id in (ROUND_ID, OTHER_ID):
        assert await scene.store.add_result("acme", round_id, PAGE, RESULT, "m1")
    failures = (Failure("k", "corrupt_object"),)
    await scene.store.add_failures("acme", OTHER_ID, 0, failures, "m1")
    await scene.store.delete_old_results("acme")
    assert {key.removeprefix(SWEEPS_PREFIX) for key in scene.storage.stored_keys()} == {
        "acme.json",
        f"acme/{OTHER_ID}/failures/00000000.json",
        f"acme/{ROUND_ID}/results/00000000-000000.json",
    }


# Failures, tags and folders.


async def test_failures_are_listed_in_the_order_of_pages() -> None:
    store = Scene().store
    for page in (2, 0, 1):
        failures = (Failure(f"k{page}", "corrupt_object"),)
        await store.add_failures("acme", ROUND_ID, page, failures, "m1")
    paths = [path async for path in store.failure_records("acme", ROUND_ID)]
    read = [await store.read_failures("acme", path) for path in paths]
    assert [failure.key for (failure,) in read] == ["k0", "k1", "k2"]
    since = [path async for path in store.failure_records("acme", ROUND_ID, since=paths[1])]
    assert since == paths[1:]
    assert [path async for path in store.failure_records("acme", OTHER_ID)] == []
    with pytest.raises(MissingError):
        await store.read_failures("acme", f"{FOLDER}failures/00000009.json")


async def test_tag_notes_are_those_of_one_page_of_a_round_or_of_all_rounds() -> None:
    scene = Scene()
    store, other = scene.store, replace(PAGE, page=1)
    earlier = await store.add_tag_note("acme", OTHER_ID, PAGE, TAGS, "m1")
    note = await store.add_tag_note("acme", ROUND_ID, PAGE, TAGS, "m1")
    again = await store.add_tag_note("acme", ROUND_ID, replace(PAGE, attempts=1), TAGS, "m1")
    of_other = await store.add_tag_note("acme", ROUND_ID, other, TAGS, "m1")
    scene.plant(f"{FOLDER}tags/00000000-000000-forged.json")
    assert [each async for each in store.tag_notes("acme", ROUND_ID, PAGE)] == [
        (note, TAGS),
        (again, TAGS),
    ]
    in_round = [path async for path, _ in store.tag_notes("acme", ROUND_ID)]
    assert in_round == [note, again, of_other]
    assert [path async for path, _ in store.tag_notes("acme")] == [earlier, *in_round]
    await store.delete_tag_note(earlier)
    assert [path async for path, _ in store.tag_notes("acme")] == in_round


async def test_the_folders_of_a_project_are_named_with_their_youngest_record() -> None:
    scene = Scene()
    assert await scene.store.create(RECORD, "m1")
    for round_id in (ROUND_ID, OTHER_ID, ROUND_ID):
        await scene.store.add_tag_note("acme", round_id, PAGE, TAGS, "m1")
        scene.storage.advance(60)
    scene.plant(f"{SWEEPS_PREFIX}acme/no-round/x")
    folders = await scene.store.folders("acme")
    assert folders.keys() == {ROUND_ID, OTHER_ID}
    assert folders[ROUND_ID] - folders[OTHER_ID] == timedelta(seconds=60)
    await scene.store.delete_folder("acme", ROUND_ID)
    assert (await scene.store.folders("acme")).keys() == {OTHER_ID}


# The parts of a sweep of all.


async def test_a_forged_part_end_is_none_and_can_be_replaced() -> None:
    scene = Scene()
    scene.plant(part_path(ROUND_ID, "acme"))
    assert [project async for project in scene.store.ended_parts(ROUND_ID)] == ["acme"]
    with pytest.raises(CorruptObjectError):
        await scene.store.look_up_part_end(ROUND_ID, "acme")
    end = PartEnd(Counts(objects=1, current=1), clean=True)
    await scene.store.add_part_end(ROUND_ID, "acme", end, "m1")
    await scene.store.add_part_end(ROUND_ID, "acme", replace(end, clean=False), "m1")
    assert await scene.store.read_part_end(ROUND_ID, "acme") == end
    assert await scene.store.look_up_part_end(ROUND_ID, "acme") == end
    assert await scene.store.look_up_part_end(ROUND_ID, "bob") is None


async def test_the_end_of_one_walk_or_project_is_none_of_another() -> None:
    """A bucket writer may copy it: that would end a part that was never swept."""
    scene = Scene()
    end = PartEnd(Counts(), clean=True)
    await scene.store.add_part_end(ROUND_ID, "acme", end, "m1")
    _, body = await scene.storage.read(part_path(ROUND_ID, "acme"))
    for path in (part_path(OTHER_ID, "acme"), part_path(ROUND_ID, "bob")):
        scene.plant(path, body)
    assert await scene.store.read_part_end(OTHER_ID, "acme") is None
    assert await scene.store.read_part_end(ROUND_ID, "bob") is None


async def test_ended_parts_are_listed_from_a_project_on() -> None:
    store = Scene().store
    for project in ("a", "a-b", "c"):
        await store.add_part_end(ROUND_ID, project, PartEnd(Counts(), clean=True), "m1")
    # As the bucket orders their records, by `{project}.json`.
    assert [project async for project in store.ended_parts(ROUND_ID)] == ["a-b", "a", "c"]
    assert [project async for project in store.ended_parts(ROUND_ID, since="c")] == ["c"]


# Any record.


async def test_many_calls_are_made_a_few_at_a_time_and_answered_in_order() -> None:
    under_way = most = 0

    async def call(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return number

    assert await gather_limited(call(number) for number in range(50)) == list(range(50))
    assert most == 16
