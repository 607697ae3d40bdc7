"""The Python client against a gateway, a broker and a worker: list, link, delete (SPEC 9.3)."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from keyturn.crypto import new_api_key
from keyturn.errors import MalformedRequestError, NotFoundError, UnauthorizedError
from keyturn.gateway import Client, DeleteReceipt, ListedObject, ListedPrefix
from tests.integration.gateway.scene import plain
from tests.unit.keyturn.gateway.gateway import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Live

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"KEYRING_CACHE_S": "0.5"}
_KEYS = ["b/é/日本.txt", "a", "b+c d", "b/x", "b/%41&?#", "b"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(live: Live) -> AsyncIterator[Client]:
    async with Client.connect(live.scene.process.url, live.scene.deployment.api_key) as opened:
        yield opened


async def test_objects_are_listed_page_by_page(live: Live, client: Client) -> None:
    """By one entry a page, every page but the last has a next one."""
    sizes = {f"list/{key}": number * 20_000 for number, key in enumerate(_KEYS)}
    for key, size in sizes.items():
        live.scene.put(key, plain(size))
    live.scene.bucket.put("acme/list/gone", b"", {"enc-algo": "deleted"})
    live.scene.bucket.put("acme/list/odd", b"foreign", {})
    expected = dict(sorted({**sizes, "list/odd": None}.items(), key=lambda row: row[0].encode()))
    for page_size in (1, 3, 1000):
        listing = client.list("acme", prefix="list/", page_size=page_size)
        listed = [entry async for entry in listing]
        assert {entry.key: entry.size_bytes for entry in listed} == expected
        assert [entry.key for entry in listed] == list(expected)
    soon = timedelta(minutes=10)
    assert all(abs(entry.changed_at - datetime.now(UTC)) < soon for entry in listed)
    behind = client.list("acme", prefix="list/", after="list/b/x")
    assert [entry.key async for entry in behind] == [key for key in expected if key > "list/b/x"]


async def test_one_level_is_listed_with_its_folders(live: Live, client: Client) -> None:
    for key in ("tree/a/1", "tree/a/2", "tree/a.txt", "tree/b/c/d", "tree/z"):
        live.scene.put(key, plain(10))
    for page_size in (1, 1000):
        listing = client.list("acme", prefix="tree/", delimiter="/", page_size=page_size)
        shown = [
            entry.key if isinstance(entry, ListedObject) else entry.prefix
            async for entry in listing
        ]
        assert shown == ["tree/a.txt", "tree/a/", "tree/b/", "tree/z"]
    below = client.list("acme", prefix="tree/b/", delimiter="/")
    assert [entry async for entry in below] == [ListedPrefix("tree/b/c/")]
    behind = client.list("acme", prefix="tree/", delimiter="/", after="tree/a/1")
    assert await anext(behind) == ListedPrefix("tree/b/")
    nothing = client.list("acme", prefix="no such/")
    assert [entry async for entry in nothing] == []


async def test_a_link_opens_its_object_alone_until_the_key_is_rotated(live: Live) -> None:
    """It needs no API key, and no object when it is made."""
    await live.served.enroll("links")
    url, api_key = live.scene.process.url, live.scene.deployment.api_key
    key, body = "shared/é & b.html", plain(50_000)
    async with Client.connect(url, api_key) as client, aiohttp.ClientSession() as browser:
        saved = await client.link("links", key, expires_s=60)
        shown = await client.link("links", key, inline=True)
        assert await _status(browser, saved.url) == 404
        assert (await client.upload("links", key, body, wait_s=30)).stored
        for link, disposition in ((saved, "attachment"), (shown, "inline")):
            async with browser.get(link.url) as answer:
                assert (answer.status, await answer.read()) == (200, body)
                assert answer.headers["Content-Disposition"].startswith(disposition)
        lives = [link.expires_at - datetime.now(UTC) for link in (saved, shown)]
        assert timedelta(seconds=50) < lives[0] < timedelta(seconds=62)
        assert timedelta(minutes=59) < lives[1] < timedelta(minutes=61)
        other = saved.url.replace("b.html", "c.html")
        assert await _status(browser, other) == 401
        assert saved.url not in repr(saved)

        new_key = new_api_key()
        rotation_id = await client.rotate("links", new_key)
        rotated = client.with_api_key(new_key)
        async with asyncio.timeout(60):
            while await _status(browser, saved.url) != 401:  # noqa: ASYNC110  # no events
                await asyncio.sleep(0.1)
            while await _state(rotated, rotation_id) != "completed":  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.1)
        async with browser.get((await rotated.link("links", key)).url) as answer:
            assert await answer.read() == body


async def _status(browser: aiohttp.ClientSession, url: str) -> int:
    async with browser.get(url) as answer:
        return answer.status


async def _state(client: Client, rotation_id: str) -> str:
    try:
        return str((await client.rotation("links", rotation_id))["state"])
    except UnauthorizedError:  # the gateway may still have the old keyring in its cache
        return "requested"


async def test_a_link_to_ciphertext_has_the_stored_bytes(live: Live, client: Client) -> None:
    made = live.scene.put("sealed", plain(50_000))
    link = await client.ciphertext_link("acme", "sealed", expires_s=60)
    assert link.metadata == {
        name: value for name, value in made.metadata.items() if name.startswith("enc-")
    }
    async with aiohttp.ClientSession() as reader, reader.get(link.url) as answer:
        assert (answer.status, await answer.read()) == (200, made.body)
    assert not [text for text in (link.url, *made.metadata.values()) if text in repr(link)]
    with pytest.raises(NotFoundError):
        await client.ciphertext_link("acme", "never")


async def test_a_deleted_object_is_gone_from_listings_and_links(live: Live, client: Client) -> None:
    for key in ("gone/now", "gone/later"):
        live.scene.put(key, plain(100))
    link = await client.link("acme", "gone/now")
    assert await client.delete("acme", "gone/now", wait_s=30) == DeleteReceipt(None, deleted=True)
    later = await client.delete("acme", "gone/later")
    assert not later.deleted
    event = await live.served.wire.outcome(str(later.request_id))
    assert (event["type"], event["key"]) == ("object.deleted", "gone/later")
    assert [entry async for entry in client.list("acme", prefix="gone/")] == []
    async with aiohttp.ClientSession() as browser:
        assert await _status(browser, link.url) == 404
    with pytest.raises(NotFoundError):
        await client.stat("acme", "gone/now")
    with pytest.raises(NotFoundError):
        await client.delete("acme", "never")
    assert (await client.delete("acme", "gone/now", wait_s=30)).deleted  # a second one does no harm


@pytest.mark.parametrize("how", ["list", "delete", "link", "ciphertext_link"])
async def test_another_key_is_refused(client: Client, how: str) -> None:
    with pytest.raises(UnauthorizedError):
        await ask(client.with_api_key(new_api_key()), how)
    with pytest.raises(UnauthorizedError):
        await ask(client, how, project="unknown")


async def test_what_the_client_requests_the_gateway_serves(client: Client) -> None:
    """A listing that the client requests is one that the gateway serves."""
    allowed = ("é" * 450, "a//", "..", "/", "a b+c%&=#")
    for prefix in allowed:
        assert [entry async for entry in client.list("acme", prefix=prefix)] == []
    with pytest.raises(MalformedRequestError, match=re.escape("prefix cannot contain control")):
        client.list("acme", prefix="a\n")
    assert [entry async for entry in client.list("acme", after="z\n" + "é" * 511)] == []
