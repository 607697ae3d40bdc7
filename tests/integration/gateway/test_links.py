"""Links from a real gateway, opened by real clients (SPEC 9.3).

Rotations end links: `test_live.py`. At the end, the gateway's log is searched for every link.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
import pytest_asyncio

from keyturn.crypto import LinkClaims, link_token, user_kek
from keyturn.gateway import Client as GatewayClient
from keyturn.identifiers import object_s3_key
from keyturn.open import LinkExpiredError, open_object
from tests.integration.gateway.conftest import reading
from tests.integration.gateway.scene import CHUNK, plain
from tools.harness.canaries import secrets_of_link
from tools.harness.http import exchange, object_target, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.gateway.scene import Scene
    from tools.harness.http import Response

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

GATEWAY_ENV = {"LOG_LEVEL": "debug"}
_KEY = "reports/q3 ü.pdf"
_SIZE = 20 * CHUNK + 7
_PUBLIC_URL = "https://files.example.com/keyturn"


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _objects(scene: Scene) -> None:
    scene.put(_KEY, plain(_SIZE), ContentType="text/html", ContentDisposition="inline")
    scene.bucket.put_keyring("mixed", plaintext="allowed")
    scene.bucket.put(object_s3_key("mixed", "bare"), plain(1000), {})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def elsewhere(scene: Scene) -> AsyncIterator[Scene]:
    """A gateway of another deployment on the same bucket and keys, behind a proxy."""
    other = replace(scene.deployment, name="elsewhere")
    async with reading(other, GATEWAY_PUBLIC_URL=f"{_PUBLIC_URL}/") as running:
        yield running


async def _post(scene: Scene, asked: dict[str, Any], *, key: str = _KEY) -> dict[str, Any]:
    target = f"{object_target('acme', key)}/links"
    answer = await scene.client.send("POST", target, body=json.dumps(asked).encode())
    assert answer.status == 201, answer.body
    document: dict[str, Any] = json.loads(answer.body)
    scene.given.update(secrets_of_link(f"link {len(scene.given)}", document["url"]))
    return document


async def _link(scene: Scene, **asked: Any) -> str:
    """The path and query of a new link."""
    url = urlsplit((await _post(scene, asked))["url"])
    return f"{url.path.removeprefix('/keyturn')}?{url.query}"


async def _raw(scene: Scene, target: str, method: str = "GET", **headers: str) -> Response:
    """Request without an API key."""
    raw = request(method, target, headers)
    return await exchange(scene.process.host, scene.process.port, raw, head_only=method == "HEAD")


async def test_a_link_opens_the_object_for_any_client(scene: Scene) -> None:
    """The Python client asks for it; a client that knows no Keyturn opens it as it is."""
    async with GatewayClient.connect(scene.process.url, scene.deployment.api_key) as client:
        link = await client.link("acme", _KEY, expires_s=60)
        shown = await client.link("acme", _KEY, inline=True)
    for number, url in enumerate((link.url, shown.url)):
        scene.given.update(secrets_of_link(f"given to a browser, {number}", url))
    async with aiohttp.ClientSession() as session, session.get(link.url) as got:
        assert (got.status, await got.read()) == (200, plain(_SIZE))
        assert got.headers["content-disposition"] == (
            "attachment; filename=\"q3 _.pdf\"; filename*=UTF-8''q3%20%C3%BC.pdf"
        )
        assert got.content_disposition is not None
        assert got.content_disposition.filename == "q3 ü.pdf"
        assert got.headers["content-security-policy"] == "sandbox"
        assert got.headers["cache-control"] == "private, no-store"
        assert got.headers["referrer-policy"] == "no-referrer"
    part = {"Range": f"bytes={CHUNK}-{CHUNK + 9}"}
    async with aiohttp.ClientSession() as session, session.get(shown.url, headers=part) as got:
        assert (got.status, await got.read()) == (206, plain(_SIZE)[CHUNK : CHUNK + 10])
        assert got.headers["content-disposition"].startswith("inline; filename=")
        assert got.headers["cache-control"] == "private, no-store"


async def test_a_link_can_be_checked_by_any_gateway(scene: Scene) -> None:
    """It is a function of the KEK and of what it says: nothing of it is stored anywhere."""
    expires = int(time.time()) + 60
    kek = user_kek(scene.deployment.api_key, "acme")
    token = link_token(kek, scene.deployment.name, LinkClaims("acme", _KEY, expires, inline=False))
    target = f"{object_target('acme', _KEY)}?expires={expires}&token={token}"
    scene.given["a token made here"] = token.encode()
    assert (await _raw(scene, target, "HEAD")).status == 200


async def test_the_refusal_is_that_of_a_wrong_key(scene: Scene, elsewhere: Scene) -> None:
    """Byte for byte, and with its minimum time, whatever is wrong with the link."""
    expected = await scene.client.request("acme", _KEY, token="kt_" + "s" * 40)
    link = await _link(scene)
    short = await _link(scene, expires_s=1)
    token = parse_qs(urlsplit(link).query)["token"][0]
    changed = [
        link.replace(token, "t" * 43),
        link.replace("reports", "Reports"),
        link.replace("/acme/", "/other/"),
        link.replace("/acme/", "/nosuch/"),
        f"{link}&inline=1",
        f"{link}&token={token}",
        link.replace("expires=", "expires=0"),
        await _link(elsewhere),
    ]
    await asyncio.sleep(2.1)  # until the short link has ended
    began = time.perf_counter()
    for target in (*changed, short):
        answer = await _raw(scene, target)
        assert (answer.status, answer.body) == (401, expected.body)
        known = [name for name, _ in expected.fields]
        assert [name for name, _ in answer.fields] == known
        assert "date" in known
    assert time.perf_counter() - began > 0.1 * (len(changed) + 1)
    assert (await _raw(scene, link)).status == 200


async def test_refusals_take_equally_long(scene: Scene) -> None:
    """A wrong token, for a project that there is or not, and what needs no keyring at all."""
    link = await _link(scene)
    expires = parse_qs(urlsplit(link).query)["expires"][0]
    token = parse_qs(urlsplit(link).query)["token"][0]

    async def took(target: str) -> float:
        began = time.perf_counter()
        assert (await _raw(scene, target)).status == 401
        return time.perf_counter() - began

    rounds = [
        await asyncio.gather(
            took(link.replace(token, "t" * 43)),
            took(link.replace("/acme/", f"/nosuch-{number}/")),
            took(link.replace(f"={expires}", "=5")),
            took(f"{link}&token"),
        )
        for number in range(8)
    ]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    assert max(medians) < 1.3 * min(medians), medians


async def test_links_begin_with_the_public_url(elsewhere: Scene) -> None:
    """The Python client accepts a link whose path is longer than the gateway's own."""
    document = await _post(elsewhere, {})
    assert document["url"].startswith(f"{_PUBLIC_URL}{object_target('acme', _KEY)}?expires=")
    async with GatewayClient.connect(elsewhere.process.url, elsewhere.deployment.api_key) as client:
        link = await client.link("acme", _KEY)
    elsewhere.given.update(secrets_of_link("behind a proxy", link.url))
    assert link.url.startswith(f"{_PUBLIC_URL}/v1/projects/acme/")
    own = urlsplit(link.url)
    target = f"{own.path.removeprefix('/keyturn')}?{own.query}"
    assert (await _raw(elsewhere, target, "HEAD")).status == 200


