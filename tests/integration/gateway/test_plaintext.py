"""Objects that are stored without encryption (SPEC 4.5, 9.3): where they are served, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from keyturn.identifiers import object_s3_key
from tests.integration.gateway.conftest import reading
from tests.integration.gateway.scene import CHUNK, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Scene

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

GATEWAY_ENV = {"KEYRING_CACHE_S": "0"}
_SIZES = (0, 1, 3 * CHUNK)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _project(scene: Scene) -> None:
    scene.bucket.put_keyring("mixed", plaintext="allowed")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def streaming(scene: Scene) -> AsyncIterator[Scene]:
    """A second gateway, which sends plaintext itself."""
    env = GATEWAY_ENV | {"PRESIGN_PLAINTEXT": "false"}
    async with reading(scene.deployment, **env) as running:
        yield running


async def test_plaintext_is_read_from_the_storage_itself(scene: Scene) -> None:
    """307 to an address that is good for a minute, and for this object alone."""
    scene.bucket.put(object_s3_key("mixed", "bare ü"), plain(100), {"author": "kim"})
    answer = await scene.client.request("mixed", "bare ü")
    assert answer.status == 307
    location = answer.headers["location"]
    assert "X-Amz-Expires=60" in location
    assert answer.headers["cache-control"] == "no-store"
    async with aiohttp.ClientSession() as session, session.get(location) as got:
        assert await got.read() == plain(100)
    head = await scene.client.request("mixed", "bare ü", method="HEAD")
    assert (head.status, head.headers["content-length"]) == (200, "100")


@pytest.mark.parametrize("size_bytes", _SIZES)
async def test_plaintext_that_is_streamed(streaming: Scene, size_bytes: int) -> None:
    plaintext = plain(size_bytes)
    streaming.bucket.put(object_s3_key("mixed", "bare"), plaintext, {}, ContentType="text/plain")
    got = await streaming.client.request("mixed", "bare")
    assert (got.status, got.body, got.end) == (200, plaintext, "clean")
    assert got.headers["content-type"] == "text/plain"
    part = await streaming.client.request("mixed", "bare", {"Range": "bytes=-7"})
    if size_bytes:
        assert (part.status, part.body) == (206, plaintext[-7:])
    else:
        assert (part.status, part.body) == (200, b"")
    known = await streaming.client.request("mixed", "bare", {"If-None-Match": got.headers["etag"]})
    assert known.status == 304
