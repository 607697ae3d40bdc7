"""Clients as people have them: curl, aiohttp, and a browser's own media player (SPEC 9.2)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import wave
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.integration.gateway.scene import plain
from tools.harness.http import object_target
from tools.servers.chromium import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.gateway.scene import Scene

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_FILM = plain(20 * 1024 * 1024)
_SECONDS = 120
_RATE = 44_100


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def _objects(scene: Scene) -> None:
    scene.put("film", _FILM, ContentType="video/mp4")
    scene.put("sound.wav", _wav(), ContentType="audio/wav")


def _wav() -> bytes:
    """Two minutes of a saw, 10 MB: more than a browser takes in advance."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        file.writeframes(b"".join(n.to_bytes(2, "little") for n in range(_RATE)) * _SECONDS)
    return out.getvalue()


async def _curl(scene: Scene, *arguments: str, key: str = "film") -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        "curl",
        "--silent",
        "--show-error",
        "--header",
        f"Authorization: Bearer {scene.deployment.api_key}",
        *arguments,
        scene.process.url + object_target("acme", key),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out


@pytest.mark.usefixtures("curl")
async def test_curl(scene: Scene) -> None:
    assert await _curl(scene) == (0, _FILM)
    assert await _curl(scene, "--range", "1000000-1000009") == (0, _FILM[1000000:1000010])
    status, head = await _curl(scene, "--head")
    assert status == 0
    assert f"content-length: {len(_FILM)}".encode() in head.lower()


@pytest.mark.usefixtures("curl")
async def test_curl_goes_on_where_it_was(scene: Scene, tmp_path: Path) -> None:
    """`curl -C -` requests the rest of an interrupted download."""
    target = tmp_path / "film"
    target.write_bytes(_FILM[:7_654_321])
    assert await _curl(scene, "--continue-at", "-", "--output", str(target)) == (0, b"")
    assert target.read_bytes() == _FILM


@pytest.mark.usefixtures("curl")
async def test_curl_notices_a_truncated_body(scene: Scene) -> None:
    """Its exit status says that the body is not whole: 18, or 56 where it was reset."""
    made = scene.bucket.made("acme", "cut", _FILM)
    scene.replace(made, body=made.body[:-1] + bytes([made.body[-1] ^ 1]))
    status, got = await _curl(scene, key="cut")
    assert status in (18, 56)
    assert len(got) < len(_FILM)
    assert _FILM.startswith(got)


@pytest.mark.usefixtures("curl")
async def test_curl_is_refused_before_it_sends_a_body(scene: Scene, tmp_path: Path) -> None:
    """A refusal reaches a client that has a large body to send."""
    body = tmp_path / "body"
    body.write_bytes(_FILM)
    arguments = ("--upload-file", str(body), "--header", "Authorization: Bearer wrong")
    status, output = await _curl(scene, *arguments, "--write-out", "%{http_code}")
    assert (status, output[-3:]) == (0, b"401")


async def test_aiohttp_on_one_connection(scene: Scene) -> None:
    """Many requests, good and bad ones, whole and in part, on a connection that is kept."""
    headers = {"Authorization": f"Bearer {scene.deployment.api_key}"}
    url = scene.process.url + object_target("acme", "film")
    one = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(headers=headers, connector=one) as session:
        for number in range(30):
            part = {"Range": f"bytes={number * 1000}-{number * 1000 + 99}"}
            async with session.get(url, headers=part) as answer:
                assert await answer.read() == _FILM[number * 1000 : number * 1000 + 100]
            async with session.get(url + "x") as answer:
                assert answer.status == 404
            async with session.head(url) as answer:
                assert answer.headers["content-length"] == str(len(_FILM))
        async with session.get(url) as answer:
            assert await answer.read() == _FILM


_PAGE = """<!doctype html><title>player</title><video id=v src=/media></video><pre id=report></pre>
<script>
const v = document.getElementById("v"), report = {};
const done = () => fetch("/report", {method: "POST", body: JSON.stringify(report)});
v.muted = true;
v.onerror = () => { report.error = v.error.code; done(); };
v.onloadedmetadata = () => {
  report.duration = v.duration;
  v.play().then(
    () => { report.played = true; v.currentTime = 110; },
    e => { report.error = "" + e; done(); });
};
v.onseeked = () => { report.at = v.currentTime; };
v.ontimeupdate = () => {
  if (report.at && v.currentTime > 110.2) { report.on = v.currentTime; done(); v.pause(); }
};
</script>"""


class _Site:
    """A platform's backend: its page, and media by way of the gateway, whose key it holds."""

    def __init__(self, scene: Scene, session: aiohttp.ClientSession) -> None:
        self._scene = scene
        self._session = session
        self.ranges: list[tuple[str | None, int]] = []
        self.report: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text=_PAGE, content_type="text/html")

    async def receive_report(self, request: web.Request) -> web.Response:
        if not self.report.done():
            self.report.set_result(json.loads(await request.text()))
        return web.Response()

    async def media(self, request: web.Request) -> web.StreamResponse:
        passed = ("Range", "If-Range", "If-None-Match", "If-Modified-Since")
        forwarded = {name: request.headers[name] for name in passed if name in request.headers}
        forwarded["Authorization"] = f"Bearer {self._scene.deployment.api_key}"
        url = self._scene.process.url + object_target("acme", "sound.wav")
        async with self._session.get(url, headers=forwarded) as behind:
            self.ranges.append((request.headers.get("Range"), behind.status))
            answer = web.StreamResponse(status=behind.status)
            for name in (
                "Content-Type",
                "Content-Length",
                "Content-Range",
                "ETag",
                "Accept-Ranges",
            ):
                if name in behind.headers:
                    answer.headers[name] = behind.headers[name]
            await answer.prepare(request)
            with contextlib.suppress(ConnectionError):  # a player that has enough goes
                async for piece in behind.content.iter_chunked(65536):
                    await answer.write(piece)
            return answer


@contextlib.asynccontextmanager
async def _site(scene: Scene) -> AsyncIterator[tuple[_Site, str]]:
    async with aiohttp.ClientSession() as session:
        site = _Site(scene, session)
        app = web.Application()
        app.router.add_get("/", site.page)
        app.router.add_get("/media", site.media)
        app.router.add_post("/report", site.receive_report)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            listening = web.TCPSite(runner, "127.0.0.1", 0)
            await listening.start()
            yield site, f"http://127.0.0.1:{runner.addresses[0][1]}/"
        finally:
            await runner.cleanup()


async def test_a_browser_plays_and_seeks(scene: Scene, chromium: Path, tmp_path: Path) -> None:
    """Its media element reads the length, plays, seeks by a range, and plays on from there."""
    async with _site(scene) as (site, url):
        browser = await asyncio.create_subprocess_exec(
            chromium,
            *ARGUMENTS,
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={tmp_path}",
            url,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            report = await asyncio.wait_for(site.report, 60)
        finally:
            browser.terminate()
            await browser.wait()
    assert (report["duration"], report["played"]) == (_SECONDS, True)
    assert report["at"] == pytest.approx(110, abs=0.1)
    sought = [spec for spec, status in site.ranges if status == 206 and spec is not None]
    begins = [int(spec.removeprefix("bytes=").split("-")[0]) for spec in sought]
    assert begins[0] == 0
    assert max(begins) > 100 * _RATE * 2  # not read up to there
