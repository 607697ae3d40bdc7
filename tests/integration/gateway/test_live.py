"""What is handed in and turned over HTTP, with a broker and a worker behind (SPEC 9.4, 9.5).

One deployment for all tests; those that rotate a key have their own projects.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from keyturn.crypto import new_api_key
from tests.integration.gateway.scene import plain
from tools.harness import requests, stored_objects
from tools.harness.canaries import MARKER, secrets_of_link
from tools.harness.http import exchange, object_target, read_response, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Live
    from tools.harness.http import Response

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_MIB = 1024 * 1024
_MAX_BYTES = 24 * _MIB
WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"UPLOAD_MAX_BYTES": str(_MAX_BYTES), "KEYRING_CACHE_S": "0.5"}
_WAIT = {"Prefer": "wait=30"}
_CACHE_S = 0.5


async def _enrolled(live: Live, project: str) -> str:
    await live.served.enroll(project)
    return live.scene.deployment.api_key


def _rotations(project: str) -> str:
    return f"/v1/projects/{project}/rotations"


async def _post(
    live: Live, project: str, new: object, *, token: str | None = None, **headers: str
) -> Response:
    body = json.dumps(new).encode()
    return await live.scene.client.send(
        "POST", _rotations(project), headers, token=token, body=body
    )


async def _link(live: Live, project: str, key: str, *, token: str, **asked: object) -> str:
    """The path and query of a new link."""
    target = f"{object_target(project, key)}/links"
    body = json.dumps(asked).encode()
    answer = await live.scene.client.send("POST", target, token=token, body=body)
    url: str = json.loads(answer.body)["url"]
    live.scene.given.update(secrets_of_link(f"link {len(live.scene.given)}", url))
    return url.partition("//gateway")[2]


async def _opened(live: Live, target: str) -> tuple[int, bytes]:
    """The response to a link, without an API key."""
    process = live.scene.process
    answer = await exchange(process.host, process.port, request("GET", target, {}))
    return answer.status, answer.body


async def _state(live: Live, location: str, token: str, expected: str) -> dict[str, Any]:
    """The rotation's state, once it is the one that is wanted."""
    async with asyncio.timeout(60):
        while True:
            answer = await live.scene.client.send("GET", location, token=token)
            if answer.status == 200:
                found: dict[str, Any] = json.loads(answer.body)
                if found["state"] == expected:
                    return found
                assert found["state"] in ("requested", "accepted", "running"), found
            else:
                assert answer.status in (401, 404), answer
            await asyncio.sleep(0.1)


_PROBE = ".keyturn/staging/gateway/doctor-"


def _left_over(live: Live) -> list[Any]:
    """What is in staging, and uploads in parts that are open.

    Without what the gateway itself tests there, alongside its first requests.
    """
    deployment = live.scene.deployment
    staged = stored_objects.list_keys(deployment, ".keyturn/staging/")
    return [
        *(key for key in staged if not key.startswith(_PROBE)),
        *stored_objects.list_multipart_uploads(deployment),
    ]


async def test_the_gateways_probe_leaves_nothing(live: Live) -> None:
    """The objects by which it learns what listings show are gone soon after its start."""
    async with asyncio.timeout(60):
        while stored_objects.list_keys(live.scene.deployment, _PROBE):  # noqa: ASYNC110  # no events
            await asyncio.sleep(0.1)


# Uploads.


async def test_put_and_get(live: Live) -> None:
    """202 at once with the id of the event; then it is there, under both keys."""
    client, plaintext = live.scene.client, plain(100_000)
    answer = await client.request(
        "acme",
        "a/b c+ü.txt",
        {"Content-Type": "text/plain", "X-Keyturn-Meta-Author": "kim"},
        method="PUT",
        body=plaintext,
    )
    assert answer.status == 202
    event = await live.served.wire.outcome(json.loads(answer.body)["upload_id"])
    assert (event["type"], event["key"], event["size"]) == (
        "upload.stored",
        "a/b c+ü.txt",
        100_000,
    )
    got = await client.request("acme", "a/b c+ü.txt")
    assert (got.status, got.body) == (200, plaintext)
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["x-keyturn-meta-author"] == "kim"
    for role in ("user", "admin"):
        opened = stored_objects.decrypt(live.scene.deployment, "acme", "a/b c+ü.txt", role)
        assert opened == plaintext


