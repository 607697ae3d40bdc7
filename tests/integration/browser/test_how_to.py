"""The steps of docs/howto/web-application.md, run as they are written."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from keyturn.gateway import Client
from tests.integration.browser.clip import SECONDS, video
from tests.integration.browser.site import PASSWORD, ROOT, free_port
from tests.support.documents import code_blocks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, ConsoleMessage

    from tests.integration.browser.site import Site

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="package")]

_PAGE = (ROOT / "docs/howto/web-application.md").read_text()
_PORT = "8000"


def _program(folder: Path, env: dict[str, str], script: str) -> list[str]:
    """The arguments of a shell that runs a block in a folder."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = [f"{name}={value}" for name, value in {**env, "PATH": path}.items()]
    return ["env", "-i", "-C", str(folder), *settings, "bash", "-euc", script]


@asynccontextmanager
async def _running(command: list[str], ready: str) -> AsyncIterator[None]:
    """Run a program, wait until it prints a text, and end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        async with asyncio.timeout(30):
            while not lines or ready not in lines[-1]:
                lines.append((await process.stdout.readline()).decode())
                assert lines[-1], lines
        yield
    finally:
        process.terminate()
        await process.communicate()


@pytest.mark.usefixtures("curl")
async def test_the_steps(site: Site, browser: Browser, tmp_path: Path) -> None:
    port = free_port()
    (program,) = code_blocks(_PAGE, "python")
    start, use, make_link = (block.replace(_PORT, port) for block in code_blocks(_PAGE, "sh"))
    (tmp_path / "web_app.py").write_text(program)
    (tmp_path / "film.mp4").write_bytes(video(1024))
    env = {
        "KEYTURN_GATEWAY_URL": site.gateway.url,
        "KEYTURN_API_KEY": site.deployment.api_key,
    }
    async with _running(_program(tmp_path, env, f"exec {start}"), "Uvicorn running"):
        used = await asyncio.create_subprocess_exec(
            *_program(tmp_path, {}, use), stderr=asyncio.subprocess.PIPE
        )
        _, printed = await used.communicate()
        assert used.returncode == 0, printed
        assert (tmp_path / "copy.mp4").read_bytes() == video(1024)

        found = re.search(r"open `(http\S+)` in a browser", _PAGE)
        assert found is not None
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(found[1].replace(_PORT, port))
        player = page.locator("video")
        await player.evaluate("v => { v.muted = true; return v.play(); }")
        assert await player.evaluate("v => v.duration") == pytest.approx(SECONDS, abs=0.5)
        (tmp_path / "acme.header").write_text(f"Authorization: Bearer {env['KEYTURN_API_KEY']}")
        made = await asyncio.create_subprocess_exec(
            *_program(tmp_path, env, make_link), stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await made.communicate()
        for status in (201, 409):
            sent = await context.request.put(
                json.loads(printed)["url"],
                data="the plan",
                headers={"Content-Type": "text/plain", "Prefer": "wait=30"},
            )
            assert sent.status == status
        # A file that the program does not give to its users, and a name that is taken.
        for method, path, status in (
            ("GET", "download/private/film.mp4", 404),
            ("PUT", "upload/private/film.mp4", 404),
            ("PUT", "upload/public/film.mp4", 409),
        ):
            url = f"http://127.0.0.1:{port}/{path}"
            answer = await context.request.fetch(url, method=method, data="text")
            assert (answer.status, path) == (status, path)
        await context.close()


async def test_the_client_in_the_page(site: Site, browser: Browser) -> None:
    """The block of JavaScript, as a module of a page of the example's backend."""
    (script,) = code_blocks(_PAGE, "js")
    context = await browser.new_context()
    base = site.backend.url
    signed_in = await context.request.post(
        f"{base}/session",
        headers={"Origin": base},
        data={"name": "demo", "password": PASSWORD},
    )
    assert signed_in.ok
    async with Client.connect(site.gateway.url, site.deployment.api_key) as client:
        for key in ("reports/film.mp4", "reports/2026/q3.txt"):
            await client.upload("acme", key, b"content")
    page = await context.new_page()
    printed: list[str] = []

    def note(message: ConsoleMessage) -> None:
        printed.append(message.text)

    page.on("console", note)
    await page.route(
        "**/static/page.js",
        lambda route: route.fulfill(
            content_type="text/javascript", body=f"{script}\ndocument.title = url;"
        ),
    )
    await page.goto(base)
    await expect(page).to_have_title(re.compile(r"^http.*/film\.mp4\?expires=\d+&inline=1&token="))
    listed = " ".join(printed)
    assert "reports/2026/" in listed
    assert "reports/film.mp4" in listed
    await context.close()
