"""The example's backend as a process, and what its page does in a browser."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import BrowserContext, Page, Request, Response

    from tools.harness.deployment import Deployment
    from tools.harness.process import GatewayProcess

ROOT = Path(__file__).parents[3]
PASSWORD = "the password of the demo"
TIMEOUT_MS = 20_000
"""For what a page does, on a machine that may be busy."""
_START_TIMEOUT_S = 30


@dataclass(repr=False)
class Backend:
    """A running web application."""

    url: str
    process: asyncio.subprocess.Process
    lines: list[str]


def free_port() -> str:
    """A port on which nothing listens yet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@asynccontextmanager
async def backend(env: dict[str, str], program: Path) -> AsyncIterator[Backend]:
    """Run a web application on the port of its `PORT`, by default a free one; end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": "0", **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Backend("", process, [])
    started = asyncio.Event()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            running.lines.append(line.decode().rstrip())
            if found := re.search(r"http://127\.0\.0\.1:\d+", running.lines[-1]):
                running.url = found[0]
                started.set()
        started.set()

    reading = asyncio.create_task(read())
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            await started.wait()
        assert running.url, running.lines
        yield running
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await reading


@dataclass(repr=False)
class Site:
    """The example with everything behind it."""

    deployment: Deployment
    gateway: GatewayProcess
    backend: Backend


@dataclass(repr=False)
class Visit:
    """A page in a browser, and all that the browser sent, received and complained about."""

    site: Site
    page: Page
    requests: list[Request] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of complaints that the test provokes."""

    @classmethod
    async def begin(cls, site: Site, context: BrowserContext) -> Visit:
        """Open a page that watches itself."""
        visit = cls(site, await context.new_page())
        visit.page.set_default_timeout(TIMEOUT_MS)
        context.on("request", visit._sent)
        context.on("response", visit._received)
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on(
            "console",
            lambda message: visit.complaints.append(f"{message.type}: {message.text}"),
        )
        return visit

    def _sent(self, request: Request) -> None:
        self.requests.append(request)

    def _received(self, response: Response) -> None:
        self.responses.append(response)

    async def sign_in(self, folder: str = "") -> None:
        """Open the page at a folder, such as `/reports`."""
        await self.page.goto(f"{self.site.backend.url}/#{folder}")
        await self.page.get_by_label("Name", exact=True).fill("demo")
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.listed()

    async def listed(self) -> None:
        """Wait until the list is complete."""
        await self.page.locator("#listing[aria-busy=false]").wait_for()

    async def names(self) -> list[str]:
        """The names in the list, from its top."""
        return await self.page.locator("#rows .name span").all_inner_texts()

    async def close(self) -> None:
        """Check what holds for every visit, and close the page."""
        unexpected = [
            one for one in self.complaints if not any(known in one for known in self.expected)
        ]
        assert unexpected == []
        hosts = {urlsplit(request.url).netloc for request in self.requests} - {""}
        assert hosts <= {
            urlsplit(self.site.backend.url).netloc,
            urlsplit(self.site.gateway.url).netloc,
        }
        seen = [await self.page.content()]
        for request in self.requests:
            seen += [request.url, str(await request.all_headers()), request.post_data or ""]
        for response in self.responses:
            seen.append(str(await response.all_headers()))
            if (
                response.request.resource_type not in ("media", "document")
                or response.status == 200
            ):
                seen.append(await _text(response))
        assert sum(len(one) for one in seen) > 1000
        assert [one for one in seen if self.site.deployment.api_key in one] == []
        await self.page.close()


async def _text(response: Response) -> str:
    """The body; empty where the browser has kept none, as of a download."""
    from playwright.async_api import Error  # noqa: PLC0415

    try:
        return (await response.body()).decode("latin-1")
    except Error:
        return ""
