"""Keyrings and sweeps come in pages of one listing each, all of them once (SPEC 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.keyring import Mark
from keyturn_workers.status import record_views
from tests.unit.keyturn_workers.cli.status_bucket import all_plan, done, plan, sweep_id
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.status.bucket import Bucket
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of

if TYPE_CHECKING:
    import pytest

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
    await bucket.add(done(1), all_plan(2), plan(2, request_fields={"of_all": True}), plan(3))
    bucket.plant(f".keyturn/sweeps/{sweep_id(4)}/acme/sweep.json", {})
    bucket.plant(f".keyturn/sweeps/{sweep_id(5)}/acme/failures/x.json", {})
    pages = await _pages(bucket, "sweeps", limit=2)
    rows = [row for page in pages for row in page.sweeps or ()]
    assert [(row.sweep_id, row.project, row.code) for row in rows] == [
        (sweep_id(1), "acme", None),
        (sweep_id(2), "*", None),
        (sweep_id(3), "acme", None),
        (sweep_id(4), "acme", "corrupt_object"),
    ]
    assert all(len(page.sweeps or ()) <= 2 for page in pages)


async def test_of_one_project_the_parts_of_sweeps_of_all_are_rows_too() -> None:
    bucket = Bucket()
    await bucket.add(all_plan(2), plan(2, request_fields={"of_all": True}), plan(3, "other"))
    (page,) = await _pages(bucket, "sweeps", project="acme")
    assert [(row.project, row.part_of_all) for row in page.sweeps or ()] == [("acme", True)]


async def test_a_page_is_over_after_so_many_listed_records_also_without_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record_views, "_MAX_LISTINGS", 2)
    monkeypatch.setattr(record_views, "PAGE_KEYS", 3)
    bucket = Bucket()
    for number in range(10):
        bucket.plant(f".keyturn/sweeps/{sweep_id(1)}/acme/results/{number}", {})
    await bucket.add(done(2))
    pages = await _pages(bucket, "sweeps")
    assert [len(page.sweeps or ()) for page in pages] == [0, 1]
    assert bucket.storage.calls["list_entries"] == 4


async def test_no_page_repeats_or_loses_a_sweep_however_small_it_is() -> None:
    bucket = Bucket()
    await bucket.add(*(done(number) for number in range(1, 8)))
    for limit in (1, 3, 7, 8):
        pages = await _pages(bucket, "sweeps", limit=limit)
        rows = [row.sweep_id for page in pages for row in page.sweeps or ()]
        assert rows == [sweep_id(number) for number in range(1, 8)]


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
