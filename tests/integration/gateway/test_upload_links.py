"""Upload links over HTTP, with a broker and a worker behind: any client, no API key (SPEC 9.3).

The gateway's log, at level debug, is searched for every link at the module's end.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest

from keyturn.crypto import new_api_key
from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    TooManyRequestsError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
)
from keyturn.gateway import Client, UploadLink, upload_to
from tests.integration.gateway.scene import plain
from tools.harness import stored_objects
from tools.harness.canaries import secrets_of_link
from tools.harness.http import exchange, object_target, request
from tools.harness.process import gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.gateway.scene import Live
    from tools.harness.http import Response

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_MIB = 1024 * 1024
WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"LOG_LEVEL": "debug", "KEYRING_CACHE_S": "60"}
_WAIT = {"Prefer": "wait=30"}


async def _link(
    live: Live, key: str, *, project: str = "acme", api_key: str | None = None, **asked: Any
) -> UploadLink:
    url = live.scene.process.url
    async with Client.connect(url, api_key or live.scene.deployment.api_key) as client:
        link = await client.upload_link(project, key, **{"max_bytes": 100_000, **asked})
    live.scene.given.update(secrets_of_link(f"link {len(live.scene.given)}", link.url))
    return link


def _target(link: UploadLink) -> str:
    url = urlsplit(link.url)
    return f"{url.path}?{url.query}"


async def _raw(
    live: Live,
    target: str,
    headers: dict[str, str] | None = None,
    *,
    method: str = "PUT",
    body: bytes = b"x",
) -> Response:
    """Send bytes as they are, without an API key."""
    sent = {"Content-Length": str(len(body)), **(headers or {})}
    raw = request(method, target, sent, body)
    process = live.scene.process
    return await exchange(process.host, process.port, raw, head_only=method == "HEAD")


class _Slow:
    """A body whose last piece comes when `goes_on` is set; `begun` once the gateway asked for it.

    The client sends a body only after `100 Continue`.
    """

    def __init__(self, *pieces: bytes) -> None:
        self.begun, self.goes_on = asyncio.Event(), asyncio.Event()
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun.set()
        *pieces, last = self._pieces
        for piece in pieces:
            yield piece
        await self.goes_on.wait()
        yield last


async def _read(live: Live, key: str) -> tuple[bytes, str | None]:
    async with (
        Client.connect(live.scene.process.url, live.scene.deployment.api_key) as client,
        client.open("acme", key) as opened,
    ):
        return await opened.read(), opened.content_type


async def test_any_client_stores_one_body_by_it(live: Live, tmp_path: Path, curl: Path) -> None:
    """curl, which knows no Keyturn, and the Python client; each link once."""
    body = plain(100_000)
    (tmp_path / "body").write_bytes(body)
    link = await _link(live, "inbox/é & b.pdf", content_type="application/pdf")
    command = [str(curl), "-sS", "-T", str(tmp_path / "body"), "-H", "Prefer: wait=30"]
    for expected in ("201", "409"):
        process = await asyncio.create_subprocess_exec(
            *command, "-w", "%{http_code}", "-o", "/dev/null", link.url,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert output.decode() == expected
    assert await _read(live, "inbox/é & b.pdf") == (body, "application/pdf")
    with pytest.raises(AlreadyExistsError):
        await upload_to(link, b"another")


async def test_a_large_body_is_staged_like_any_other(live: Live) -> None:
    body = plain(20 * _MIB)
    link = await _link(live, "inbox/large", max_bytes=20 * _MIB)
    assert (await upload_to(link, body, content_type="text/x")).stored
    assert await _read(live, "inbox/large") == (body, "text/x")


@pytest.mark.parametrize("chunked", [False, True])
async def test_more_bytes_than_allowed_leave_nothing(live: Live, *, chunked: bool) -> None:
    """Counted while they come, if their number is not stated; the link is as good as before."""
    key = f"bounded/{chunked}"
    link = await _link(live, key, max_bytes=9 * _MIB)
    body = plain(9 * _MIB)

    async def pieces() -> AsyncIterator[bytes]:
        yield body
        yield b"!"

    with pytest.raises(BodyTooLargeError, match=f"at most {9 * _MIB} bytes"):
        await upload_to(link, pieces() if chunked else body + b"!")
    assert stored_objects.list_multipart_uploads(live.scene.deployment) == []
    assert (await upload_to(link, body)).stored
    assert (await _read(live, key))[0] == body


async def test_another_type_or_metadata_is_refused_before_the_body(live: Live) -> None:
    link = await _link(live, "typed", content_type="image/png")
    with pytest.raises(UnsupportedMediaTypeError, match="image/png"):
        await upload_to(link, b"x", content_type="text/html")
    refused = await _raw(live, _target(link), {"X-Keyturn-Meta-Author": "kim"})
    assert (refused.status, refused.code) == (400, "malformed_request")
    assert (await upload_to(link, b"x", content_type="IMAGE/png")).stored
    assert await _read(live, "typed") == (b"x", "image/png")


async def test_of_many_uploads_by_one_link_one_is_stored(live: Live) -> None:
    link = await _link(live, "raced")
    bodies = [plain(50_000, seed) for seed in range(12)]

    async def outcome(body: bytes) -> bytes | str:
        try:
            return body if (await upload_to(link, body)).stored else "pending"
        except (TooManyRequestsError, AlreadyExistsError) as exc:
            return exc.code

    ends = await asyncio.gather(*map(outcome, bodies))
    (stored,) = [end for end in ends if isinstance(end, bytes)]
    assert (await _read(live, "raced"))[0] == stored
    assert Counter(ends)["too_many_requests"] >= 1


async def test_a_second_upload_is_refused_while_one_is_received(live: Live) -> None:
    link, other = await _link(live, "slow"), await _link(live, "slow", max_bytes=99_999)
    body, others = _Slow(b"first", b" body"), _Slow(b"other", b" body")
    first = asyncio.create_task(upload_to(link, body))
    await body.begun.wait()
    with pytest.raises(TooManyRequestsError, match="this link"):
        await upload_to(link, b"second")
    # Only this link: another one to the same key is as free as an API key is.
    canceled = asyncio.create_task(upload_to(other, others))
    await others.begun.wait()
    canceled.cancel()
    body.goes_on.set()
    assert (await first).stored
    assert (await _read(live, "slow"))[0] == b"first body"


async def test_two_gateways_store_one_of_two_bodies(live: Live) -> None:
    """Each checks the link by the keyring alone, and the workers refuse the second."""
    deployment = live.scene.deployment
    async with gateway(deployment.gateway_env(LOG_LEVEL="debug")) as other:
        link = await _link(live, "two gateways")
        elsewhere = link.url.replace(live.scene.process.url, other.url)

        async def outcome(url: str) -> str:
            try:
                return "stored" if (await upload_to(url, url.encode()[:20])).stored else "pending"
            except CodedError as exc:
                return exc.code

        ends = await asyncio.gather(outcome(link.url), outcome(elsewhere))
        assert sorted(ends) == ["already_exists", "stored"]
        token = secrets_of_link("", link.url)
        assert not [line for line in other.lines if next(iter(token.values())).decode() in line]


async def test_the_refusal_is_that_of_a_wrong_key(live: Live) -> None:
    """Byte for byte, and with its minimum time, whatever is wrong with the link."""
    wrong_key = {"Authorization": "Bearer kt_" + "s" * 40}
    expected = await _raw(live, object_target("acme", "k"), wrong_key)
    link = _target(await _link(live, "k", content_type="text/plain"))
    short = _target(await _link(live, "k", expires_s=1))
    await live.served.enroll("another")
    reads = await _reading_link(live, "k")
    token = parse_qs(urlsplit(link).query)["token"][0]
    hostile = [
        link.replace(token, "t" * 43),
        link.replace("/objects/k?", "/objects/K?"),
        link.replace("/objects/k?", "/objects/%256b?"),
        link.replace("/objects/k?", "/objects/k%00?"),
        link.replace("/acme/", "/another/"),
        link.replace("/acme/", "/nosuch/"),
        link.replace("max_bytes=100000", "max_bytes=1000000"),
        link.replace("max_bytes=100000", "max_bytes=0100000"),
        link.replace("text%2Fplain", "text%2FPlain"),
        link.replace("text%2Fplain", "text%2Fplain%3Bcharset=utf-8"),
        link.replace("content_type=text%2Fplain&", ""),
        f"{link}&max_bytes=100000",
        f"{link}&content_type=text%2Fplain",
        f"{link}&token={token}",
        f"{link}%3D",
        reads,
        reads.replace("&token", "&max_bytes=100000&token"),
    ]
    await asyncio.sleep(2.1)  # until the short link has ended
    began = time.perf_counter()
    for target in (*hostile, short):
        refused = await _raw(live, target)
        assert (refused.status, refused.body) == (401, expected.body), target
        assert [name for name, _ in refused.fields] == [name for name, _ in expected.fields]
    assert time.perf_counter() - began > 0.1 * (len(hostile) + 1)
    for method in ("GET", "HEAD", "DELETE", "POST"):
        assert (await _raw(live, link, method=method, body=b"")).status in (401, 405)
    made_by_a_link = link.replace("/objects/k?", "/objects/k/links?")
    assert (await _raw(live, made_by_a_link, method="POST", body=b"{}")).status == 401
    assert not live.scene.bucket.keys("acme/k")
    assert (await _raw(live, link, _WAIT)).status == 201


async def _reading_link(live: Live, key: str) -> str:
    url = live.scene.process.url
    async with Client.connect(url, live.scene.deployment.api_key) as client:
        link = await client.link("acme", key)
    live.scene.given.update(secrets_of_link("a link that reads", link.url))
    parts = urlsplit(link.url)
    return f"{parts.path}?{parts.query}"


async def test_refusals_take_equally_long(live: Live) -> None:
    """A wrong token, for a project that there is or not, what needs no keyring, a wrong key."""
    link = _target(await _link(live, "timed"))
    token = parse_qs(urlsplit(link).query)["token"][0]
    wrong_key = {"Authorization": "Bearer kt_" + "s" * 40}

    async def took(target: str, headers: dict[str, str] | None = None) -> float:
        began = time.perf_counter()
        assert (await _raw(live, target, headers)).status == 401
        return time.perf_counter() - began

    rounds = [
        await asyncio.gather(
            took(link.replace(token, "t" * 43)),
            took(link.replace("/acme/", f"/nosuch-{number}/")),
            took(link.replace("max_bytes=", "max_bytes=0")),
            took(object_target("acme", "timed"), wrong_key),
        )
        for number in range(8)
    ]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    assert max(medians) < 1.3 * min(medians), medians


async def test_a_rotation_ends_it_but_not_an_upload_that_has_begun(live: Live) -> None:
    """Whatever the expiry, and although keyrings are cached for a minute here."""
    await live.served.enroll("turned")
    old_key, new_key = live.scene.deployment.api_key, new_api_key()
    unused = await _link(live, "unused", project="turned", expires_s=604_800)
    begun = await _link(live, "begun", project="turned")
    body = plain(80_000)
    sent = _Slow(body[:1000], body[1000:])
    slow = asyncio.create_task(upload_to(begun, sent))
    await sent.begun.wait()
    async with Client.connect(live.scene.process.url, old_key) as client:
        rotation_id = await client.rotate("turned", new_key)
    await live.served.wire.outcome(rotation_id)
    await asyncio.sleep(2.1)  # what a keyring that decides about a link may be old
    with pytest.raises(UnauthorizedError):
        await upload_to(unused, b"too late")
    sent.goes_on.set()
    assert (await slow).stored
    fresh = await _link(live, "unused", project="turned", api_key=new_key)
    assert (await upload_to(fresh, b"in time")).stored
    async with Client.connect(live.scene.process.url, new_key) as client:
        for key, expected in (("begun", body), ("unused", b"in time")):
            async with client.open("turned", key) as opened:
                assert await opened.read() == expected


async def test_pages_of_other_origins_need_no_more_than_the_link(live: Live) -> None:
    """Without a setting, no page may; the preflight itself needs neither a key nor a link."""
    link = await _link(live, "preflight")
    headers = {
        "Origin": "https://app.example.com",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type,prefer",
    }
    async with (
        aiohttp.ClientSession() as session,
        session.options(link.url, headers=headers) as got,
    ):
        assert got.status == 204
        assert "Access-Control-Allow-Origin" not in got.headers
    allowing = live.scene.deployment.gateway_env(GATEWAY_CORS_ORIGINS='["https://app.example.com"]')
    async with gateway(allowing) as other, aiohttp.ClientSession() as session:
        url = link.url.replace(live.scene.process.url, other.url)
        async with session.options(url, headers=headers) as got:
            assert got.status == 200
            assert got.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
            assert "PUT" in got.headers["Access-Control-Allow-Methods"]
            assert got.headers["Access-Control-Allow-Headers"] == "content-type,prefer"
        sent = {"Origin": "https://app.example.com", **_WAIT}
        async with session.put(url, data=b"x", headers=sent) as got:
            assert got.status == 201
            assert got.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
