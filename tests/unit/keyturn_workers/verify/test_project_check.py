"""A project is read once, a few objects at a time, and nothing is changed."""

from __future__ import annotations

import ast
import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import keyturn_workers.verify
from keyturn.crypto import admin_kek
from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.storage import Headers
from keyturn_workers.verify import Report, VerificationKeys, check_project
from tests.unit.keyturn_workers.factories import MASTER_KEYS, enc, keyring, rotated, sealed_object
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.keyring import Keyring

FIRST = keyring()
SECOND = rotated(FIRST)
OTHER = keyring("acme-2")


def _keys(ring: Keyring) -> VerificationKeys:
    kek = ring.current.kek
    assert kek is not None
    return VerificationKeys(ring.project, "user", {"": kek})


def _put(storage: MemoryStorage, ring: Keyring, key: str, *, archived: bool = False) -> None:
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
    storage.plant(f"{ring.project}/{key}", body, Headers(enc(wraps)), archived=archived)


async def _check(storage: MemoryStorage, keys: VerificationKeys, concurrency: int = 4) -> Report:
    report = Report()
    await check_project(storage, keys, report, concurrency=concurrency)
    return report


async def test_only_the_projects_objects_are_read_once_each() -> None:
    storage = MemoryStorage()
    for ring in (FIRST, OTHER):
        for number in range(50):
            _put(storage, ring, f"k{number}")
    storage.plant(".keyturn/keyrings/acme.json", b"{}", Headers({}))
    report = await _check(storage, _keys(FIRST))
    assert report.verdict == "the key opens all of 50 wraps"
    assert storage.calls == {"versioning": 1, "list": 1, "read_start": 50}


async def test_an_admin_kek_checks_the_same_objects() -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    keks = {"m1": admin_kek(MASTER_KEYS["m1"].reveal(), "acme")}
    report = await _check(storage, VerificationKeys("acme", "admin", keks))
    assert report.verified


async def test_an_object_under_an_old_key_is_found() -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "old")
    _put(storage, SECOND, "new")
    report = await _check(storage, _keys(SECOND))
    assert [(f.s3_key, f.state, f.code) for f in report.findings] == [
        ("acme/old", "closed", "no_usable_wrap")
    ]


async def test_noncurrent_versions_are_checked_by_their_ids() -> None:
    storage = MemoryStorage(versioned=True)
    _put(storage, FIRST, "k")
    _put(storage, SECOND, "k")
    await storage.delete("acme/k")  # another program's: a delete marker
    _put(storage, SECOND, "other")
    report = await _check(storage, _keys(SECOND))
    counts = report.counts
    assert (counts["objects"], counts["opened"]) == (1, 1)
    assert (counts["noncurrent_opened"], counts["noncurrent_closed"]) == (1, 1)
    assert [(f.s3_key, f.version) for f in report.findings] == [("acme/k", "v000001")]


async def test_no_more_objects_are_read_at_once_than_allowed() -> None:
    storage = MemoryStorage()
    for number in range(30):
        _put(storage, FIRST, f"k{number}")
    under_way: Counter[str] = Counter()
    most = 0
    read_start = storage.read_start
    together = asyncio.Barrier(3)

    async def counted(*args: object, **options: object) -> object:
        nonlocal most
        under_way["reads"] += 1
        most = max(most, under_way["reads"])
        try:
            await together.wait()
            return await read_start(*args, **options)  # type: ignore[arg-type]
        finally:
            under_way["reads"] -= 1

    storage.read_start = counted  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(20):
        assert (await _check(storage, _keys(FIRST), concurrency=3)).verified
    assert most == 3


async def test_the_listing_waits_for_the_reads() -> None:
    """A million keys are never in memory: rows are taken from the listing one by one."""
    storage = MemoryStorage()
    for number in range(100):
        _put(storage, FIRST, f"k{number:03}")
    listed = 0
    list_all = storage.list

    async def counted(*args: str, **options: object) -> object:
        nonlocal listed
        async for row in list_all(*args, **options):  # type: ignore[arg-type]
            listed += 1
            yield row

    storage.list = counted  # type: ignore[method-assign,assignment]
    ahead = []
    checked = 0

    def note() -> None:
        nonlocal checked
        checked += 1
        ahead.append(listed - checked)

    await check_project(storage, _keys(FIRST), Report(), concurrency=4, on_checked=note)
    assert checked == 100
    assert max(ahead) <= 4


@pytest.mark.parametrize(
    ("error", "code"),
    [(MissingError("NoSuchKey"), "not_found"), (RefusedError("Denied"), "storage_unavailable")],
)
async def test_an_object_that_cannot_be_read_is_found(error: Exception, code: str) -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    _put(storage, FIRST, "b")
    storage.fail_next("read_start", error)
    report = await _check(storage, _keys(FIRST), concurrency=1)
    assert [(f.s3_key, f.kind, f.state, f.code) for f in report.findings] == [
        ("acme/a", "unreadable", "failed", code)
    ]
    assert report.counts["opened"] == 1


async def test_an_archived_object_is_checked_by_its_wrap_alone() -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a", archived=True)
    report = await _check(storage, _keys(FIRST))
    assert [(f.kind, f.code) for f in report.findings] == [("encrypted", "archived_object")]
    assert (await _check(storage, _keys(SECOND))).counts["closed"] == 1


async def test_an_archived_older_version_cannot_be_decided() -> None:
    storage = MemoryStorage(versioned=True)
    _put(storage, FIRST, "a", archived=True)
    _put(storage, FIRST, "a")
    report = await _check(storage, _keys(FIRST))
    assert [(f.version, f.code) for f in report.findings] == [("v000001", "archived_object")]


@pytest.mark.parametrize("operation", ["versioning", "list", "read_start"])
async def test_a_storage_that_is_away_gives_no_report(operation: str) -> None:
    storage = MemoryStorage()
    _put(storage, FIRST, "a")
    storage.fail_next(operation, StorageUnavailableError("away"))
    with pytest.raises(StorageUnavailableError):
        await _check(storage, _keys(FIRST))
    pending = asyncio.all_tasks() - {asyncio.current_task()}
    assert not pending


def test_it_imports_the_formats_and_the_storage_port_alone() -> None:
    """No code of the sweeps that it checks, and no library: the list of import-linter is closed."""
    folder = Path(keyturn_workers.verify.__file__).parent
    allowed = {"keyturn", "keyturn_workers.errors", "keyturn_workers.storage"}
    library = {"asyncio", "binascii", "collections", "contextlib", "dataclasses", "re", "typing"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                own = name.startswith(("keyturn.", "keyturn_workers.verify."))
                assert own or name in allowed or name.split(".")[0] in library, (path.name, name)
