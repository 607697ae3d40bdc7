"""The page of examples/browser: what its user can do, and what must never happen there."""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from keyturn.identifiers import object_s3_key
from tests.integration.browser.clip import SECONDS, video
from tests.integration.browser.site import PASSWORD
from tools.harness.bucket import Bucket
from tools.harness.http import object_target

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.async_api import Browser, FileChooser, Locator, Page, Route

    from tests.integration.browser.site import Site, Visit

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="package")]

_MIB = 1024 * 1024
_MARKUP = "<img src=x onerror=document.title='run'>.txt"


@pytest.fixture(scope="module")
def bucket(site: Site) -> Bucket:
    """The bucket, in which tests put objects by hand."""
    return Bucket(site.deployment)


def _put(bucket: Bucket, key: str, plaintext: bytes = b"some text", **more: Any) -> None:
    bucket.put_made("acme", bucket.made("acme", key, plaintext), **more)


def _row(page: Page, name: str) -> Locator:
    return page.locator("#rows tr").filter(has=page.get_by_text(name, exact=True))


async def _throttle(page: Page, bytes_per_s: int) -> None:
    """Let the browser send so fast; -1 for as fast as it can."""
    session = await page.context.new_cdp_session(page)
    await session.send("Network.enable")
    await session.send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_s},
    )


async def test_signing_in_and_out(visit: Visit) -> None:
    page = visit.page
    visit.expected.append("401 (Unauthorized)")
    await page.goto(visit.site.backend.url)
    await page.get_by_label("Name", exact=True).fill("demo")
    await page.get_by_label("Password").fill("wrong")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    await page.get_by_label("Password").fill(PASSWORD)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("acme")
    (cookie,) = await page.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    await page.reload()
    await expect(page.get_by_role("heading", level=1)).to_have_text("acme")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    # The session has ended at the backend too, and not only in this browser.
    await page.context.add_cookies(
        [{"name": "session", "value": cookie["value"], "url": visit.site.backend.url}]
    )
    await page.reload()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


async def test_folders_pages_sizes_and_times(visit: Visit, bucket: Bucket) -> None:
    page = visit.page
    for number in range(120):
        _put(bucket, f"list/many/file {number:03}.txt", b"x" * number)
    _put(bucket, "list/Übersicht.pdf", bytes(1_250_000))
    bucket.put(object_s3_key("acme", "list/not ours.bin"), b"x" * 60, {})
    await visit.sign_in("/list")
    assert await visit.names() == ["many", "not ours.bin", "Übersicht.pdf"]
    overview = _row(page, "Übersicht.pdf")
    await expect(overview.locator(".size")).to_have_text("1.3 MB")
    changed_at = await overview.locator("time").get_attribute("datetime")
    assert changed_at is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", changed_at)

    await page.get_by_role("link", name="many").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("many")
    await visit.listed()
    assert await visit.names() == [f"file {number:03}.txt" for number in range(50)]
    await expect(_row(page, "file 001.txt").locator(".size")).to_have_text("1 byte")
    more = page.get_by_role("button", name="Show more")
    for shown in (100, 120):
        await more.click()
        await expect(page.locator("#rows tr")).to_have_count(shown)
    assert await visit.names() == [f"file {number:03}.txt" for number in range(120)]
    await expect(more).to_be_hidden()
    await expect(page.get_by_role("status")).to_have_text("120 entries")

    await page.get_by_role("navigation", name="Folders").get_by_role("link", name="list").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("list")
    await page.go_back()
    await expect(page.locator("#rows tr")).to_have_count(50)
    await page.goto(f"{visit.site.backend.url}/#/nothing")
    await expect(page.get_by_text("No files here.")).to_be_visible()


