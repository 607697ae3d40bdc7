"""The console without its broker: it says so, and shows what it knows (SPEC 16)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from tools.chaos.operator import OperatorRequest
from tools.chaos.run import misreported
from tools.harness import requests as rq
from tools.harness.console import console_user
from tools.harness.console_browser import visiting
from tools.harness.console_client import console_client
from tools.harness.console_site import VIEWER
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.async_api import Browser, StorageState

    from tools.harness.console_browser import ConsoleVisit
    from tools.harness.console_client import ConsoleClient
    from tools.harness.console_site import ConsoleSite
    from tools.servers import Servers

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]

NAV: Final = ("/", "/projects", "/sweeps", "/keys", "/dead", "/queues", "/audit")
_SOON_S: Final = 5.0
_BACK_S: Final = 30.0
_PAUSE_S: Final = 0.2
_AWAY: Final = "No response"


async def test_a_broker_that_goes_is_reported_on_a_page_that_is_open(
    operator: ConsoleVisit, site: ConsoleSite
) -> None:
    """Pages keep what they know, with the time of it, and are complete again when it is back."""
    page = operator.page
    await operator.goto("/projects")
    await expect(page.get_by_role("link", name="globex")).to_be_visible()
    site.broker.stop()
    try:
        await expect(page.locator("#state")).to_have_text(_AWAY, timeout=30_000)
        for path in NAV:
            assert await operator.goto(path) == 200
            await expect(page.locator("#state")).to_have_text(_AWAY)
            await expect(page.get_by_text("No response since")).to_have_count(1)
        assert await operator.findings() == []
        await operator.goto("/projects")
        await expect(page.get_by_role("link", name="globex")).to_be_visible()
    finally:
        site.broker.resume()
    await expect(page.locator("#state")).to_have_text("Control workers respond", timeout=60_000)


async def test_a_console_that_starts_without_its_broker_serves_and_says_so(
    site: ConsoleSite, browser: Browser, operator_state: StorageState
) -> None:
    nowhere = f"amqp://console:secret@127.0.0.1:{free_port()}/"
    async with (
        site.another_console(nowhere) as running,
        visiting(browser, running.url, storage_state=operator_state) as visit,
    ):
        for path in NAV:
            assert await visit.goto(path) == 200
            await expect(visit.page.locator("#state")).to_have_text(_AWAY)
        assert "secret" not in "\n".join(running.lines)


async def _until(client: ConsoleClient, holds: Callable[[str], bool], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            if holds((await client.get("/")).text):
                return
            await asyncio.sleep(_PAUSE_S)


async def test_a_refused_password_is_shown_as_the_reason_until_it_is_right(
    site: ConsoleSite, broker: Servers
) -> None:
    """Within seconds, on every page and in the log, neither of which shows the password."""
    if broker.rabbitmq is None:
        pytest.skip("needs to change a password on the broker")
    parts = urlsplit(console_user(broker.rabbitmq, site.deployment.amqp_url))
    password = "canary-password"
    wrong = parts._replace(netloc=f"{parts.username}:{password}@127.0.0.1:{parts.port}").geturl()
    reason = "it refuses the user name or password in KEYTURN_AMQP_URL"
    async with (
        site.another_console(wrong) as running,
        console_client(running.url, VIEWER) as client,
    ):
        await _until(client, lambda text: reason in text, _SOON_S)
        for path in NAV:
            page = (await client.get(path)).text
            assert "No response since" in page
            assert f"The broker cannot be reached ({reason})" in page
            assert password not in page
        assert any("do not respond" in line and reason in line for line in running.lines)
        assert password not in "\n".join(running.lines)
        broker.rabbitmq.control("change_password", str(parts.username), password)
        await _until(client, lambda text: "No response since" not in text, _BACK_S)


async def test_an_end_that_a_console_does_not_show_is_found_after_chaos(site: ConsoleSite) -> None:
    """The check of `make chaos`: it accepts what is shown, and nothing else."""
    assert site.history is not None
    ids = (site.history.failed_sweep_id, rq.new_id())
    requests = [OperatorRequest(each, "sweep.completed", "globex") for each in ids]
    found = await misreported(site.url, VIEWER, requests, timeout_s=1)
    assert found == [f"/sweeps/globex/{ids[1]} is not shown as ended"]
