"""Listings bring back every key as its writer made it, page by page, from any place on (SPEC 8.5).

A foreign writer can put anything into a key. A listing that broke on it, or returned another
key, would hide objects from a sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.storage_values import Headers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyturn_workers.core.storage_values import ObjectSummary, ObjectVersion
    from tests.integration.storage.conftest import AnyStorage

PLAIN = Headers({})

# Each of these is XML's own, the URL encoding's own, or one of the two's traps.
NAMED = [
    "acme/ leading and trailing ",
    "acme/%2F",
    "acme/%7A",
    "acme/../up",
    "acme/./here",
    "acme//double",
    "acme/100%",
    "acme/<&>\"'",
    "acme/a b",
    "acme/a+b",
    "acme/a%20b",
    "acme/folder/",
    "acme/ünï",
    "acme/日本語 🗝",
    "acme/\x7f",
]
# XML normalizes the first two, and has no way to name the others.
UNNAMED = [
    "acme/carriage\rreturn",
    "acme/new\nline",
    "acme/\x01",
    "acme/\x01\x02",
    "acme/\x1f",
    "acme/\ufffe",
    "acme/\uffff",
]


def in_order(keys: Sequence[str]) -> list[str]:
    return sorted(keys, key=str.encode)


async def planted(storage: AnyStorage, keys: Sequence[str]) -> list[str]:
    for key in keys:
        await storage.put(key, b"1", PLAIN)
    return in_order(keys)


@pytest.fixture(params=[1, 2, 1000])
def page_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many rows a server returns at once."""
    size: int = request.param
    monkeypatch.setattr("keyturn_workers.storage.s3_listings.PAGE_KEYS", size)
    return size


def every_key(kind: str) -> list[str]:
    # moto's own routing knows no line breaks.
    unnamed = [key for key in UNNAMED if kind != "moto" or "\n" not in key]
    return [*NAMED, *unnamed]


async def test_foreign_keys(storage: AnyStorage, kind: str, page_keys: int) -> None:
    """All of them, exactly, whatever the page's last one is."""
    keys = await planted(storage, every_key(kind))
    rows: list[ObjectSummary] = [row async for row in storage.list("acme/")]
    assert [row.key for row in rows] == keys, page_keys
    for key in keys:
        assert (await storage.read_start(key, 1))[1] == b"1"
        await storage.delete(key)
    assert [row async for row in storage.list("acme/")] == []


async def test_behind_any_key(storage: AnyStorage, kind: str) -> None:
    """`after` is a whole key, of which nothing comes again and behind which nothing is missed."""
    keys = await planted(storage, every_key(kind))
    for at, key in enumerate(keys):
        rows = [row.key async for row in storage.list("acme/", after=key, limit=2)]
        assert rows == keys[at + 1 : at + 3]
    await storage.delete(keys[3])
    assert [row.key async for row in storage.list("acme/", after=keys[3], limit=1)] == [keys[4]]


# What sorts around a folder and its keys, and what stands at the ends of its range.
AT_EDGES = [
    "acme",
    "acme-/x",
    "acme/!",
    "acme/a",
    "acme/a-",
    "acme/a-/b",
    "acme/a.",
    "acme/a/",
    "acme/a/b",
    "acme/a/b/c",
    "acme/a/b0",
    "acme/a/\U0010ffff",
    "acme/a/\U0010ffff\U0010ffff/x",
    "acme/a0",
    "acme/a0/b",
    "acme/b%2Fc/d e+f",
    "acme/\U0010ffff",
    "acme/\U0010ffff/x",
    "acme0",
]


LONG = "acme/b" + "ü" * 600  # no key is as long


def entries_of(keys: Sequence[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """The model: the entries of these keys in order."""
    under = [key for key in keys if key.startswith(prefix)]
    found = set()
    for key in under:
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        found.add(key if end < 0 else key[: end + 1])
    return in_order([name for name in found if name > after])


async def listed_entries(
    storage: AnyStorage, prefix: str, delimiter: str, after: str, limit: int
) -> list[str]:
    """All pages from `after` on."""
    names: list[str] = []
    following: str | None = after
    while following is not None:
        page = await storage.list_entries(prefix, delimiter=delimiter, after=following, limit=limit)
        here = [*(row.key for row in page.objects), *page.prefixes]
        assert len(here) <= limit
        assert [row.size_bytes for row in page.objects] == [1] * len(page.objects)
        assert in_order(list(page.prefixes)) == list(page.prefixes)
        names += in_order(here)
        assert page.next_after is None or page.next_after > following
        following = page.next_after
    return names


@pytest.mark.parametrize("delimiter", ["", "/"])
async def test_entries_behind_any_name(storage: AnyStorage, kind: str, delimiter: str) -> None:
    """After a common prefix, or a key below one, nothing of that folder is listed again."""
    keys = await planted(storage, [*every_key(kind), *AT_EDGES])
    for prefix in ("acme/", "acme/a", "acme/a/", "acme/b%2Fc/"):
        for limit in (1, 3, 1000):
            names = await listed_entries(storage, prefix, delimiter, "", limit)
            assert names == entries_of(keys, prefix, delimiter, ""), (prefix, limit)
    for after in [*keys, "acme/a/~", "acme/a/b/", "acme/b", "acme/\x00", "abc", "b", LONG]:
        names = await listed_entries(storage, "acme/", delimiter, after, 3)
        assert names == entries_of(keys, "acme/", delimiter, after), after


async def test_foreign_keys_of_versions(storage: AnyStorage, kind: str, page_keys: int) -> None:
    """The same of versions, which moto does not encode."""
    keys = await planted(storage, every_key(kind))
    rows: list[ObjectVersion] = [row async for row in storage.list_versions("acme/")]
    assert [row.key for row in rows] == keys, page_keys
    for at, key in enumerate(keys):
        behind = [row.key async for row in storage.list_versions("acme/", after=key, limit=2)]
        assert behind == keys[at + 1 : at + 3]


async def test_open_uploads_of_foreign_keys(storage: AnyStorage, kind: str) -> None:
    """One that no XML can name does not hide the others."""
    for key in every_key(kind):
        await storage.create_multipart(key, PLAIN)
    listed = {row.key async for row in storage.list_multipart_uploads("acme/")}
    assert set(NAMED) <= listed
    async for row in storage.list_multipart_uploads("acme/"):
        if kind == "moto" and "\n" in row.key:
            # XML makes a line break of `\r`, which moto's routing answers with a 404 of its
            # web server's, without a code of S3's: never taken for an upload that is gone.
            with pytest.raises(StorageUnavailableError):
                await storage.abort_multipart(row.key, row.upload_id)
        else:
            await storage.abort_multipart(row.key, row.upload_id)
    left = {row.key async for row in storage.list_multipart_uploads("acme/")}
    assert left.isdisjoint(NAMED)