async def test_put_that_waits_and_what_refuses_it(live: Live) -> None:
    """201 once it is stored; a key never takes another body, nor one that was deleted any."""
    client = live.scene.client
    first = await client.request("acme", "once", _WAIT, method="PUT", body=plain(10))
    assert first.status == 201
    assert first.headers["location"] == object_target("acme", "once")
    assert first.headers["preference-applied"].startswith("wait=")
    second = await client.request("acme", "once", _WAIT, method="PUT", body=plain(10, seed=1))
    assert (second.status, second.code) == (409, "already_exists")
    assert (await client.request("acme", "once")).body == plain(10)
    event = await live.served.publish_and_wait(requests.delete("acme", "once"))
    assert event["type"] == "object.deleted"
    third = await client.request("acme", "once", _WAIT, method="PUT", body=plain(10))
    assert (third.status, third.code) == (409, "deleted_key")
    assert (await client.request("acme", "once")).status == 404


async def test_an_empty_body(live: Live) -> None:
    client = live.scene.client
    answer = await client.request("acme", "empty", {**_WAIT, "Content-Length": "0"}, method="PUT")
    assert answer.status == 201
    got = await client.request("acme", "empty")
    assert (got.status, got.headers["content-length"], got.body) == (200, "0", b"")


_BAD: dict[str, tuple[dict[str, str], int, str]] = {
    "enc- metadata": ({"X-Keyturn-Meta-Enc-Algo": "none"}, 400, "malformed_request"),
    "a metadata name of odd characters": ({"X-Keyturn-Meta-a_b": "x"}, 400, "malformed_request"),
    "metadata over 1 KiB": ({"X-Keyturn-Meta-A": "x" * 1100}, 400, "malformed_request"),
    "a content type of 2 KiB": ({"Content-Type": "x" * 2048}, 400, "malformed_request"),
    "a part of an object": ({"Content-Range": "bytes 0-9/99"}, 400, "malformed_request"),
    "an encoded body": ({"Content-Encoding": "gzip"}, 400, "malformed_request"),
    "too long by its own word": ({"Content-Length": str(_MAX_BYTES + 1)}, 413, "body_too_large"),
}


@pytest.mark.parametrize("what", _BAD)
async def test_a_put_that_is_refused_at_once(live: Live, what: str) -> None:
    headers, status, code = _BAD[what]
    answer = await live.scene.client.request("acme", "bad", headers, method="PUT", body=plain(10))
    assert (answer.status, answer.code) == (status, code)
    # A little body is read; of one that says that it is much no more is waited for.
    assert ("connection" in answer.headers) is (what == "too long by its own word")
    assert _left_over(live) == []


async def _chunks(size_bytes: int) -> AsyncIterator[bytes]:
    body = plain(size_bytes)
    for at in range(0, size_bytes, 300_000):
        yield body[at : at + 300_000]


async def test_a_large_body_of_unknown_length(live: Live) -> None:
    """20 MiB in chunks, by way of staging, of which nothing is left."""
    headers = {"Authorization": f"Bearer {live.scene.deployment.api_key}", **_WAIT}
    url = live.scene.process.url + object_target("acme", "large")
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.put(url, data=_chunks(20 * _MIB)) as answer:
            assert answer.status == 201, await answer.text()
        async with session.get(url) as answer:
            assert await answer.read() == plain(20 * _MIB)
    async with asyncio.timeout(10):
        while _left_over(live):  # noqa: ASYNC110  # cleared after the event
            await asyncio.sleep(0.1)


