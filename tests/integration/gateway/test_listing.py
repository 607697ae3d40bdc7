"""Listings over HTTP, on real servers: every object once, and nothing else (SPEC 9.3)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from keyturn.identifiers import is_object_key, object_s3_key
from tests.integration.gateway.conftest import NO_BROKER, reading
from tests.integration.gateway.scene import Scene, plain
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_NAMES = [
    "a",
    "a-",
    "a.",
    "a b",
    "a+b",
    "a%2Fb",
    "a%",
    "ü",
    "日本🗝",
    "a0",
    "~",
    "\U0010ffff",
    "<&>'\"",
]
# Of each folder and number that is divisible by this, the object is deleted.
_DELETED = 5
SIZE_OF = {"small": 5, "empty": 0, "one chunk": 16384, "more": 40_000}


def _keys() -> list[str]:
    """In folders whose names sort around the slash, and within each other."""
    folders = ["", "a/", "a-/", "a0/", "a/a/", "a/\U0010ffff/", "ü + %/", "deep/er/and/er/"]
    names = [*_NAMES, *(f"{number:03}" for number in range(12))]
    return [folder + name for folder in folders for name in names]


# What a bucket writer can leave under a project's prefix.
FOREIGN = ["", "a/", "a//b", "../y", "\x01", "deep/", "deep/er/\x7f", "k" * 901]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["ceph", "moto"])
async def listed(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Scene, list[str]]]:
    """A gateway over hundreds of objects, and the keys that it must list."""
    server: S3Server = request.getfixturevalue(request.param)
    deployment = Deployment(NO_BROKER, server, new_bucket(server))
    bucket = Bucket(deployment)
    bucket.put_keyring("acme")
    made = bucket.made("acme", "any", b"hello")
    tombstone = {"enc-algo": "deleted", "enc-dek-admin": made.metadata["enc-dek-admin"]}
    keys = _keys()
    for number, key in enumerate(keys):
        if number % _DELETED:
            bucket.put(object_s3_key("acme", key), made.body, made.metadata)
        else:
            bucket.put(object_s3_key("acme", key), b"", tombstone)
    for key in FOREIGN:
        bucket.put(object_s3_key("acme", key), made.body, made.metadata)
    bucket.put("acme-2/x", made.body, made.metadata)
    for name, size_bytes in SIZE_OF.items():
        bucket.put_made("acme", bucket.made("acme", f"sizes/{name}", plain(size_bytes)))
    async with reading(deployment) as scene:
        alive = [key for number, key in enumerate(keys) if number % _DELETED]
        yield scene, [*alive, *(f"sizes/{name}" for name in SIZE_OF)]


async def _page(scene: Scene, **query: str | int) -> dict[str, Any]:
    pairs = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
    got = await scene.client.send("GET", f"/v1/projects/acme/objects?{pairs}")
    assert got.status == 200, got.body
    assert got.headers["cache-control"] == "no-store"
    page: dict[str, Any] = json.loads(got.body)
    return page


async def _pages(scene: Scene, **query: str | int) -> list[str]:
    names: list[str] = []
    following = str(query.pop("after", ""))
    while True:
        page = await _page(scene, after=following, **query)
        here = [*(each["key"] for each in page["objects"]), *page["prefixes"]]
        assert len(here) <= int(query.get("limit", 1000))
        names += sorted(here)
        if page["next"] is None:
            return names
        assert page["next"] > following
        following = page["next"]


def _entries(keys: list[str], prefix: str, delimiter: str, after: str) -> list[str]:
    found = set()
    for key in keys:
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if key.startswith(prefix):
            found.add(key if end < 0 else key[: end + 1])
    return sorted((entry for entry in found if entry > after), key=str.encode)


@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/a/", "ü + %/", "deep/", "none"])
async def test_all_pages_together(
    listed: tuple[Scene, list[str]], prefix: str, delimiter: str
) -> None:
    scene, keys = listed
    expected = _entries(keys, prefix, delimiter, "")
    for limit in (3, 1000):
        names = await _pages(scene, prefix=prefix, delimiter=delimiter, limit=limit)
        assert names == expected, limit
    assert not set(names) & {key for key in FOREIGN if not is_object_key(key.removesuffix("/"))}


async def test_after_any_entry(listed: tuple[Scene, list[str]]) -> None:
    """After a folder, or a key in it, a listing by folder continues behind it."""
    scene, keys = listed
    for after in (*_entries(keys, "", "/", ""), "a/a/b", "a/~", "deep/er", "none/x", "\U0010ffff"):
        names = await _pages(scene, delimiter="/", after=after, limit=2)
        assert names == _entries(keys, "", "/", after), after
    for after in ("a/", "a/a/\U0010ffff", "ü + %/a%2Fb", "a0/~"):
        names = await _pages(scene, after=after, limit=50)
        assert names == _entries(keys, "", "", after), after


async def test_sizes_and_times_are_those_of_the_objects(
    listed: tuple[Scene, list[str]],
) -> None:
    scene, _ = listed
    page = await _page(scene, prefix="sizes/")
    assert {each["key"].removeprefix("sizes/"): each["size"] for each in page["objects"]} == SIZE_OF
    for each in page["objects"]:
        head = await scene.client.request("acme", each["key"], method="HEAD")
        assert head.headers["content-length"] == str(each["size"])
        stored = scene.bucket.head(object_s3_key("acme", each["key"]))["LastModified"]
        assert each["changed_at"][:19] == stored.isoformat()[:19]
        assert each["changed_at"].endswith("Z")


async def test_a_page_of_deleted_objects_is_empty_and_continues(
    listed: tuple[Scene, list[str]],
) -> None:
    """Each response costs a bounded number of requests at the storage."""
    scene, _ = listed
    tombstone = {"enc-algo": "deleted"}
    for number in range(12):
        scene.bucket.put(f"acme/zz/{number:02}", b"", tombstone)
    page = await _page(scene, prefix="zz/", limit=1)
    assert page == {"objects": [], "prefixes": [], "next": "zz/07"}
    page = await _page(scene, prefix="zz/", limit=1, after="zz/07")
    assert page == {"objects": [], "prefixes": [], "next": None}
    assert (await _page(scene, prefix="zz", delimiter="/"))["prefixes"] == ["zz/"]


async def test_a_project_with_plaintext_is_listed_by_what_its_objects_are(
    listed: tuple[Scene, list[str]],
) -> None:
    scene, _ = listed
    api_key = "open-key-" + "o" * 33
    scene.bucket.put_keyring("open", api_key, plaintext="allowed")
    scene.bucket.put("open/plain", b"plaintext", {})
    scene.bucket.put_made("open", scene.bucket.made("open", "sealed", b"hello", api_key=api_key))
    scene.bucket.put("open/gone", b"", {"enc-algo": "deleted"})
    got = await scene.client.send("GET", "/v1/projects/open/objects", token=api_key)
    sizes = {each["key"]: each["size"] for each in json.loads(got.body)["objects"]}
    assert sizes == {"plain": 9, "sealed": 5}
