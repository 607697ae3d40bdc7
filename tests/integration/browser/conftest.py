"""One deployment, one backend and one browser for the tests of the example."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio
from playwright.async_api import async_playwright, expect

from tests.integration.browser.site import (
    PASSWORD,
    ROOT,
    TIMEOUT_MS,
    Site,
    Visit,
    backend,
    free_port,
)
from tools import typescript
from tools.harness.process import gateway
from tools.harness.worker_under_test import run_worker
from tools.servers import chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

    from tools.servers import S3Server, Servers


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def site(broker: Servers, ceph: S3Server) -> AsyncIterator[Site]:
    """A worker, a gateway with the project `acme`, and the example's backend."""
    typescript.build()
    port = free_port()
    origins = f'["http://127.0.0.1:{port}"]'
    async with (
        run_worker(broker, ceph) as served,
        gateway(served.deployment.gateway_env(GATEWAY_CORS_ORIGINS=origins)) as process,
        backend(
            {
                "PORT": port,
                "KEYTURN_GATEWAY_URL": process.url,
                "KEYTURN_PROJECT": "acme",
                "KEYTURN_API_KEY": served.deployment.api_key,
                "DEMO_PASSWORD": PASSWORD,
            },
            ROOT / "examples/browser/app.py",
        ) as running,
    ):
        yield Site(served.deployment, process, running)
        assert not [line for line in running.lines if "Traceback" in line]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    expect.set_options(timeout=TIMEOUT_MS)
    async with async_playwright() as playwright:
        yield await playwright.chromium.launch(
            executable_path=chromium.path(), args=list(chromium.ARGUMENTS)
        )


@pytest_asyncio.fixture(loop_scope="package")
async def visit(site: Site, browser: Browser) -> AsyncIterator[Visit]:
    """A page of a browser without cookies; what the API key must never reach."""
    context = await browser.new_context(locale="en-US", viewport={"width": 1100, "height": 800})
    visit = await Visit.begin(site, context)
    yield visit
    await visit.close()
    await context.close()
