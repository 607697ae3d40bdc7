"""Each page of the console: complete, accessible, on its own, and safe with hostile text (SPEC 16).

The pages are found by their links, so that a page that is added is tested too.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tools.harness import hostile
from tools.harness.console_browser import DESKTOP, NARROW, visiting
from tools.harness.console_client import console_client, crawl, forms_of, pages_of
from tools.harness.console_site import OPERATOR, VIEWER, console_site

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from playwright.async_api import Browser

    from tools.harness.console_browser import ConsoleVisit
    from tools.harness.console_client import Answer
    from tools.harness.console_site import ConsoleSite
    from tools.servers import S3Server, Servers

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]

NAV: Final = ("/", "/projects", "/sweeps", "/keys", "/dead", "/queues", "/audit")
KINDS: Final = {
    *NAV,
    "/projects/{project}",
    "/sweeps/{project}/{id}",
    "/dead/{queue}/{digest}",
    "/codes",
}
"""Kinds of pages that must be reachable from the first one."""


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def pages(site: ConsoleSite) -> Mapping[str, Answer]:
    """One page of each kind that a person who may operate reaches by links."""
    async with console_client(site.url, OPERATOR) as client:
        return await crawl(client)


async def test_each_link_leads_to_a_page(pages: Mapping[str, Answer]) -> None:
    assert {kind: each.status for kind, each in pages.items() if each.status != 200} == {}
    assert pages.keys() >= KINDS


@pytest.mark.timeout(400)  # some 45 runs of axe, beside three other test processes
async def test_each_page_is_accessible_in_both_themes_and_on_a_phone(
    operator: ConsoleVisit, pages: Mapping[str, Answer]
) -> None:
    """WCAG 2.2 AA by axe; neither cards nor the narrowest tables make a page scroll sideways."""
    page, found = operator.page, dict[str, list[str]]()
    paths = pages_of(pages) | {"sign-in": "/sign-in", "not found": "/projects/no-such-project"}
    operator.expected.append("404 (Not Found)")
    for kind, path in paths.items():
        await page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
        await page.emulate_media(color_scheme="light")
        await operator.goto(path)
        found[f"{kind}, light"] = await operator.findings()
        await page.emulate_media(color_scheme="dark")
        found[f"{kind}, dark"] = await operator.findings("color-contrast")
        await page.set_viewport_size(NARROW)  # type: ignore[arg-type]
        found[f"{kind}, narrow"] = await operator.findings()
        for width in (320, 1120):
            await page.set_viewport_size({"width": width, "height": 700})
            if wider := await operator.overflow_px():
                found[f"{kind}, at {width} pixels"] = [f"{wider} pixels wider"]
    assert {where: each for where, each in found.items() if each} == {}


@pytest.mark.parametrize("width", [1120, 1280, 1600])
async def test_the_code_of_a_refusal_is_not_cut_off(operator: ConsoleVisit, width: int) -> None:
    await operator.page.set_viewport_size({"width": width, "height": 900})
    await operator.goto("/audit?outcome=not_ok&project=acme")
    refused = operator.page.get_by_role("cell").filter(has_text="generation_mismatch").first
    clipped = "cell => [...cell.children].some(each => each.scrollWidth > each.clientWidth)"
    assert await refused.evaluate(clipped) is False


async def test_hostile_text_is_shown_and_never_runs(
    operator: ConsoleVisit, site: ConsoleSite, pages: Mapping[str, Answer]
) -> None:
    """Object keys in a list of failures and in details; the policy has nothing to refuse."""
    assert site.history is not None
    await operator.goto(f"/sweeps/globex/{site.history.failed_sweep_id}")
    text = await operator.page.locator("main").inner_text()
    for shown in (hostile.SCRIPT, hostile.IMAGE, hostile.TEMPLATE, hostile.ATTRIBUTE):
        assert shown in text
    # What would reorder or hide text is named.
    assert hostile.BIDI not in text
    assert re.search(r"invoice\s*U\+202E\s*gpj\.exe", text)
    assert re.search(r"zero\s*U\+200B\s*width", text)
    for path in pages_of(pages).values():
        await operator.goto(path)
        assert await operator.page.evaluate("window.pwned") is None, path


async def test_a_person_who_may_only_look_finds_nothing_to_press(
    site: ConsoleSite, pages: Mapping[str, Answer]
) -> None:
    """And what another person's page would send is refused by the server."""
    posts = {
        form.action: form.fields
        for each in pages.values()
        for form in forms_of(each.text)
        if form.method == "post" and form.action != "/sign-out"
    }
    assert len(posts) > 3
    async with console_client(site.url, VIEWER) as client:
        seen = await crawl(client)
        offered = {
            (kind, form.action)
            for kind, each in seen.items()
            for form in forms_of(each.text)
            if form.method == "post"
        }
        assert {action for _, action in offered} == {"/sign-out"}
        assert seen.keys() >= KINDS
        csrf = forms_of(seen["/"].text)[0].fields["csrf"]
        for action, fields in posts.items():
            answer = await client.post(action, fields | {"csrf": csrf})
            assert answer.status == 403, action
        # A page that only leads to an action is refused as well.
        for kind in pages.keys() - seen.keys():
            assert (await client.get(pages[kind].path)).status in (403, 200), kind


async def test_each_page_without_data_says_so(
    broker: Servers, ceph: S3Server, browser: Browser, tmp_path: Path
) -> None:
    """A deployment that was just installed: no project, no sweep, no dead letter."""
    async with (
        console_site(broker, ceph, tmp_path, lives=False, CONSOLE_COLOR="red") as site,
        visiting(browser, site.url) as visit,
    ):
        await visit.goto("/sign-in")
        await expect(visit.page.locator(".deployment")).to_contain_text(site.deployment.name)
        found = {"/sign-in": await visit.findings()}
        await visit.sign_in(OPERATOR)
        for path in NAV:
            assert await visit.goto(path) == 200
            found[path] = await visit.findings()
        assert {path: each for path, each in found.items() if each} == {}
        for path in ("/projects", "/sweeps", "/dead"):
            await visit.goto(path)
            await visit.page.locator(".empty").wait_for()


async def test_the_responses_of_pages_are_kept_nowhere_and_framed_nowhere(
    pages: Mapping[str, Answer],
) -> None:
    for kind, answer in pages.items():
        headers = answer.headers
        assert headers["Cache-Control"] == "no-store", kind
        assert headers["X-Frame-Options"] == "DENY", kind
        assert headers["X-Content-Type-Options"] == "nosniff", kind
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy, kind
        assert "frame-ancestors 'none'" in policy, kind
        assert "unsafe" not in policy, kind
