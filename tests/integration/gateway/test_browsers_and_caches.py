"""No rotation makes a file look changed: curl, wget and a browser; and CORS as a browser sees it.

Each client has a file before its project is rotated, which copies the object onto itself and moves
the storage's own time. Afterwards each one must see that it is unchanged (SPEC 9.2).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import async_playwright
from prometheus_client.parser import text_string_to_metric_families

from keyturn.crypto import new_api_key
from keyturn.errors import UnauthorizedError
from keyturn.gateway import Client
from tests.integration.gateway.conftest import reading
from tests.integration.gateway.scene import Live, plain
from tools.harness import stored_objects
from tools.harness.http import object_target
from tools.harness.worker_under_test import run_worker
from tools.servers.chromium import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from playwright.async_api import Page

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_KEY = "reports/q3.txt"
_BODY = plain(3000)
_COPY = "q3.txt"
_FETCH = """async ([url, init, reads]) => {
    try {
        const response = await fetch(url, init);
        const headers = {};
        for (const name of reads) headers[name] = response.headers.get(name);
        return {status: response.status, headers, body: await response.text()};
    } catch (error) {
        return {status: 0, error: error.name};
    }
}"""


@dataclass(frozen=True)
class _Rotated:
    """A file as clients had it before the rotation, and the API key from then on."""

    live: Live
    folder: Path
    page: Page
    opened: Page  # a tab that shows the file itself
    url: str
    api_key: str

    async def fetch(self, init: dict[str, Any], *reads: str, url: str = "") -> Any:
        """Fetch in the page; return the status, the body, and the headers that it can read."""
        return await self.page.evaluate(_FETCH, [url or self.url, init, reads])

    def authorized(self, **headers: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}", **headers}

    async def not_modified(self) -> float:
        """How many 304 the gateway has sent."""
        async with aiohttp.ClientSession() as session:
            response = await session.get(f"{self.live.scene.process.url}/metrics")
            families = text_string_to_metric_families(await response.text())
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "keyturn_gateway_requests_total" and sample.labels["status"] == "304"
        )


async def _run(*command: str | Path) -> str:
    """Run a command; return its output, standard error included."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()


async def _curl(api_key: str, *arguments: str | Path) -> str:
    header = f"Authorization: Bearer {api_key}"
    return await _run("curl", "--silent", "--show-error", "--header", header, *arguments)


async def _wget(api_key: str, folder: Path, url: str) -> str:
    header = f"Authorization: Bearer {api_key}"
    return await _run("wget", "-N", "--no-verbose", "-S", "-P", folder, "--header", header, url)