async def test_uploads_show_their_progress_and_each_its_own_error(
    visit: Visit, bucket: Bucket, tmp_path: Path
) -> None:
    page = visit.page
    _put(bucket, "uploads/taken.txt")
    film = tmp_path / "film.mp4"
    film.write_bytes(video(24 * _MIB))
    others = []
    for name in ("taken.txt", "Grüße & more.txt", "empty.txt"):
        others.append(tmp_path / name)
        others[-1].write_bytes(b"" if name == "empty.txt" else b"a text of its own")
    # Refused before anything of it is sent.
    others[0].write_bytes(bytes(12 * _MIB))
    await visit.sign_in("/uploads")
    await _throttle(page, 12 * _MIB)
    await page.evaluate(_RECORD_PROGRESS)
    await page.locator("#input").set_input_files([film, *others])
    state = page.locator("#upload-list li").filter(has_text="film.mp4").locator(".upload-state")
    await expect(state).to_have_text(re.compile(r"\d\d? % of 25.2 MB"))
    await expect(state).to_have_text("Stored, 25.2 MB", timeout=60_000)
    seen = await page.evaluate("seen")
    assert seen == sorted(seen)
    assert len({value for value in seen if 0 < value < 1}) > 3
    await expect(page.locator("#upload-list li").filter(has_text="taken.txt")).to_contain_text(
        "There is a file of this name already."
    )
    await expect(page.locator("#upload-list .done")).to_have_count(3)
    await visit.listed()
    assert await visit.names() == ["Grüße & more.txt", "empty.txt", "film.mp4", "taken.txt"]
    await expect(_row(page, "empty.txt").locator(".size")).to_have_text("0 bytes")
    await page.get_by_role("button", name="Clear finished").click()
    await expect(page.get_by_role("heading", name="Uploads", exact=True)).to_be_hidden()
    # Each body went to the gateway itself, by a link alone.
    sent = [request for request in visit.requests if request.method == "PUT"]
    assert {urlsplit(request.url).netloc for request in sent} == {
        urlsplit(visit.site.gateway.url).netloc
    }
    assert len(sent) == 3
    for request in sent:
        headers = await request.all_headers()
        assert not {"authorization", "cookie"} & headers.keys()
        assert "max_bytes=" in request.url
    assert bucket.head("acme/uploads/film.mp4")["ContentType"] == "video/mp4"


_RECORD_PROGRESS = """
globalThis.seen = [];
new MutationObserver(() => {
  const bar = document.querySelector("#upload-list progress");
  if (bar) globalThis.seen.push(bar.value);
}).observe(document.body, { subtree: true, childList: true, attributes: true });
"""


async def test_an_upload_that_is_canceled_leaves_nothing(
    visit: Visit, bucket: Bucket, tmp_path: Path
) -> None:
    page = visit.page
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    large.write_bytes(bytes(16 * _MIB))
    small.write_bytes(b"small")
    await visit.sign_in("/canceled")
    await _throttle(page, 4 * _MIB)
    await page.locator("#input").set_input_files([large, small])
    item = page.locator("#upload-list li").filter(has_text="large.bin")
    await expect(item.locator(".upload-state")).to_have_text(re.compile(r"[1-9]\d? % of 16.8 MB"))
    await page.get_by_role("button", name="Cancel the upload of large.bin").click()
    await expect(item.locator(".upload-state")).to_have_text("Canceled")
    await visit.listed()
    await expect(page.locator("#rows .name span")).to_have_text(["small.bin"])
    assert bucket.keys("acme/canceled/") == ["acme/canceled/small.bin"]


