"""Listings over HTTP (SPEC 9.1, 9.3, 12)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import object_s3_key, parse_time
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.factories import enc, sealed_object
from tests.unit.keyturn_workers.gateway.asgi import Connection
from tests.unit.keyturn_workers.gateway.bench import KEY, NEW_API_KEY, TARGET, Bench
from tests.unit.keyturn_workers.gateway.serving import Serving

LIST = "/v1/projects/acme/objects"


def _serving(**more: Any) -> Serving:
    serving = Serving(**more)
    for key in ("a/1", "a/2", "b", "ü + %"):
        serving.bench.plant_sealed(b"hello", key)
    serving.bench.plant({"enc-algo": "deleted"}, b"", "gone")
    return serving


async def test_a_page_is_served() -> None:
    serving = _serving()
    got = await serving.ask(target=LIST)
    head = await serving.bench.storage.head(object_s3_key("acme", "b"))
    assert got.status == 200
    assert got.headers["content-type"] == "application/json"
    assert got.headers["cache-control"] == "no-store"
    document = got.document()
    assert set(document) == {"objects", "prefixes", "next"}
    assert [each["key"] for each in document["objects"]] == ["a/1", "a/2", "b", "ü + %"]
    listed = document["objects"][2]
    assert (set(listed), listed["key"], listed["size"]) == ({"key", "size", "changed_at"}, "b", 5)
    assert parse_time(listed["changed_at"]) == head.last_modified
    assert (document["prefixes"], document["next"]) == ([], None)
    assert serving.counted("requests_total", route="listing", method="GET", status="200") == 1


async def test_a_rotation_moves_changed_at_and_not_last_modified() -> None:
    """A listing reads no metadata, so it cannot show when the content was stored."""
    serving = Serving()
    wraps, body = sealed_object(serving.bench.desired, KEY, b"content")
    stored_at = {"enc-stored-at": "2026-11-02T03:04:05.600000Z"}  # of the first rewrap
    serving.bench.plant(enc(wraps) | stored_at, body)
    rewrapped = await serving.bench.storage.head(TARGET)
    (listed,) = (await serving.ask(target=LIST)).document()["objects"]
    assert parse_time(listed["changed_at"]) == rewrapped.last_modified
    read = await serving.ask("HEAD")
    assert read.headers["last-modified"] == "Mon, 02 Nov 2026 03:04:05 GMT"


async def test_pages_follow_one_another() -> None:
    serving = _serving()
    first = (await serving.ask(target=f"{LIST}?delimiter=/&limit=2")).document()
    assert [each["key"] for each in first["objects"]] == ["b"]
    assert (first["prefixes"], first["next"]) == (["a/"], "b")
    rest = (await serving.ask(target=f"{LIST}?delimiter=%2F&after=b")).document()
    assert [each["key"] for each in rest["objects"]] == ["ü + %"]
    within = (await serving.ask(target=f"{LIST}?prefix=a/&after=a/1")).document()
    assert [each["key"] for each in within["objects"]] == ["a/2"]


@pytest.mark.parametrize("query", ["limit=0", "delimiter=x", "prefix=a&prefix=b", "key=a"])
async def test_a_malformed_query_is_refused(query: str) -> None:
    got = await _serving().ask(target=f"{LIST}?{query}")
    assert (got.status, got.document()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (LIST, None),
        (LIST, NEW_API_KEY),
        ("/v1/projects/other/objects", NEW_API_KEY),
        ("/v1/projects/.keyturn/objects", NEW_API_KEY),
        # Not even a malformed query is reported to a caller without the key.
        (f"{LIST}?limit=0", NEW_API_KEY),
    ],
)
async def test_without_the_projects_key_nothing_is_read(target: str, key: str | None) -> None:
    serving = _serving()
    got = await serving.ask(target=target, key=key)
    assert (got.status, got.document()["code"]) == (401, "unauthorized")
    assert not serving.bench.storage.calls["list_entries"]


async def test_a_project_lists_only_its_own_objects() -> None:
    """A prefix is never resolved, and keys of a longer project id are not under it."""
    serving = _serving()
    for key in ("acme-2/x", "other/x", ".keyturn/sweeps/x"):
        serving.bench.storage.plant(key, bytes(72), Headers({}))
    for prefix in ("../other/", "../", "/", "-2/", "..%2F.keyturn/", "."):
        got = await serving.ask(target=f"{LIST}?prefix={prefix}")
        assert (got.status, got.document()["objects"]) == (200, [])


async def test_a_failing_storage_is_a_503(capsys: pytest.CaptureFixture[str]) -> None:
    serving = _serving()
    serving.bench.storage.fail_next("list_entries", StorageUnavailableError("down"))
    got = await serving.ask(target=LIST)
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    assert "project='acme' key=None" in capsys.readouterr().out


async def test_a_listing_holds_a_place_of_the_projects_share() -> None:
    serving = _serving(concurrency=4, project_share=0.25)
    busy, resumed = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        busy.set()
        await resumed.wait()

    serving.bench.storage.before_next("list_entries", wait)
    first = asyncio.create_task(serving.ask(target=LIST))
    await busy.wait()
    refused = await serving.ask(target=LIST)
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    resumed.set()
    assert (await first).status == 200
    assert (await serving.ask(target=LIST)).status == 200


async def test_a_full_gateway_refuses_a_listing() -> None:
    serving = _serving(concurrency=1)
    busy, resumed = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        busy.set()
        await resumed.wait()

    serving.bench.storage.before_next("list_entries", wait)
    first = asyncio.create_task(serving.ask(target=LIST))
    await busy.wait()
    refused = await serving.ask(target=LIST)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    resumed.set()
    assert (await first).status == 200


async def test_a_disconnect_ends_the_work() -> None:
    serving = _serving()
    busy, connection = asyncio.Event(), Connection()
    ended = []

    async def wait() -> None:
        busy.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("list_entries")
            raise

    serving.bench.storage.before_next("list_entries", wait)
    asking = asyncio.create_task(serving.ask(target=LIST, on=connection))
    await busy.wait()
    connection.gone.set()
    async with asyncio.timeout(5):
        await asking
    assert ended == ["list_entries"]


async def test_kinds_of_objects_are_those_of_the_keyring() -> None:
    serving = Serving(Bench(cache_s=0))
    serving.bench.plant({}, b"plain", "a")
    assert (await serving.ask(target=LIST)).document()["objects"][0]["size"] is None
    serving.bench.allow(plaintext=True)
    assert (await serving.ask(target=LIST)).document()["objects"][0]["size"] == 5


async def test_other_methods_are_not_allowed() -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await _serving().ask(method, LIST)).status == 405
