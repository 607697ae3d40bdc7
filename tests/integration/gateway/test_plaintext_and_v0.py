"""Objects that Keyturn did not make (SPEC 4.5, 4.6, 9.3): where they are served, and how."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import aiohttp
import pytest
import pytest_asyncio

from keyturn.crypto import to_base64, v0_admin_kek, v0_seal, v0_user_kek
from keyturn.identifiers import object_s3_key
from tests.integration.gateway.conftest import reading
from tests.integration.gateway.scene import CHUNK, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Scene

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_V0_MASTER_KEY = "the earlier system's master key"
_V0_MAX_BYTES = 3 * 1024 * 1024
GATEWAY_ENV = {
    "KEYRING_CACHE_S": "0",
    "V0_MASTER_KEY": _V0_MASTER_KEY,
    "GATEWAY_V0_MAX_BYTES": str(_V0_MAX_BYTES),
}
_SIZES = (0, 1, 3 * CHUNK)


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _project(scene: Scene) -> None:
    kek = v0_user_kek(scene.deployment.api_key, "")
    scene.bucket.put_keyring(
        "mixed", plaintext="allowed", v0="allowed", v0_kek=to_base64(kek.reveal())
    )


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


def _put_v0(scene: Scene, plaintext: bytes, *, user: bool = True, admin: bool = True) -> bytes:
    dek = os.urandom(32)
    wraps = {
        "enc-dek-user": (user, v0_user_kek(scene.deployment.api_key, "")),
        "enc-dek-admin": (admin, v0_admin_kek(_V0_MASTER_KEY)),
    }
    metadata = {"enc-algo": "AES-256-GCM"}
    for name, (there, kek) in wraps.items():
        if there:
            metadata[name] = to_base64(v0_seal(kek.reveal(), dek))
    body = v0_seal(dek, plaintext)
    scene.bucket.put(object_s3_key("mixed", "v0"), body, metadata)
    return body


@pytest.mark.parametrize("size_bytes", [*_SIZES, _V0_MAX_BYTES - 29])
@pytest.mark.parametrize(("user", "admin"), [(True, True), (True, False), (False, True)])
async def test_v0(scene: Scene, size_bytes: int, user: bool, admin: bool) -> None:
    plaintext = plain(size_bytes)
    body = _put_v0(scene, plaintext, user=user, admin=admin)
    got = await scene.client.request("mixed", "v0")
    assert (got.status, got.body, got.end) == (200, plaintext, "clean")
    if size_bytes:
        part = await scene.client.request("mixed", "v0", {"Range": "bytes=0-0"})
        assert (part.status, part.body) == (206, plaintext[:1])
    _, answer = scene.bucket.get(object_s3_key("mixed", "v0"))
    for harmed in (body[:-1], body[:-1] + bytes([body[-1] ^ 1]), body + b"\0", body[:20], b""):
        scene.bucket.put(object_s3_key("mixed", "v0"), harmed, answer["Metadata"])
        for headers in ({}, {"Range": "bytes=0-0"}):
            response = await scene.client.request("mixed", "v0", headers)
            assert (response.status, response.code) == (502, "corrupt_object")


async def test_v0_above_the_limit(scene: Scene) -> None:
    _put_v0(scene, plain(_V0_MAX_BYTES))
    got = await scene.client.request("mixed", "v0")
    assert (got.status, got.code) == (413, "body_too_large")


async def test_v0_where_it_is_forbidden(scene: Scene) -> None:
    _put_v0(scene, plain(10))
    scene.bucket.client.copy_object(
        Bucket=scene.deployment.bucket,
        Key=object_s3_key("acme", "v0"),
        CopySource={"Bucket": scene.deployment.bucket, "Key": object_s3_key("mixed", "v0")},
    )
    got = await scene.client.request("acme", "v0")
    assert (got.status, got.code) == (502, "no_usable_wrap")
