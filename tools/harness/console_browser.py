"""The console in a browser: sign in, follow what the browser does, and the rules of WCAG 2.2 AA.

A visit fails at its end if the browser asked any other host for anything, logged an error, such as
a refusal by the content security policy, or ran anything that the pages only show.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from playwright.async_api import async_playwright, expect

from tools.servers import chromium

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Dialog,
        Page,
        Request,
        StorageState,
    )

    from tools.harness.console import Account

DESKTOP: Final = {"width": 1280, "height": 900}
NARROW: Final = {"width": 390, "height": 844}
_TIMEOUT_MS: Final = 20_000
_RULES: Final = {
    "runOnly": {
        "type": "tag",
        "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    },
    "resultTypes": ["violations"],
}


@dataclass(repr=False)
class ConsoleVisit:
    """A page of the console in a browser of its own, and all that the browser complained about."""

    url: str
    page: Page
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of complaints that the test provokes."""
    dialogs: list[str] = field(default_factory=list)

    @classmethod
    async def begin(cls, url: str, context: BrowserContext) -> ConsoleVisit:
        """Open a page that watches itself."""
        visit = cls(url, await context.new_page())
        visit.page.set_default_timeout(_TIMEOUT_MS)
        context.on("request", visit._note)
        visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        visit.page.on("console", visit._log)
        visit.page.on("dialog", visit._dismiss)
        return visit

    def _note(self, request: Request) -> None:
        # A bound method: Playwright sets an attribute on its handlers, which builtins refuse.
        self.requests.append(request)

    def _log(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    async def _dismiss(self, dialog: Dialog) -> None:
        self.dialogs.append(dialog.message)
        await dialog.dismiss()

    async def goto(self, path: str) -> int:
        """Open a page of the console; returns the status."""
        response = await self.page.goto(f"{self.url}{path}")
        assert response is not None
        return response.status

    async def sign_in(self, account: Account, path: str = "/") -> None:
        """Sign in with a password, and open a page."""
        await self.goto("/sign-in")
        await self.page.get_by_label("Name").fill(account.name)
        await self.page.get_by_label("Password").fill(account.password)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.page.get_by_role("navigation").first.wait_for()
        if path != "/":
            await self.goto(path)

    async def findings(self, rule: str = "") -> list[str]:
        """What axe objects to on the page as it is now: rule, element, and why.

        Args:
            rule: The only rule to check; otherwise all of WCAG 2.2 AA and of good practice.
        """
        # The policy lets no page load the script, so the debugger's protocol runs it.
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(_axe())
        rules = {"runOnly": [rule]} if rule else _RULES
        results: dict[str, Any] = await self.page.evaluate("rules => axe.run(rules)", rules)
        return [
            f"{violation['id']}: {node['target']} {node['failureSummary']}"
            for violation in results["violations"]
            for node in violation["nodes"]
        ]

    async def overflow_px(self) -> int:
        """By how much the page is wider than its window: then it scrolls sideways."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(await self.page.evaluate(script))

    async def check(self) -> None:
        """Check what holds for every visit."""
        unexpected = [
            each for each in self.complaints if not any(known in each for known in self.expected)
        ]
        assert unexpected == [], unexpected
        assert self.dialogs == []
        hosts = {urlsplit(request.url).netloc for request in self.requests} - {""}
        assert hosts <= {urlsplit(self.url).netloc}
        assert await self.page.evaluate("window.pwned") is None


@cache
def _axe() -> str:
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    expect.set_options(timeout=_TIMEOUT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium.path(), args=list(chromium.ARGUMENTS)
        )
        yield browser
        await browser.close()


async def signed_in(browser: Browser, url: str, account: Account) -> StorageState:
    """Sign in, and return the cookies for other visits: sign-ins are limited for each name."""
    context = await browser.new_context()
    visit = await ConsoleVisit.begin(url, context)
    await visit.sign_in(account)
    state = await context.storage_state()
    await context.close()
    return state


@asynccontextmanager
async def visiting(browser: Browser, url: str, **options: Any) -> AsyncIterator[ConsoleVisit]:
    """A visit in a browser of its own; `options` are those of Playwright's `new_context`.

    `storage_state` is what `signed_in` returned; without it nobody is signed in.
    """
    options = {"locale": "en-US", "viewport": DESKTOP, **options}
    context = await browser.new_context(**options)
    visit = await ConsoleVisit.begin(url, context)
    try:
        yield visit
        await visit.check()
    finally:
        await context.close()
