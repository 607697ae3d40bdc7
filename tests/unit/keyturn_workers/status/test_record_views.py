"""Keyrings and sweeps come in pages of one listing each, all of them once (SPEC 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.keyring import Mark
from tests.unit.keyturn_workers.cli.status_bucket import (
    all_record,
    done,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.status.bucket import Bucket
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of

if TYPE_CHECKING:
    from keyturn.messages import StatusReported, StatusView


async def _pages(bucket: Bucket, view: StatusView, **more: Any) -> list[StatusReported]:
    pages = [await bucket.report(view, **more)]
    while pages[-1].next is not None:
        pages.append(await bucket.report(view, after=pages[-1].next, **more))
    return pages


async def test_keyrings_come_in_pages_each_once() -> None:
    bucket, names = Bucket(), ["a", "a-b", "a0", "b", "c"]
    await bucket.enroll(*map(keyring, names))
    bucket.plant(".keyturn/keyrings/No Project.json", {})
    pages = await _pages(bucket, "projects", limit=2)
    assert bucket.storage.calls["list_entries"] == len(pages) == 3
    rows = [row for page in pages for row in page.projects or ()]
    assert sorted(row.project for row in rows) == names
    assert {page.after for page in pages[1:]} == {page.next for page in pages[:-1]}


async def test_one_project_is_a_page_of_its_own() -> None:
    bucket = Bucket()
    await bucket.enroll(keyring("acme"), keyring("acme-2"))
    (page,) = await _pages(bucket, "projects", project="acme")
    assert [row.project for row in page.projects or ()] == ["acme"]
    (page,) = await _pages(bucket, "projects", project="acm")
    assert page.projects == ()


async def test_a_forged_keyring_is_a_row_with_its_code() -> None:
    bucket = Bucket()
    await bucket.enroll(keyring("acme"))
    bucket.plant(".keyturn/keyrings/forged.json", {})
    (page,) = await _pages(bucket, "projects")
    assert [(row.project, row.code) for row in page.projects or ()] == [
        ("acme", None),
        ("forged", "corrupt_object"),
    ]


async def test_sweeps_come_in_pages_without_the_parts_of_a_sweep_of_all() -> None:
    bucket = Bucket()
    await bucket.add(
        all_record(done(1), origin(2)), record(part(2), origin(3)), record(done(4), project="other")
    )
    bucket.plant(".keyturn/sweeps/forged.json", {})
    bucket.plant(f".keyturn/sweeps/acme/{round_id(1)}/failures/00000000.json", {})
    pages = await _pages(bucket, "sweeps", limit=2)
    rows = [row for page in pages for row in page.sweeps or ()]
    assert [(row.sweep_id, row.project, row.status) for row in rows] == [
        (sweep_id(1), "*", "done"),
        (sweep_id(2), "*", "running"),
        (sweep_id(3), "acme", "running"),
        (sweep_id(4), "other", "done"),
    ]
    assert all(len(page.sweeps or ()) <= 2 for page in pages)


async def test_of_one_project_the_parts_of_sweeps_of_all_are_rows_too() -> None:
    bucket = Bucket()
    await bucket.add(
        all_record(origin(2)), record(part(2), origin(3)), record(origin(4), project="acme-2")
    )
    for limit in (1, 9):
        pages = await _pages(bucket, "sweeps", project="acme", limit=limit)
        rows = [row for page in pages for row in page.sweeps or ()]
        assert [(row.sweep_id, row.part_of_all) for row in rows] == [
            (sweep_id(2), True),
            (sweep_id(3), False),
        ]
    (page,) = await _pages(bucket, "sweeps", project="acm")
    assert page.sweeps == ()


async def test_no_page_repeats_or_loses_a_sweep_however_small_it_is() -> None:
    bucket = Bucket()
    for project, numbers in {"a": (1, 2, 3), "a-b": (4,), "b": (5, 6, 7)}.items():
        await bucket.add(record(*map(done, numbers), project=project))
    for limit in (1, 2, 3, 7, 8):
        pages = await _pages(bucket, "sweeps", limit=limit)
        rows = [row.sweep_id for page in pages for row in page.sweeps or ()]
        assert sorted(rows) == [sweep_id(number) for number in range(1, 8)]
        assert all(len(page.sweeps or ()) <= limit for page in pages)


async def test_a_record_that_has_changed_between_two_pages_begins_again() -> None:
    """Twice is better than never."""
    bucket = Bucket()
    await bucket.add(record(*map(done, (1, 2, 3))))
    page = await bucket.report("sweeps", limit=2)
    stored = await bucket.store.read("acme")
    assert await bucket.store.change(record(*map(done, (3, 4))), stored.etag, "m1")
    page = await bucket.report("sweeps", after=page.next)
    assert [row.sweep_id for row in page.sweeps or ()] == [sweep_id(3), sweep_id(4)]


async def test_each_keyring_is_compared_with_its_mark_also_if_its_row_is_kept() -> None:
    bucket, witness = Bucket(), FakeWitness()
    await bucket.enroll(*map(keyring, ["a", "b", "c", "d"]))
    bucket.replace(replace(keyring("e"), serial=0))
    bodies = {
        name: (await bucket.storage.read(keyring_s3_key(name)))[1] for name in ("a", "b", "c")
    }
    for name, body in bodies.items():
        witness.receive(name, mark_of(body, name))
    bucket.reader = bucket.new_reader(witness=witness)

    async def marks(**more: Any) -> dict[str, str | None]:
        pages = await _pages(bucket, "projects", **more)
        rows = [row for page in pages for row in page.projects or ()]
        assert len(rows) == len({row.project for row in rows})
        return {row.project: row.mark for row in rows}

    expected: dict[str, str | None] = {
        "a": "current", "b": "current", "c": "current", "d": "unknown", "e": "unmarked",
    }  # fmt: skip
    assert await marks() == expected
    reads = bucket.storage.calls["read"]
    witness.receive("b", Mark(2, bytes(32), 1))
    assert await marks() == expected | {"b": "rolled_back"}
    assert bucket.storage.calls["read"] == reads
    await bucket.storage.delete(keyring_s3_key("c"))
    await bucket.storage.delete(keyring_s3_key("d"))
    witness.receive("f", Mark(2, bytes(32), 1))
    gone = {"a": "current", "b": "rolled_back", "c": "removed", "e": "unmarked", "f": "removed"}
    for limit in (1, 2, 3, 100):
        assert await marks(limit=limit) == gone
    assert await marks(project="c") == {"c": "removed"}
    assert await marks(project="d") == {}
    witness.is_current = False
    assert set((await marks()).values()) <= {None, "removed"}
