"""The cleanup of staging removes abandoned items, and nothing else (SPEC 6.4)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from keyturn.identifiers import object_s3_key
from keyturn_workers.storage import Headers
from keyturn_workers.upload.cleanup import clean_staging
from tests.unit.keyturn_workers.upload.bench import (
    TARGET,
    bench,
)
from tools.harness.memory_storage import MemoryStorage

_AGE = timedelta(days=8)
_DAY = timedelta(days=1)


async def test_only_older_items_are_removed() -> None:
    storage = MemoryStorage()
    await storage.put(".keyturn/staging/api/old", b"sealed", Headers({}))
    await storage.put(".keyturn/doctor/killed/1", b"probe", Headers({}))
    await storage.put("acme/old", b"object", Headers({}))
    await storage.put(".keyturn/keyrings/acme.json", b"{}", Headers({}))
    await storage.create_multipart("acme/abandoned", Headers({}))
    storage.advance(_AGE.total_seconds() + 1)
    await storage.put(".keyturn/staging/api/new", b"sealed", Headers({}))
    await storage.put(".keyturn/doctor/running/1", b"probe", Headers({}))
    await storage.create_multipart("acme/under way", Headers({}))

    swept = await clean_staging(storage, older_than=_AGE, now=storage.now)

    assert swept == (2, 1)
    assert list(storage.stored_keys()) == [
        ".keyturn/doctor/running/1",
        ".keyturn/keyrings/acme.json",
        ".keyturn/staging/api/new",
        "acme/old",
    ]
    assert [left.key async for left in storage.list_multipart_uploads("")] == ["acme/under way"]


async def test_multipart_uploads_of_other_applications_are_left_alone() -> None:
    """Their first segment looks like a project, but none has a keyring (SPEC 10)."""
    on = bench("complete_multipart")
    theirs = object_s3_key("videos", "raw.mp4")
    await on.storage.create_multipart(theirs, Headers({}))
    await on.storage.create_multipart(TARGET, Headers({}))
    later = datetime.now(UTC).replace(year=2100)
    counts = await clean_staging(on.storage, older_than=later - datetime.now(UTC) - _DAY, now=later)
    assert counts == (0, 1)
    assert await on.open_uploads() == [theirs]
