"""The storage behind a gateway comes and goes while objects are read (SPEC 9.2)."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from keyturn.crypto import admin_kek, new_api_key, user_kek
from tests.integration.gateway.conftest import NO_BROKER, reading
from tests.integration.gateway.scene import plain
from tests.support.cutting_proxies import Counting, counting
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.http import object_target, read_response, request
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Scene
    from tools.harness.bucket import HandmadeObject
    from tools.servers import S3Server

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_MIB = 1024 * 1024
_SIZE = 48 * _MIB
_PLAINTEXT = plain(_SIZE)
Behind = tuple["Scene", Counting]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def behind(ceph: S3Server) -> AsyncIterator[Behind]:
    """A gateway that reaches the storage by way of a proxy."""
    deployment = Deployment(
        NO_BROKER, ceph, new_bucket(ceph), more_master_keys={"m2": os.urandom(32)}
    )
    Bucket(deployment).put_keyring("acme")
    async with (
        counting(ceph.endpoint_url) as proxy,
        reading(deployment, S3_ENDPOINT_URL=proxy.url, KEYRING_CACHE_S="0") as scene,
    ):
        scene.put("film", _PLAINTEXT)
        yield scene, proxy


@pytest.mark.parametrize("cuts", [1, 6])
@pytest.mark.parametrize("headers", [{}, {"Range": f"bytes=100-{_SIZE - 2}"}])
async def test_a_connection_that_breaks_in_mid_body(
    behind: Behind, cuts: int, headers: dict[str, str]
) -> None:
    """The read goes on where it was, however often, as long as it gets on."""
    scene, proxy = behind
    proxy.cut_after, proxy.cuts, proxy.was_cut = 3 * _MIB, cuts, 0
    answer = await scene.client.request("acme", "film", headers)
    assert (answer.status, answer.end) == (206 if headers else 200, "clean")
    assert proxy.was_cut == cuts
    assert answer.body == (_PLAINTEXT[100:-1] if headers else _PLAINTEXT)


def _turn_both_keys(scene: Scene, made: HandmadeObject, new: str) -> None:
    """As a rotation of both does: the keyring first, then a self-copy with new wraps."""
    deployment, bucket = scene.deployment, scene.bucket
    m2 = ("m2", deployment.more_master_keys["m2"])
    bucket.put_keyring("turning", deployment.api_key, new, master_key=m2)
    wraps = bucket.made("turning", made.key, generation=2, api_key=new, master_key=m2).metadata
    user, admin = user_kek(new, "turning"), admin_kek(m2[1], "turning")
    wraps["enc-dek-user"] = bucket.wrap(user, "user", "turning", made.key, 2, made.dek)
    wraps["enc-dek-admin"] = bucket.wrap(admin, "admin", "turning", made.key, 2, made.dek)
    bucket.client.copy_object(
        Bucket=deployment.bucket,
        Key=f"turning/{made.key}",
        CopySource={"Bucket": deployment.bucket, "Key": f"turning/{made.key}"},
        Metadata=wraps,
        MetadataDirective="REPLACE",
    )


async def test_both_keys_are_turned_and_the_storage_breaks_in_mid_body(behind: Behind) -> None:
    """A read that is restarted finds other wraps, and the same body under the same DEK."""
    scene, proxy = behind
    new = new_api_key()
    scene.bucket.put_keyring("turning")
    made = scene.put("film", _PLAINTEXT, project="turning")
    proxy.cut_after, proxy.cuts, proxy.was_cut = None, 0, 0
    reader, writer = await asyncio.open_connection(scene.process.host, scene.process.port)
    before = proxy.received_bytes
    writer.write(request("GET", object_target("turning", "film"), _authorized(scene)))
    await proxy.has_received(before + 2 * _MIB)
    _turn_both_keys(scene, made, new)
    proxy.cut_after, proxy.cuts = 0, 1
    answer = await read_response(reader)
    writer.transport.abort()
    assert proxy.was_cut == 1
    assert (answer.status, answer.end, answer.body == _PLAINTEXT) == (200, "clean", True)
    after = await scene.client.request("turning", "film", token=new)
    assert (after.headers["etag"], after.body == _PLAINTEXT) == (answer.headers["etag"], True)


async def test_another_object_in_its_place_while_it_is_read(behind: Behind) -> None:
    """A restarted read finds another object than the one that was begun: the response is cut."""
    scene, proxy = behind
    scene.put("changing", _PLAINTEXT)
    proxy.cut_after, proxy.cuts = None, 0
    host, port = scene.process.host, scene.process.port
    reader, writer = await asyncio.open_connection(host, port)
    before = proxy.received_bytes
    writer.write(request("GET", object_target("acme", "changing"), _authorized(scene)))
    await proxy.has_received(before + 2 * _MIB)
    scene.put("changing", plain(_SIZE, seed=9))
    proxy.cut_after, proxy.cuts = 0, 1  # with the next piece
    answer = await read_response(reader)
    writer.transport.abort()
    assert answer.status == 200
    assert answer.end == "reset"
    assert _PLAINTEXT.startswith(answer.body)


async def test_a_reader_that_goes_ends_the_read_from_the_storage(behind: Behind) -> None:
    """What the storage still sends then is what was on its way."""
    scene, proxy = behind
    proxy.cuts = 0
    for _ in range(5):
        before = proxy.received_bytes
        reader, writer = await asyncio.open_connection(scene.process.host, scene.process.port)
        writer.write(request("GET", object_target("acme", "film"), _authorized(scene)))
        await reader.readexactly(1000)
        standing = proxy.connections
        writer.transport.abort()
        async with asyncio.timeout(10):
            while proxy.connections >= standing:  # noqa: ASYNC110  # another process sends no event
                await asyncio.sleep(0.05)
        assert proxy.received_bytes - before < _SIZE
    assert (await scene.client.request("acme", "film")).body == _PLAINTEXT


async def test_a_reader_that_is_slow_is_not_run_ahead_of(behind: Behind) -> None:
    """Bounded memory: what no client reads is not kept; the sockets' own buffers hold a part."""
    scene, proxy = behind
    proxy.cuts = 0
    resident = await _resident_bytes(scene)
    before = proxy.received_bytes
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)  # noqa: FBT003  # the socket module's own
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (scene.process.host, scene.process.port))
    reader, writer = await asyncio.open_connection(sock=sock)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(request("GET", object_target("acme", "film"), _authorized(scene)))
    await proxy.has_received(before + 1)
    at, still = -1, proxy.received_bytes
    async with asyncio.timeout(20):
        while at != still:
            at = still
            await asyncio.sleep(0.5)
            still = proxy.received_bytes
    assert still - before < _SIZE
    assert await _resident_bytes(scene) - resident < 8 * _MIB
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    answer = await read_response(reader)
    writer.transport.abort()
    assert (answer.end, answer.body == _PLAINTEXT) == ("clean", True)


def _authorized(scene: Scene) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {scene.deployment.api_key}")]


async def _resident_bytes(scene: Scene) -> float:
    metrics = (await scene.client.send("GET", "/metrics")).body.decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])