async def test_plaintext_is_streamed_to_the_holder_of_a_link(scene: Scene) -> None:
    target = f"{object_target('mixed', 'bare')}/links"
    made = await scene.client.send("POST", target, body=b"{}")
    url = urlsplit(json.loads(made.body)["url"])
    scene.given.update(secrets_of_link("plaintext", url.geturl()))
    got = await _raw(scene, f"{url.path}?{url.query}")
    assert (got.status, got.body) == (200, plain(1000))
    assert got.headers["content-disposition"] == 'attachment; filename="bare"'
    named = await scene.client.send("GET", f"{object_target('mixed', 'bare')}?download=a%20b.txt")
    assert (named.status, named.body) == (200, plain(1000))
    assert named.headers["content-disposition"] == 'attachment; filename="a b.txt"'
    assert (await scene.client.request("mixed", "bare")).status == 307


async def test_the_ciphertext_is_opened_without_the_gateway(scene: Scene) -> None:
    """A presigned URL of the storage, by its clock; the reader has only the API key."""
    async with GatewayClient.connect(scene.process.url, scene.deployment.api_key) as client:
        link = await client.ciphertext_link("acme", _KEY)
        short = await client.ciphertext_link("acme", _KEY, expires_s=1)
    for number, url in enumerate((link.url, short.url)):
        scene.given.update(secrets_of_link(f"ciphertext {number}", url))
    assert 880 < link.expires_at.timestamp() - time.time() <= 901
    api_key = scene.deployment.api_key
    async with open_object(link, project="acme", object_key=_KEY, api_key=api_key) as opened:
        assert b"".join([piece async for piece in opened.chunks()]) == plain(_SIZE)
    async with aiohttp.ClientSession() as session:
        await asyncio.sleep(2.1)  # until the short link has ended
        async with session.get(link.url) as got:
            stored, _ = scene.bucket.get(object_s3_key("acme", _KEY))
            assert await got.read() == stored
        # For this object, and to read it, alone.
        async with session.get(link.url.replace("reports", "Reports")) as got:
            assert got.status == 403
        async with session.put(link.url, data=b"x") as got:
            assert got.status == 403
        async with session.get(short.url) as got:
            assert got.status == 403
    with pytest.raises(LinkExpiredError):
        async with open_object(short, project="acme", object_key=_KEY, api_key=api_key):
            raise AssertionError


@pytest.mark.parametrize(
    ("project", "key", "status", "code"),
    [
        ("acme", "missing", 404, "not_found"),
        ("acme", "deleted", 404, "not_found"),
        ("mixed", "bare", 400, "malformed_request"),
        ("acme", "bare", 502, "corrupt_object"),
    ],
)
async def test_what_has_no_ciphertext_to_link_to(
    scene: Scene, project: str, key: str, status: int, code: str
) -> None:
    scene.bucket.put("acme/deleted", b"", {"enc-algo": "deleted", "enc-dek-admin": "eA=="})
    scene.bucket.put("acme/bare", plain(10), {})
    target = f"{object_target(project, key)}/links"
    answer = await scene.client.send("POST", target, body=b'{"kind": "ciphertext"}')
    assert (answer.status, answer.code) == (status, code)


async def test_errors_of_a_read_by_link_do_not_show_the_link(scene: Scene) -> None:
    """A body that fails after its start is logged, with the key and without the link."""
    made = scene.bucket.made("acme", "harmed", plain(300 * CHUNK))
    document = await _post(scene, {}, key="harmed")
    harmed = bytearray(made.body)
    harmed[290 * (CHUNK + 16)] ^= 1
    scene.replace(made, body=bytes(harmed))
    url = urlsplit(document["url"])
    answer = await _raw(scene, f"{url.path}?{url.query}")
    assert answer.end == "reset"
    async with asyncio.timeout(10):
        while not any("response aborted" in line for line in scene.process.lines):  # noqa: ASYNC110  # no events
            await asyncio.sleep(0.05)
