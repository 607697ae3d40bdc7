"""A prefix of a bucket as the destination: what is stored, continued and refused."""

from __future__ import annotations

import json
import os
import sqlite3
from typing import TYPE_CHECKING

import pytest
import stamina

from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnauthorizedError
from keyturn_workers.core.errors import ExportError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.offline.export import s3_prefix
from keyturn_workers.offline.export.s3_prefix import S3Prefix
from tests.unit.keyturn_workers.offline.export.project import Project
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.offline.export.run import ExportReport

MIB = 2**20
MANIFEST = "out/keyturn-manifest/"


async def _export(project: Project, storage: MemoryStorage, prefix: str = "out/") -> ExportReport:
    async with S3Prefix.open(storage, prefix, "acme") as destination:
        return await project.export(destination)


async def _stored(storage: MemoryStorage, prefix: str = "out/") -> dict[str, bytes]:
    keys = [row.key async for row in storage.list(prefix) if "keyturn-manifest/2" not in row.key]
    return {key.removeprefix(prefix): (await storage.read(key))[1] for key in keys}


async def _lines(storage: MemoryStorage) -> list[dict[str, object]]:
    parts = [(await storage.read(row.key))[1] async for row in storage.list(MANIFEST)]
    return [json.loads(line) for part in parts for line in part.splitlines()[1:]]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies above 4 MiB are stored in parts."""
    monkeypatch.setattr(s3_prefix, "SINGLE_PUT_MAX_BYTES", 4 * MIB)
    monkeypatch.setattr(s3_prefix, "PART_BYTES", 5 * MIB)


async def test_bodies_of_every_size_with_type_and_metadata() -> None:
    sizes = (0, 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 10 * MIB, 11 * MIB + 3)
    project = Project({f"a/{size}": os.urandom(size) for size in sizes}, metadata={"author": "é"})
    storage = MemoryStorage()
    report = await _export(project, storage)
    assert (report.exported, report.failures) == (len(sizes), [])
    assert await _stored(storage) == project.objects
    head = await storage.head(f"out/a/{11 * MIB + 3}")
    assert head.headers.content_type == "text/plain"
    assert head.metadata == {"author": "=?utf-8?b?w6k=?="}
    assert [upload async for upload in storage.list_multipart_uploads("")] == []
    assert sorted(str(line["path"]) for line in await _lines(storage)) == sorted(project.objects)


async def test_the_index_is_closed_with_the_export() -> None:
    async with S3Prefix.open(MemoryStorage(), "out/", "acme") as destination:
        assert await destination.size_of("a") is None
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await destination.size_of("a")


async def test_a_second_run_reads_only_what_is_new() -> None:
    project = Project({"a": b"1", "keyturn-manifest/b": b"2", "~keyturn-manifest/b": b"3"})
    storage = MemoryStorage()
    await _export(project, storage)
    project.objects["c"] = b"4"
    report = await _export(project, storage)
    assert project.opened == ["c"]
    assert (report.exported, report.already_there) == (1, 3)
    paths = {line["key"]: line["path"] for line in await _lines(storage)}
    stored = await _stored(storage)
    assert {key: stored[str(path)] for key, path in paths.items()} == project.objects


async def test_what_was_deleted_or_overwritten_at_the_destination_is_stored_again() -> None:
    sizes = (0, 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 11 * MIB)
    bodies = {f"kept/{size}": os.urandom(size) for size in sizes}
    project = Project(bodies | {"cut": b"whole", "deleted": b"1", "overwritten": b"right"})
    storage = MemoryStorage()
    await _export(project, storage)
    project.opened.clear()
    await storage.delete("out/deleted")
    await storage.put("out/cut", b"who", Headers({}))
    await storage.put("out/overwritten", b"wrong", Headers({}))
    report = await _export(project, storage)
    assert sorted(project.opened) == ["cut", "deleted", "overwritten"]
    assert (report.exported, report.already_there) == (3, len(sizes))
    assert await _stored(storage) == project.objects
    project.opened.clear()
    assert (await _export(project, storage)).already_there == len(sizes) + 3
    assert project.opened == []


@pytest.mark.parametrize("size", [2 * MIB, 8 * MIB])
async def test_a_body_that_fails_leaves_nothing(size: int) -> None:
    body = os.urandom(size)
    project = Project({"a": body, "b": b"1"}, failures={"a": [CorruptObjectError("a chunk")]})
    storage = MemoryStorage()
    report = await _export(project, storage)
    assert report.failed == {"corrupt_object": 1}
    assert await _stored(storage) == {"b": b"1"}
    assert [upload async for upload in storage.list_multipart_uploads("")] == []


async def test_the_manifest_is_written_also_when_a_run_ends_early() -> None:
    project = Project({"a": b"1", "b": b"2"})
    storage = MemoryStorage()
    refused = UnauthorizedError("rotated")
    project.refusals["b"] = [refused]
    with pytest.raises(ExceptionGroup):
        await _export(project, storage)
    await _export(project, storage)
    assert project.opened == ["b"]


async def test_a_part_of_the_manifest_that_cannot_be_written_is_written_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After each object, here: the put of the first part fails, and takes its object with it."""
    monkeypatch.setattr(s3_prefix, "_LINES_MAX", 1)
    project = Project({"a": b"1", "b": b"2"})
    storage = MemoryStorage()
    async with S3Prefix.open(storage, "out/", "acme") as destination:
        puts = 0

        async def fail_second() -> None:
            nonlocal puts
            puts += 1
            if puts == 2:  # the part after the first object
                raise StorageUnavailableError("away")
            storage.before_next("put", fail_second)

        storage.before_next("put", fail_second)
        with stamina.set_testing(True, attempts=8):
            report = await project.export(destination, concurrency=1)
    assert (report.exported, report.failures) == (2, [])
    assert sorted(str(line["key"]) for line in await _lines(storage)) == ["a", "b"]


@pytest.mark.parametrize("what", ["other objects", "other project", "a bucket of Keyturn"])
async def test_a_prefix_that_is_no_place_for_it_is_refused(what: str) -> None:
    storage = MemoryStorage()
    if what == "other objects":
        await storage.put("out/photo.jpg", b"x", Headers({}))
    elif what == "a bucket of Keyturn":
        await storage.put(".keyturn/keyrings/beta.json", b"{}", Headers({}))
    else:
        async with S3Prefix.open(storage, "out/", "beta"):
            pass
    before = await _stored(storage, "")
    with pytest.raises(ExportError):
        await _export(Project({"a": b"1"}), storage)
    assert await _stored(storage, "") == before


async def test_a_whole_bucket_as_the_destination() -> None:
    project = Project({"a": b"1", "b/c": b"2"})
    storage = MemoryStorage()
    await _export(project, storage, "")
    assert await _stored(storage, "") == project.objects
