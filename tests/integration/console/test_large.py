"""The console of a large deployment (SPEC 16).

With `KEYTURN_TEST_LARGE=1` it has 10,000 projects and 100,000 dead letters, which takes minutes.
Otherwise it has a tenth of them, so that the suite stays within its time.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import aio_pika
import pytest
from playwright.async_api import expect

from tools.harness import console_letters, console_projects
from tools.harness.console_browser import visiting
from tools.harness.console_site import OPERATOR, console_site

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, Page

    from tools.harness.console_site import ConsoleSite
    from tools.servers import S3Server, Servers

_IS_FULL: Final = os.environ.get("KEYTURN_TEST_LARGE") == "1"

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.timeout(3600 if _IS_FULL else 400),
    pytest.mark.asyncio(loop_scope="package"),
]

_PROJECTS: Final = 10_000 if _IS_FULL else 1_000
_LETTERS: Final = 10 * _PROJECTS
_COMPLETE_MS: Final = 120_000
# Of the whole page as a person sees it, on a machine that does other things too.
_SHOWN_S: Final = 3.0


async def _open(page: Page, url: str) -> None:
    began = time.monotonic()
    await page.goto(url)
    assert time.monotonic() - began < _SHOWN_S, url


async def _furnish(site: ConsoleSite) -> None:
    await console_projects.put_keyrings(site.deployment, console_projects.names(_PROJECTS))
    async with await aio_pika.connect(site.deployment.amqp_url) as connection:
        letters = console_letters.refused_uploads(site.deployment, _LETTERS)
        await console_letters.publish(await connection.channel(), letters)


async def test_all_of_it_can_be_found_filtered_and_paged_through(
    broker: Servers, ceph: S3Server, browser: Browser, tmp_path: Path
) -> None:
    async with (
        console_site(broker, ceph, tmp_path, lives=False, furnish=_furnish) as site,
        visiting(browser, site.url) as visit,
    ):
        page = visit.page
        await visit.sign_in(OPERATOR, "/projects")
        counts = page.locator(".pager .counts").first
        await expect(counts).to_contain_text(f"{_PROJECTS:,} projects", timeout=_COMPLETE_MS)
        assert await page.locator("#projects tbody tr").count() == 100
        found = [name for name in console_projects.names(_PROJECTS) if "harbor-00" in name]
        await _open(page, f"{site.url}/projects?text=harbor-00")
        await expect(page.locator("#projects tbody tr")).to_have_count(min(100, len(found)))
        await _open(page, f"{site.url}/projects?page={_PROJECTS // 100}")
        await expect(counts).to_contain_text(
            f"{_PROJECTS - 99:,} to {_PROJECTS:,} of {_PROJECTS:,}"
        )
        await _open(page, f"{site.url}/dead")
        await expect(page.locator("main")).to_contain_text(f"{_LETTERS:,}", timeout=_COMPLETE_MS)
        await expect(page.locator("main")).to_contain_text("The oldest 1,000 are shown")
        await _open(page, f"{site.url}/")
        assert await visit.findings() == []
