"""One deployment that has lived a little, one console and one browser for the console's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tools.harness.console_browser import launched, signed_in, visiting
from tools.harness.console_site import OPERATOR, VIEWER, console_site

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest
    from playwright.async_api import Browser, StorageState

    from tools.harness.console_browser import ConsoleVisit
    from tools.harness.console_site import ConsoleSite
    from tools.servers import S3Server, Servers


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def site(
    broker: Servers, ceph: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ConsoleSite]:
    """Workers and a console that began after all of the history."""
    async with console_site(broker, ceph, tmp_path_factory.mktemp("console")) as running:
        yield running
        assert not [line for line in running.console.lines if "Traceback" in line]


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    async with launched() as running:
        yield running


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def operator_state(site: ConsoleSite, browser: Browser) -> StorageState:
    """The cookies of a person who may operate."""
    return await signed_in(browser, site.url, OPERATOR)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def viewer_state(site: ConsoleSite, browser: Browser) -> StorageState:
    """The cookies of a person who may only look."""
    return await signed_in(browser, site.url, VIEWER)


@pytest_asyncio.fixture(loop_scope="package")
async def operator(
    site: ConsoleSite, browser: Browser, operator_state: StorageState
) -> AsyncIterator[ConsoleVisit]:
    """A visit of a person who may operate."""
    async with visiting(browser, site.url, storage_state=operator_state) as visit:
        yield visit


@pytest_asyncio.fixture(loop_scope="package")
async def viewer(
    site: ConsoleSite, browser: Browser, viewer_state: StorageState
) -> AsyncIterator[ConsoleVisit]:
    """A visit of a person who may only look."""
    async with visiting(browser, site.url, storage_state=viewer_state) as visit:
        yield visit