async def test_a_video_plays_and_seeks_by_ranges_of_its_link(visit: Visit, bucket: Bucket) -> None:
    page = visit.page
    _put(bucket, "media/film.mp4", video(24 * _MIB), ContentType="video/mp4")
    await visit.sign_in("/media")
    await page.get_by_role("button", name="film.mp4", exact=True).click()
    player = page.locator("video")
    await player.evaluate(_LOADED)
    assert await player.evaluate("v => v.duration") == pytest.approx(SECONDS, abs=0.5)
    await player.evaluate("v => { v.muted = true; return v.play(); }")
    await player.evaluate(_PLAYED_UNTIL, 0.3)
    await player.evaluate("(v, at) => { v.currentTime = at; }", SECONDS - 4)
    await player.evaluate(_PLAYED_UNTIL, SECONDS - 3.8)
    ranges = await _ranges(visit, "film.mp4")
    assert {status for status, *_ in ranges} == {206}
    # The beginning, the index at the end, and the second half, behind the padding.
    assert {start // (12 * _MIB) for _, start, _ in ranges} == {0, 2}
    assert {disposition for *_, disposition in ranges} == {'inline; filename="film.mp4"'}
    assert all("expires=" in one.url for one in visit.responses if "film.mp4?" in one.url)
    await page.get_by_role("button", name="Close").click()
    await expect(player).to_have_count(0)


_LOADED = """
async video => {
  if (video.readyState < 1) await new Promise(done => {
    video.addEventListener("loadedmetadata", done);
  });
}
"""
_PLAYED_UNTIL = """
(video, seconds) => new Promise(done => {
  const look = () => { if (!video.seeking && video.currentTime > seconds) done(); };
  video.ontimeupdate = video.onseeked = video.onended = look;
  look();
})
"""


async def _ranges(visit: Visit, name: str) -> list[tuple[int, int, str]]:
    """Status, first byte and disposition of each response to the player."""
    found = []
    for response in visit.responses:
        if f"{name}?" in response.url:
            headers = await response.all_headers()
            start = re.match(r"bytes (\d+)-", headers.get("content-range", "bytes 0-"))
            assert start is not None
            found.append((response.status, int(start[1]), headers["content-disposition"]))
    return found


async def test_a_link_that_has_expired_is_explained_and_replaced(
    visit: Visit, bucket: Bucket
) -> None:
    page = visit.page
    visit.expected.append("401 (Unauthorized)")
    _put(bucket, "expired/film.mp4", video(0), ContentType="video/mp4")

    async def late(route: Route) -> None:
        """Give the page a link that has expired when it arrives."""
        response = await route.fetch(post_data={"expires_s": 1, "inline": True})
        await asyncio.sleep(2.1)
        await route.fulfill(response=response)

    await visit.sign_in("/expired")
    await page.route("**/links", late, times=1)
    await page.get_by_role("button", name="film.mp4", exact=True).click()
    alert = page.get_by_role("dialog").get_by_role("alert")
    await expect(alert).to_contain_text("The link to this file has expired.")
    await alert.get_by_role("button", name="Try again").click()
    await page.locator("video").evaluate(_LOADED)
    await expect(alert).to_be_hidden()


async def test_downloads_have_the_name_and_the_content(visit: Visit, bucket: Bucket) -> None:
    page = visit.page
    _put(bucket, "down/Grüße.html", b"<script>alert(1)</script>", ContentType="text/html")
    await visit.sign_in("/down")
    async with page.expect_download() as begun:
        await page.get_by_role("button", name="Download Grüße.html").click()
    download = await begun.value
    assert download.suggested_filename == "Grüße.html"
    assert (await download.path()).read_bytes() == b"<script>alert(1)</script>"
    # A file that was deleted meanwhile is an error in the page, and does not lead away from it.
    bucket.client.delete_object(Bucket=bucket.deployment.bucket, Key="acme/down/Grüße.html")
    visit.expected.append("404 (Not Found)")
    await page.get_by_role("button", name="Download Grüße.html").click()
    await expect(page.get_by_role("alert")).to_contain_text("This file no longer exists.")


async def test_a_link_to_give_away(visit: Visit, bucket: Bucket, browser: Browser) -> None:
    page = visit.page
    _put(bucket, "share/plan.txt", b"the plan", ContentType="text/plain")
    await visit.sign_in("/share")
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.get_by_role("button", name="plan.txt", exact=True).click()
    await page.get_by_label("Valid for").select_option("1 day")
    await page.get_by_role("button", name="Copy link").click()
    await expect(page.locator("#link-note")).to_contain_text("Copied.")
    url = await page.get_by_label("Link", exact=True).input_value()
    assert url == await page.evaluate("navigator.clipboard.readText()")
    assert url.startswith(visit.site.gateway.url + object_target("acme", "share/plan.txt") + "?")
    expires = re.search(r"expires=(\d+)", url)
    assert expires is not None
    assert int(expires[1]) - time.time() == pytest.approx(86400, abs=60)
    other = await browser.new_context()
    opened = await other.request.get(url)
    assert (opened.status, await opened.body()) == (200, b"the plan")
    await other.close()


async def test_a_delete_is_confirmed_and_final(
    visit: Visit, bucket: Bucket, tmp_path: Path
) -> None:
    page = visit.page
    visit.expected.append("409 (Conflict)")
    for name in ("keep.txt", "remove.txt"):
        _put(bucket, f"deletes/{name}")
    await visit.sign_in("/deletes")
    await page.get_by_role("button", name="Delete remove.txt").click()
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_contain_text("remove.txt is deleted for everyone.")
    await dialog.get_by_role("button", name="Cancel").click()
    assert await visit.names() == ["keep.txt", "remove.txt"]
    await page.get_by_role("button", name="Delete remove.txt").click()
    await dialog.get_by_role("button", name="Delete").click()
    await expect(page.locator("#rows .name span")).to_have_text(["keep.txt"])
    await expect(page.get_by_role("status")).to_have_text("remove.txt is deleted")
    await page.get_by_role("button", name="Refresh").click()
    await visit.listed()
    assert await visit.names() == ["keep.txt"]
    again = tmp_path / "remove.txt"
    again.write_bytes(b"again")
    await page.locator("#input").set_input_files(again)
    await expect(page.locator("#upload-list li")).to_contain_text("its name cannot be used again")


async def test_markup_in_names_and_metadata_is_text(visit: Visit, bucket: Bucket) -> None:
    page = visit.page
    made = bucket.made("acme", f"markup/<b>folder/{_MARKUP}", b"text")
    made.metadata["author"] = "<script>document.title='run'</script>"
    bucket.put_made("acme", made, ContentType="text/html")
    await visit.sign_in("/markup")
    await page.get_by_role("link", name="<b>folder").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("<b>folder")
    await visit.listed()
    assert await visit.names() == [_MARKUP]
    await page.get_by_role("button", name=_MARKUP, exact=True).click()
    details = page.get_by_role("dialog")
    await expect(details.get_by_role("heading")).to_have_text(_MARKUP)
    await expect(details.locator("dd").last).to_have_text("<script>document.title='run'</script>")
    await page.keyboard.press("Escape")
    assert await page.title() == "<b>folder \u2013 Files"
    assert await page.locator("main img, main b:not(#empty b)").count() == 0


async def test_everything_by_keyboard(visit: Visit, bucket: Bucket, tmp_path: Path) -> None:
    page = visit.page
    for name in ("a.txt", "b.txt"):
        _put(bucket, f"keyboard/inner/{name}")
    chosen = tmp_path / "c.txt"
    chosen.write_bytes(b"c")
    # From the start: a chooser that opens while Playwright begins to watch for it is missed.
    asked: asyncio.Future[FileChooser] = asyncio.get_running_loop().create_future()

    def note(chooser: FileChooser) -> None:
        asked.set_result(chooser)

    page.on("filechooser", note)
    await page.goto(f"{visit.site.backend.url}/#/keyboard")
    await expect(page.get_by_label("Name", exact=True)).to_be_focused()
    await page.keyboard.type("demo")
    await page.keyboard.press("Tab")
    await page.keyboard.type(PASSWORD)
    await page.keyboard.press("Enter")
    await visit.listed()
    await _tab_to(page, "inner")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_be_focused()
    await visit.listed()
    await _tab_to(page, "Upload")
    await page.keyboard.press("Enter")
    async with asyncio.timeout(20):
        await (await asked).set_files(chosen)
    await expect(page.locator("#upload-list .done")).to_have_count(1)
    await expect(page.locator("#rows tr")).to_have_count(3)
    await _tab_to(page, "b.txt")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="b.txt", exact=True)).to_be_focused()
    await _tab_to(page, "Delete b.txt")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator("#rows .name span")).to_have_text(["a.txt", "c.txt"])
    # The focus is not lost with the row that had it.
    await expect(page.get_by_role("button", name="c.txt", exact=True)).to_be_focused()