async def test_a_body_that_turns_out_too_long(live: Live) -> None:
    """Of unknown length, and over the limit: 413, and nothing of it is left in staging."""
    head = request(
        "PUT",
        object_target("acme", "toolong"),
        [
            ("Authorization", f"Bearer {live.scene.deployment.api_key}"),
            ("Transfer-Encoding", "chunked"),
        ],
    )
    process = live.scene.process
    got, writer = await asyncio.open_connection(process.host, process.port)
    piece = plain(_MIB)

    async def send() -> None:
        writer.write(head)
        for _ in range(_MAX_BYTES // _MIB + 1):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()

    sending = asyncio.create_task(send())
    answer = await read_response(got)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    writer.transport.abort()
    assert (answer.status, answer.code) == (413, "body_too_large")
    assert _left_over(live) == []
    assert (await live.scene.client.request("acme", "toolong")).status == 404


@pytest.mark.parametrize("sent_bytes", [1000, 18 * _MIB])
async def test_a_client_that_goes_in_mid_body(live: Live, sent_bytes: int) -> None:
    """Nothing of what it sent stays in staging, nor open in parts, and nothing is published."""
    process = live.scene.process
    known = len(live.served.wire.events)
    _, writer = await asyncio.open_connection(process.host, process.port)
    headers = [
        ("Authorization", f"Bearer {live.scene.deployment.api_key}"),
        ("Content-Length", str(20 * _MIB)),
    ]
    writer.write(request("PUT", object_target("acme", f"gone/{sent_bytes}"), headers))
    writer.write(plain(sent_bytes))
    await writer.drain()
    if sent_bytes > 8 * _MIB:
        async with asyncio.timeout(10):
            while not stored_objects.list_multipart_uploads(live.scene.deployment):  # noqa: ASYNC110  # no events
                await asyncio.sleep(0.05)
    writer.transport.abort()
    async with asyncio.timeout(10):
        while _left_over(live):  # noqa: ASYNC110  # no events
            await asyncio.sleep(0.1)
    assert live.served.wire.events[known:] == []


async def test_expect_continue(live: Live) -> None:
    """A refused client gets the response before it sends the body."""
    process = live.scene.process
    for token, first in (("x" * 40, b"401"), (live.scene.deployment.api_key, b"100")):
        got, writer = await asyncio.open_connection(process.host, process.port)
        headers = [
            ("Authorization", f"Bearer {token}"),
            ("Content-Length", "10"),
            ("Expect", "100-continue"),
        ]
        writer.write(request("PUT", object_target("acme", "expected"), headers))
        line = await asyncio.wait_for(got.readline(), 10)
        assert line.split()[1] == first
        writer.transport.abort()


# Rotations.


async def test_a_rotation_over_http(live: Live) -> None:
    """From the request to its end; the retired key goes within the cache's time."""
    client = live.scene.client
    old, new = await _enrolled(live, "turning"), new_api_key()
    objects = {f"o/{n}": plain(40_000, seed=n) for n in range(20)}
    for key, plaintext in objects.items():
        live.scene.put(key, plaintext, project="turning")
    assert (await client.request("turning", "o/1")).body == objects["o/1"]
    given = await _link(live, "turning", "o/1", token=old, expires_s=604800)
    assert await _opened(live, given) == (200, objects["o/1"])
    answer = await _post(live, "turning", {"api_key": new}, token=old)
    assert answer.status == 202
    rotation_id = json.loads(answer.body)["rotation_id"]
    location = answer.headers["location"]
    assert location == f"{_rotations('turning')}/{rotation_id}"
    event = await live.served.wire.outcome(rotation_id)
    assert (event["type"], event["generation"]) == ("rotation.accepted", 2)

    await asyncio.sleep(_CACHE_S)  # what the cache may still hold, by its setting
    for key, plaintext in objects.items():
        # Swept or not: the new key opens it, and the old one none.
        assert (await client.request("turning", key, token=new)).body == plaintext
    refusals = await asyncio.gather(*(client.request("turning", k, token=old) for k in objects))
    assert {answered.status for answered in refusals} == {401}
    # The link was good for a week. It ended with the key, and in the words of a wrong one.
    assert await _opened(live, given) == (401, refusals[0].body)
    assert await _opened(live, await _link(live, "turning", "o/1", token=new)) == (
        200,
        objects["o/1"],
    )
    assert (await client.send("GET", location, token=old)).status == 401
    done = await _state(live, location, new, "completed")
    assert done["counts"]["clean"] is True
    assert done["counts"]["objects"] == 20
    assert done["generation"] == 2
    for key, plaintext in objects.items():
        assert (await client.request("turning", key, token=new)).body == plaintext
        opened = stored_objects.decrypt(live.scene.deployment, "turning", key, "user", api_key=new)
        assert opened == plaintext

    # An object put there under the retired key is served by the admin wrap at most.
    late = live.scene.bucket.made("turning", "late", plain(50), generation=1)
    live.scene.bucket.put_made("turning", late)
    assert (await client.request("turning", "late", token=new)).body == plain(50)
    assert (await client.request("turning", "late", token=old)).status == 401

    for reused in (old, new):
        again = await _post(live, "turning", {"api_key": reused}, token=new)
        assert (again.status, again.code) == (409, "kek_reused")
    no_more = await _post(live, "turning", {"api_key": new_api_key()}, token=old)
    assert (no_more.status, no_more.code) == (401, "unauthorized")


async def test_two_rotations_at_once_turn_the_key_once(live: Live) -> None:
    """Both expect the generation that the callers' key was good for."""
    old, new = await _enrolled(live, "twice"), [new_api_key(), new_api_key()]
    answers = await asyncio.gather(
        *(_post(live, "twice", {"api_key": key}, token=old, Prefer="wait=20") for key in new)
    )
    assert sorted(answer.status for answer in answers) == [202, 409]
    refused = next(answer for answer in answers if answer.status == 409)
    assert refused.code == "generation_mismatch"
    winner = new[[answer.status for answer in answers].index(202)]
    accepted = next(answer for answer in answers if answer.status == 202)
    await asyncio.sleep(_CACHE_S)
    await _state(live, accepted.headers["location"], winner, "completed")
    assert live.scene.bucket.keyring("twice")["generation"] == 2


_BODIES: dict[str, bytes] = {
    "no JSON": b"{",
    "nothing": b"",
    "a list": b"[]",
    "no key": b"{}",
    "a number": b'{"api_key": 1}',
    "too short": b'{"api_key": "short"}',
    "odd characters": b'{"api_key": "' + b"!" * 40 + b'"}',
    "another field": b'{"api_key": "' + b"a" * 40 + b'", "force": true}',
    "a name twice": b'{"api_key": "' + b"a" * 40 + b'", "api_key": "' + b"b" * 40 + b'"}',
    "no UTF-8": b'{"api_key": "\xff"}',
    "deep": b"[" * 4000,
}


@pytest.mark.parametrize("what", _BODIES)
async def test_a_rotation_that_cannot_be_read(live: Live, what: str) -> None:
    """400, and the answer repeats nothing of what was sent."""
    body = _BODIES[what]
    headers = {"Content-Length": str(len(body))}
    answer = await live.scene.client.send("POST", _rotations("acme"), headers, body=body)
    assert (answer.status, answer.code) == (400, "malformed_request")
    assert b"aaaa" not in answer.body
    assert b"!!!!" not in answer.body
    assert live.scene.bucket.keyring("acme")["generation"] == 1


async def test_a_rotation_whose_body_has_no_end(live: Live) -> None:
    answer = await live.scene.client.send("POST", _rotations("acme"), body=b" " * 9000)
    assert (answer.status, answer.code) == (413, "body_too_large")


async def test_the_location_names_this_gateway_alone(live: Live) -> None:
    """Whatever Host a caller sends."""
    old, new = await _enrolled(live, "hosted"), new_api_key()
    body = json.dumps({"api_key": new}).encode()
    process = live.scene.process
    raw = (
        f"POST {_rotations('hosted')} HTTP/1.1\r\nHost: [evil/x?y\r\n"
        f"Authorization: Bearer {old}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    got, writer = await asyncio.open_connection(process.host, process.port)
    writer.write(raw)
    answer = await read_response(got)
    writer.transport.abort()
    assert answer.status == 202
    assert answer.headers["location"].startswith(_rotations("hosted") + "/")


async def test_a_rotation_is_reported_only_to_its_project(live: Live) -> None:
    old, new = await _enrolled(live, "telling"), new_api_key()
    answer = await _post(live, "telling", {"api_key": new}, token=old)
    rotation_id = json.loads(answer.body)["rotation_id"]
    client = live.scene.client
    other = await client.send("GET", f"{_rotations('acme')}/{rotation_id}")
    assert (other.status, other.code) == (404, "not_found")
    for odd in ("x", rotation_id.upper(), f"{rotation_id}%0a", "..%2f..", "%00"):
        response = await client.send("GET", f"{_rotations('acme')}/{odd}")
        assert (response.status, response.code) == (404, "not_found")
    await _state(live, answer.headers["location"], new, "completed")


# While it is read.


async def test_a_download_while_its_object_is_rotated(live: Live) -> None:
    """64 MiB, read slowly; the key is turned and the object swept in the middle of it."""
    old, new = await _enrolled(live, "moving"), new_api_key()
    plaintext = MARKER + os.urandom(64 * _MIB)
    live.scene.put("film", plaintext, project="moving")
    headers = {"Authorization": f"Bearer {old}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(live.scene.process.url + object_target("moving", "film")) as download,
    ):
        etag = download.headers["etag"]
        begun = await download.content.readexactly(_MIB)
        answer = await _post(live, "moving", {"api_key": new}, token=old)
        await asyncio.sleep(_CACHE_S)
        done = await _state(live, answer.headers["location"], new, "completed")
        assert done["counts"]["rewrapped"] == 1
        assert begun + await download.content.read() == plaintext
    after = await live.scene.client.request("moving", "film", {"If-None-Match": etag}, token=new)
    assert after.status == 304  # no rotation changes what it is
