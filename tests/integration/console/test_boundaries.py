"""Pages of other origins can neither act in the console nor frame it (SPEC 16.3).

The other pages are served on the console's own address at another port, which browsers take for
the same site and send its cookies to, and under another name, which they take for another site.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from html import escape
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from tools.harness.console_browser import visiting
from tools.harness.console_client import console_client, crawl, forms_of
from tools.harness.console_site import OPERATOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser, StorageState

    from tools.harness.console_client import Form
    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]


@asynccontextmanager
async def _other_origin(page: str) -> AsyncIterator[int]:
    """Serve a page on all names of this machine; yields the port."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=f"<!doctype html>{page}", content_type="text/html")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _forged(url: str, form: Form, fields: dict[str, str]) -> str:
    """A page that sends the form of another page."""
    inputs = "".join(
        f'<input name="{escape(name)}" value="{escape(value)}">' for name, value in fields.items()
    )
    action = escape(url + form.action)
    return f'<form method="post" action="{action}">{inputs}<button>Look, kittens</button></form>'


async def _post_forms(site: ConsoleSite) -> list[Form]:
    """All forms that change something, as the operator's own pages hold them."""
    async with console_client(site.url, OPERATOR) as client:
        found = await crawl(client)
    forms = {
        form.action: form
        for each in found.values()
        for form in forms_of(each.text)
        if form.method == "post"
    }
    return list(forms.values())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_form_on_another_origin_changes_nothing(
    site: ConsoleSite, browser: Browser, operator_state: StorageState, host: str
) -> None:
    """Not even with a token that the other page somehow knows."""
    forms = await _post_forms(site)
    assert len(forms) > 3
    async with visiting(browser, site.url, storage_state=operator_state) as visit:
        visit.expected += ["403 (Forbidden)", "Failed to load resource"]
        await visit.goto("/")
        page = visit.page
        own = {form.action: form for form in forms_of(await page.content())}
        token = own["/sign-out"].fields["csrf"]
        for form in forms:
            async with _other_origin(_forged(site.url, form, form.fields | {"csrf": token})) as at:
                await page.goto(f"http://{host}:{at}/")
                async with page.expect_response(f"{site.url}/**") as answered:
                    await page.get_by_role("button").click()
                response = await answered.value
                # Without its cookie, which another site's page does not send, it is nobody's.
                assert response.status in (303, 401, 403), form.action
                assert "/sign-in" in response.headers.get("location", "/sign-in"), form.action
        # The other page could not even sign the person out.
        assert await visit.goto("/") == 200
        await page.get_by_role("button", name="Sign out").wait_for()
        visit.requests.clear()


async def test_no_page_can_be_framed(
    site: ConsoleSite, browser: Browser, operator_state: StorageState
) -> None:
    async with (
        visiting(browser, site.url, storage_state=operator_state) as visit,
        _other_origin(f'<iframe src="{site.url}/" width="900" height="600"></iframe>') as at,
    ):
        visit.expected += ["frame-ancestors", "X-Frame-Options", "Framing"]
        await visit.page.goto(f"http://127.0.0.1:{at}/")
        (frame,) = visit.page.main_frame.child_frames
        await frame.wait_for_load_state()
        assert frame.url.startswith("chrome-error:")
        assert "Keyturn" not in await frame.content()
        await visit.goto("/")
        visit.requests.clear()


async def test_a_change_needs_this_sessions_token_and_this_origin(site: ConsoleSite) -> None:
    """Each of the two is checked by itself: the right one does not replace the other."""
    async with console_client(site.url, OPERATOR, is_new=True) as client:
        page = await client.get("/")
        form = next(each for each in forms_of(page.text) if each.action == "/sign-out")
        token = form.fields["csrf"]
        other = token[:-1] + ("1" if token[-1] == "0" else "0")
        refused = [
            await client.post("/sign-out", {}),
            await client.post("/sign-out", {"csrf": other}),
            await client.post("/sign-out", {"csrf": token}, Origin="http://127.0.0.1:1"),
            await client.post("/sign-out", {"csrf": token}, Origin="null"),
        ]
        assert [each.status for each in refused] == [403] * len(refused)
        assert (await client.get("/")).path == "/"
        assert (await client.post("/sign-out", {"csrf": token})).status == 200
        assert (await client.get("/")).path.startswith("/sign-in")