@asynccontextmanager
async def _site() -> AsyncIterator[str]:
    """An empty page; yields its origin."""

    async def page(request: web.Request) -> web.Response:
        del request
        return web.Response(text="<!doctype html><title>app</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _page(chromium: Path, origin: str) -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        try:
            context = await browser.new_context()
            page = await context.new_page()
            await page.goto(origin)
            yield page
        finally:
            await browser.close()


async def _state(client: Client, rotation_id: str) -> str:
    try:
        state: str = (await client.rotation("acme", rotation_id))["state"]
    except UnauthorizedError:
        return "not accepted"
    return state


async def _rotate(live: Live) -> str:
    """Rotate and return the new API key; the storage's time of the object has moved then."""

    def stored() -> Any:
        return client.head_object(Bucket=deployment.bucket, Key=f"acme/{_KEY}")

    deployment, new = live.scene.deployment, new_api_key()
    client = stored_objects.s3_client(deployment)
    before = stored()["LastModified"]
    async with asyncio.timeout(10):
        while _date(stored()) < before + timedelta(seconds=2):  # noqa: ASYNC110
            await asyncio.sleep(0.2)  # its times are in whole seconds
    async with Client.connect(live.scene.process.url, deployment.api_key) as current:
        rotation_id = await current.rotate("acme", new)
        async with asyncio.timeout(60):
            while (await _state(current.with_api_key(new), rotation_id)) != "completed":  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # the gateway has no event for its callers
    assert stored()["LastModified"] > before
    return new


def _date(answer: dict[str, Any]) -> Any:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rotated(
    broker: Servers,
    ceph: S3Server,
    chromium: Path,
    tmp_path_factory: pytest.TempPathFactory,
    *,
    curl: Path,
    wget: Path,
) -> AsyncIterator[_Rotated]:
    """All clients read the file; then its project is rotated."""
    del curl, wget
    folder = tmp_path_factory.mktemp("clients")
    async with (
        _site() as origin,
        run_worker(broker, ceph, LEASE_S="1", KEYRING_CACHE_S="0.2") as served,
        reading(
            served.deployment, KEYRING_CACHE_S="0", GATEWAY_CORS_ORIGINS=f'["{origin}"]'
        ) as scene,
        _page(chromium, origin) as page,
    ):
        live, old = Live(scene, served), served.deployment.api_key
        url = scene.process.url + object_target("acme", _KEY)
        headers = {"Content-Type": "text/plain", "X-Keyturn-Meta-Author": "kim"}
        stored = await scene.client.request(
            "acme", _KEY, {**headers, "Prefer": "wait=30"}, method="PUT", body=_BODY
        )
        assert stored.status == 201
        await _curl(old, "-R", "-o", folder / "by-time", url)
        await _curl(old, "--etag-save", folder / "etag", "-o", folder / "by-etag", url)
        await _wget(old, folder, url)
        opened = await page.context.new_page()
        before = _Rotated(live, folder, page, opened, url, old)
        assert (await before.fetch({"headers": before.authorized()}))["body"] == _BODY.decode()
        await opened.set_extra_http_headers(before.authorized())
        await opened.goto(url)
        yield replace(before, api_key=await _rotate(live))


def _unchanged(path: Path) -> Callable[[], bool]:
    """Return a check that the file was not written since."""
    before = path.stat()
    return lambda: (
        path.read_bytes() == _BODY
        and ((path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino))
    )


async def test_curl_sees_an_unchanged_file_by_its_time(rotated: _Rotated) -> None:
    path = rotated.folder / "by-time"
    holds = _unchanged(path)
    status = await _curl(
        rotated.api_key, "-z", path, "-R", "-o", path, "-w", "%{http_code}", rotated.url
    )
    assert (status, holds()) == ("304", True)


async def test_curl_sees_an_unchanged_file_by_its_etag(rotated: _Rotated) -> None:
    path, etag = rotated.folder / "by-etag", rotated.folder / "etag"
    holds = _unchanged(path)
    status = await _curl(
        rotated.api_key, "--etag-compare", etag, "-o", path, "-w", "%{http_code}", rotated.url
    )
    assert (status, holds()) == ("304", True)


async def test_wget_sees_an_unchanged_file(rotated: _Rotated) -> None:
    holds = _unchanged(rotated.folder / _COPY)
    output = await _wget(rotated.api_key, rotated.folder, rotated.url)
    assert "304 Not Modified" in output
    assert holds()


async def test_a_browser_serves_an_unchanged_file_from_its_cache(rotated: _Rotated) -> None:
    """It asks with the ETag that it has, gets a 304, and the page gets the body."""
    before = await rotated.not_modified()
    got = await rotated.fetch({"headers": rotated.authorized()})
    assert (got["status"], got["body"]) == (200, _BODY.decode())
    assert await rotated.not_modified() == before + 1


async def test_a_browsers_reload_serves_an_unchanged_file_from_its_cache(rotated: _Rotated) -> None:
    before = await rotated.not_modified()
    await rotated.opened.set_extra_http_headers(rotated.authorized())
    response = await rotated.opened.reload()
    assert response is not None
    assert await response.body() == _BODY
    assert await rotated.not_modified() == before + 1


# What a page of another origin can read.


async def test_a_page_reads_every_header(rotated: _Rotated) -> None:
    reads = ("content-length", "etag", "last-modified", "accept-ranges", "x-keyturn-meta-author")
    head = await rotated.fetch({"method": "HEAD", "headers": rotated.authorized()}, *reads)
    assert head["status"] == 200
    assert all(head["headers"].values()), head
    assert head["headers"]["x-keyturn-meta-author"] == "kim"
    part = await rotated.fetch(
        {"headers": rotated.authorized(Range="bytes=5-9")}, "content-range", "content-length"
    )
    assert (part["status"], part["body"]) == (206, _BODY[5:10].decode())
    assert part["headers"] == {
        "content-range": f"bytes 5-9/{len(_BODY)}",
        "content-length": "5",
    }
    tag = {"If-None-Match": head["headers"]["etag"]}
    known = await rotated.fetch({"headers": rotated.authorized(**tag)}, "etag")
    assert (known["status"], known["headers"]["etag"]) == (304, head["headers"]["etag"])


async def test_a_page_reads_why_it_was_refused(rotated: _Rotated) -> None:
    for init, status, code in (
        ({"headers": rotated.authorized(Authorization="Bearer no")}, 401, "unauthorized"),
        ({"method": "PUT", "body": "x", "headers": rotated.authorized()}, 409, "already_exists"),
    ):
        got = await rotated.fetch(init)
        assert (got["status"], f'"code":"{code}"' in got["body"]) == (status, True)
    missing = await rotated.fetch(
        {"method": "DELETE", "headers": rotated.authorized()}, url=f"{rotated.url}/none"
    )
    assert missing["status"] == 404
    nowhere = await rotated.fetch({}, url=f"{rotated.live.scene.process.url}/no/such/path")
    assert nowhere["status"] == 404


async def test_a_page_uploads_and_deletes(rotated: _Rotated) -> None:
    url = rotated.live.scene.process.url + object_target("acme", "from/a/page")
    waiting = rotated.authorized(Prefer="wait=30")
    put = await rotated.fetch(
        {"method": "PUT", "body": "hello", "headers": waiting}, "location", url=url
    )
    assert (put["status"], put["headers"]["location"]) == (
        201,
        object_target("acme", "from/a/page"),
    )
    deleted = await rotated.fetch(
        {"method": "DELETE", "headers": waiting}, "preference-applied", url=url
    )
    assert (deleted["status"], deleted["headers"]["preference-applied"]) == (204, "wait=30")


async def test_a_page_of_another_origin_reads_nothing(rotated: _Rotated) -> None:
    page = await rotated.page.context.new_page()
    try:
        async with _site() as other:
            await page.goto(other)
            stranger = replace(rotated, page=page)
            got = await stranger.fetch({"headers": stranger.authorized()})
            assert got == {"status": 0, "error": "TypeError"}
            got = await stranger.fetch({}, url=f"{rotated.live.scene.process.url}/healthz")
            assert got == {"status": 0, "error": "TypeError"}
    finally:
        await page.close()
