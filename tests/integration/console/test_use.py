"""How a person uses the console: live pages, the keyboard alone, no JavaScript (SPEC 16)."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

import aio_pika
import pytest
from playwright.async_api import expect

from tools.harness import console_letters
from tools.harness import requests as rq
from tools.harness.console_browser import NARROW, visiting
from tools.harness.console_site import VIEWER
from tools.harness.wire import SignedPublisher

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page, Route, StorageState

    from tools.harness.console_browser import ConsoleVisit
    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]

NAV: Final = ("/", "/projects", "/sweeps", "/keys", "/dead", "/queues", "/audit")
_LATE_S: Final = 0.5
_POLLED_MS: Final = 20_000
"""How long a page may take to show a change: a few of the times it asks again."""
_REFRESHES: Final = 60
_TABS: Final = 60


async def _focus_by_tab(page: Page, target: Locator) -> None:
    """Press Tab until the element has the focus, which must be visible."""
    for _ in range(_TABS):
        await page.keyboard.press("Tab")
        if await target.evaluate("element => element === document.activeElement"):
            outline = await target.evaluate("element => getComputedStyle(element).outlineStyle")
            assert outline != "none"
            return
    raise AssertionError(f"{target} is not reached by {_TABS} times Tab")


async def test_a_page_refreshes_itself_and_keeps_what_a_person_is_doing(
    operator: ConsoleVisit, site: ConsoleSite
) -> None:
    """The filter that applies as one types, the focus, and the place of the cursor."""
    page = operator.page
    await operator.goto("/projects")
    field = page.get_by_label("Project contains")
    await field.press_sequentially("vandel")
    await expect(page.get_by_text("No project matches")).to_be_visible()
    await field.press("ArrowLeft")
    publisher = SignedPublisher(site.deployment, site.wire)
    await publisher.enroll("vandelay")
    await expect(page.get_by_role("link", name="vandelay")).to_be_visible(timeout=_POLLED_MS)
    await expect(field).to_have_value("vandel")
    await expect(field).to_be_focused()
    assert await field.evaluate("element => element.selectionStart") == len("vandel") - 1


async def test_a_refresh_that_crosses_a_filter_is_neither_shown_nor_lost(
    operator: ConsoleVisit,
) -> None:
    """The answer of the page before comes late: the filtered page asks again."""
    page, late = operator.page, asyncio.Event()

    async def hold(route: Route) -> None:
        await late.wait()
        await route.continue_()

    await operator.goto("/projects")
    await page.route(re.compile(r"/projects$"), hold)
    await page.evaluate("htmx.trigger('#page', 'refresh')")
    await page.get_by_label("Project contains").press_sequentially("glo")
    acme = page.get_by_role("link", name="acme")
    await expect(acme).to_have_count(0)
    async with page.expect_request(re.compile(r"text=glo")):
        late.set()
    await expect(acme).to_have_count(0)


async def test_a_key_that_was_shown_is_gone_from_a_page_that_was_left(
    operator: ConsoleVisit,
) -> None:
    """Browsers may keep a page that is left, as it was, for the button that goes back."""
    page = operator.page
    await operator.goto("/projects/acme/rotate")
    await page.get_by_role("button", name="Make a new key").click()
    key = page.locator("#api-key")
    await expect(key).to_have_text(re.compile(r"\S{20,}"))
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    await expect(key).to_have_text("")


async def test_a_new_key_is_copied_by_its_button(operator: ConsoleVisit) -> None:
    page = operator.page
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await operator.goto("/projects/acme/rotate")
    await page.get_by_role("button", name="Make a new key").click()
    await page.get_by_role("button", name="Copy").click()
    await expect(page.get_by_text("Copied", exact=True)).to_be_visible()
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == await page.locator("#api-key").inner_text()


async def test_a_theme_is_chosen_for_all_pages_of_this_browser(operator: ConsoleVisit) -> None:
    """Against what the system prefers, and it is legible; the first paint has it already."""
    page = operator.page
    background = "getComputedStyle(document.body).backgroundColor"
    await page.emulate_media(color_scheme="light")
    await operator.goto("/")
    light = await page.evaluate(background)
    await page.get_by_label("Theme").select_option("Dark")
    dark = await page.evaluate(background)
    assert dark != light
    await operator.goto("/projects")
    assert await page.evaluate(background) == dark
    await expect(page.get_by_label("Theme")).to_have_value("dark")
    assert await operator.findings("color-contrast") == []
    await page.emulate_media(color_scheme="dark")
    await page.get_by_label("Theme").select_option("Light")
    assert await page.evaluate(background) == light
    assert await operator.findings("color-contrast") == []
    await page.get_by_label("Theme").select_option("System")
    assert await page.evaluate(background) == dark


async def test_on_a_phone_the_navigation_is_one_row_with_the_page_in_view(
    operator: ConsoleVisit,
) -> None:
    page = operator.page
    await page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    for path in ("/", "/audit"):
        await operator.goto(path)
        links = page.locator("#nav a")
        tops = await links.evaluate_all("links => links.map(link => link.offsetTop)")
        assert (len(tops), len(set(tops))) == (len(NAV), 1)
        await expect(page.locator("#nav [aria-current]")).to_be_in_viewport(ratio=0.9)


async def test_a_sweep_that_is_not_known_yet_appears_by_itself(
    operator: ConsoleVisit, site: ConsoleSite
) -> None:
    """Its page is not found, and asks again; no word about the connection is said."""
    operator.expected.append("404 (Not Found)")
    page = operator.page
    sweep = rq.sweep("globex")
    assert await operator.goto(f"/sweeps/globex/{sweep['sweep_id']}") == 404
    await expect(page.get_by_text("The sweep is not known")).to_be_visible()
    async with page.expect_response(re.compile(r"/sweeps/globex/")) as again:
        pass
    assert (await again.value).status == 404
    await expect(page.locator("#connection")).to_have_text("")
    await SignedPublisher(site.deployment, site.wire).publish(sweep)
    await expect(page.get_by_role("heading", name="Progress")).to_be_visible(timeout=_POLLED_MS)


async def test_the_keyboard_alone_signs_in_skips_and_filters(
    site: ConsoleSite, browser: Browser, operator_state: StorageState
) -> None:
    async with visiting(browser, site.url) as visit:
        page = visit.page
        await visit.goto("/sign-in")
        await expect(page.get_by_label("Name", exact=True)).to_be_focused()
        await page.keyboard.type(VIEWER.name)
        await _focus_by_tab(page, page.get_by_label("Password"))
        await page.keyboard.type(VIEWER.password)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Now")
    async with visiting(browser, site.url, storage_state=operator_state) as visit:
        page = visit.page
        await visit.goto("/")
        await page.keyboard.press("Tab")
        skip = page.get_by_role("link", name="Skip to content")
        await expect(skip).to_be_focused()
        await expect(skip).to_be_in_viewport()
        await page.keyboard.press("Enter")
        await expect(page.locator("#page")).to_be_focused()
        await visit.goto("/projects")
        await _focus_by_tab(page, page.get_by_label("Project contains"))
        await page.keyboard.type("glo")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(re.compile(r"text=glo"))
        await _focus_by_tab(page, page.get_by_role("link", name="globex"))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("globex")


async def test_the_keyboard_alone_starts_a_sweep(operator: ConsoleVisit) -> None:
    page = operator.page
    await operator.goto("/sweeps")
    await _focus_by_tab(page, page.get_by_role("link", name="Start a sweep"))
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Start a sweep")
    await _focus_by_tab(page, page.get_by_label("Project id"))
    await page.keyboard.type("initech")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Sweep of initech")
    await expect(page.locator("main")).to_contain_text("Clean", timeout=30_000)


async def test_the_keyboard_alone_discards_letters_by_their_number(
    operator: ConsoleVisit, site: ConsoleSite
) -> None:
    """The confirmation is typed, and another number discards nothing."""
    operator.expected.append("status of 422")
    async with await aio_pika.connect(site.deployment.amqp_url) as connection:
        letters = console_letters.refused_uploads(site.deployment, 3, project="typed")
        await console_letters.publish(await connection.channel(), letters)
    page = operator.page
    boxes = page.get_by_role("checkbox", name="Select")
    await operator.goto("/dead?text=typed-0")
    await expect(boxes).to_have_count(3, timeout=30_000)
    for index in range(3):
        await _focus_by_tab(page, boxes.nth(index))
        await page.keyboard.press("Space")
    await _focus_by_tab(page, page.get_by_role("button", name="Discard selected").last)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Discard 3 dead letters")
    typed = page.get_by_label("Type the number of letters")
    for number, shown in (("4", "Type 3 to confirm"), ("3", "3 discarded")):
        await _focus_by_tab(page, typed)
        await page.keyboard.press("ControlOrMeta+a")
        await page.keyboard.type(number)
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_contain_text(shown, timeout=30_000)
    await operator.goto("/dead?text=typed-0")
    await expect(page.locator("main")).to_contain_text("No letter matches", timeout=30_000)


async def test_without_javascript_a_sweep_is_confirmed_and_ends(
    site: ConsoleSite, browser: Browser, operator_state: StorageState
) -> None:
    """Plain forms and the link that refreshes; other actions are plain forms as well."""

    async def until(page: Page, text: str) -> None:
        for _ in range(_REFRESHES):
            if text in await page.locator("main").inner_text():
                return
            await asyncio.sleep(_LATE_S)
            await page.get_by_role("link", name="Refresh").click()
        raise AssertionError(f"{text} is not shown")

    options = {"storage_state": operator_state, "java_script_enabled": False}
    async with visiting(browser, site.url, **options) as visit:
        page = visit.page
        await visit.goto("/sweeps/new?project=initech")
        await page.get_by_label("Repair").check()
        await page.get_by_role("button", name="Start the sweep").click()
        await page.get_by_label("Type initech to confirm").fill("initech")
        await page.get_by_role("button", name="Start the sweep").click()
        await until(page, "Clean")


async def test_without_javascript_each_page_is_complete_and_can_be_refreshed(
    site: ConsoleSite, browser: Browser, operator_state: StorageState
) -> None:
    options = {"storage_state": operator_state, "java_script_enabled": False}
    async with visiting(browser, site.url, **options) as visit:
        for path in NAV:
            assert await visit.goto(path) == 200
            await expect(visit.page.get_by_role("link", name="Refresh")).to_be_visible()
        await visit.goto("/projects")
        await visit.page.get_by_label("Project contains").fill("glo")
        await visit.page.get_by_role("button", name="Filter").click()
        await expect(visit.page.get_by_role("link", name="globex")).to_be_visible()
        await expect(visit.page.get_by_role("link", name="acme")).to_have_count(0)