async def _tab_to(page: Page, name: str) -> None:
    """Press Tab until the focus is at a control of this name."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        focused = "document.activeElement.ariaLabel ?? document.activeElement.innerText.trim()"
        if await page.evaluate(focused) == name:
            return
    raise AssertionError(f"{name} cannot be reached")


@pytest.mark.parametrize("width", [320, 1100])
async def test_nothing_is_wider_than_the_window(visit: Visit, bucket: Bucket, width: int) -> None:
    page = visit.page
    long = "a-name-without-any-place-to-break-" * 4
    if not bucket.keys(f"acme/width/{long}"):
        _put(bucket, f"width/{long}/{long}.txt", b"text")
    await page.set_viewport_size({"width": width, "height": 640})
    await visit.sign_in(f"/width/{long}")
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert await page.evaluate(overflow) <= 0
    await page.get_by_role("button", name=f"{long}.txt", exact=True).click()
    await expect(page.get_by_text("Type")).to_be_visible()
    dialog = page.get_by_role("dialog")
    assert await dialog.evaluate("d => d.scrollWidth - d.clientWidth") <= 0
    await expect(dialog.get_by_role("button", name="Download")).to_be_in_viewport()


async def test_the_backend_passes_on_only_what_the_page_needs(
    visit: Visit, site: Site, bucket: Bucket
) -> None:
    _put(bucket, "passed/a.txt")
    files = "/files/v1/projects/acme"
    one = f"{files}/objects/passed/a.txt"
    origin = {"Origin": site.backend.url}
    link, upload = {"expires_s": 60}, {"method": "PUT", "max_bytes": 5}
    stranger = await visit.page.context.request.get(site.backend.url + files + "/objects")
    assert stranger.status == 401
    await visit.sign_in("/passed")
    for method, path, headers, data, status in (
        ("POST", f"{one}/links", origin, link, 201),
        # Another site's page cannot use this user's session, nor can a page without an origin.
        ("POST", f"{one}/links", {"Origin": "https://evil.example"}, link, 403),
        ("POST", f"{one}/links", {}, link, 403),
        ("DELETE", one, {"Origin": "null"}, None, 403),
        ("PUT", f"{files}/objects/b", {"Origin": f"{site.backend.url}.evil.example"}, "b", 403),
        ("POST", f"{one}/links", origin, {**upload, "content_type": "a/b"}, 201),
        ("POST", f"{one}/links", {"Origin": "https://evil.example"}, upload, 403),
        ("POST", "/session", {"Origin": "https://evil.example"}, {"name": "demo"}, 403),
        # Other projects, and what the page has no use for.
        ("GET", one, {}, None, 405),
        ("GET", "/files/v1/projects/other/objects", {}, None, 404),
        ("POST", f"{one}/links", origin, {"kind": "ciphertext"}, 403),
        ("POST", f"{one}/links", origin, {"expires_s": 604_801}, 403),
        ("POST", f"{one}/links", origin, {**upload, "expires_s": 604_800}, 403),
        ("POST", f"{one}/links", origin, {**upload, "max_bytes": 5 * 2**30 + 1}, 403),
        ("POST", f"{one}/links", origin, {"method": "PUT"}, 403),
        ("PUT", f"{files}/objects/b", origin, "b", 405),
        ("POST", f"{files}/rotations", origin, {"api_key": "n" * 40}, 404),
        ("DELETE", f"{files}/objects/x/..%2Frotations", origin, None, 400),
        ("GET", "/files/openapi.json", {}, None, 404),
    ):
        answer = await visit.page.context.request.fetch(
            site.backend.url + path, method=method, headers=headers, data=data
        )
        assert answer.status == status, (method, path, headers)
        assert site.deployment.api_key not in await answer.text()
        assert "script-src 'self';" in answer.headers["content-security-policy"]
    assert bucket.keys("acme/passed/") == ["acme/passed/a.txt"]


async def test_an_upload_whose_link_has_ended_is_explained(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.expected.append("401 (Unauthorized)")
    (tmp_path / "late.txt").write_bytes(b"late")

    async def late(route: Route) -> None:
        """Give the page a link with another bound than the one that was signed."""
        response = await route.fetch()
        document = await response.json()
        document["url"] = document["url"].replace("max_bytes=4", "max_bytes=5")
        await route.fulfill(response=response, json=document)

    await visit.sign_in("/late")
    await page.route("**/links", late, times=1)
    await page.locator("#input").set_input_files(tmp_path / "late.txt")
    item = page.locator("#upload-list li")
    await expect(item).to_contain_text("This took too long. Try again.")
    await page.get_by_role("button", name="Clear finished").click()
    await page.locator("#input").set_input_files(tmp_path / "late.txt")
    await expect(item).to_contain_text("Stored, 4 bytes")
