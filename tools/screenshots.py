"""`make screenshots`: every page of the console as PNG, on a desktop and a phone, light and dark.

The deployment is real: workers, broker, storage, hundreds of projects, refusals, failures, a long
rotation, and a console of which the pictures are taken in Chromium. With `--readme` only the two
pictures of the README are written, into `docs/images/`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from keyturn.crypto import new_api_key
from tools.harness import console_letters, console_projects
from tools.harness import requests as rq
from tools.harness.console_browser import DESKTOP, NARROW, launched, signed_in, visiting
from tools.harness.console_client import console_client, crawl, pages_of
from tools.harness.console_site import OPERATOR, console_site
from tools.harness.marks import mark_keyrings
from tools.harness.wire import SignedPublisher
from tools.harness.world import open_world
from tools.servers import Servers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from playwright.async_api import Browser, StorageState

    from tools.harness.console_site import ConsoleSite


LONG: Final = "umbrella"
"""The project whose rotation is under way while the pictures are taken."""

WAITING: Final = "hooli"
"""A project that waits for its customer key."""
ERASED: Final = "tyrell"

_PROJECTS: Final = 240
_LETTERS: Final = 60
_FEW: Final = 3
_OBJECTS: Final = 20_000
_SIZE_BYTES: Final = 64


async def furnish(site: ConsoleSite, *, is_calm: bool = False) -> None:
    """Add projects, dead letters and a large project.

    Where it is calm there are few dead letters, and none is hostile.
    """
    deployment = site.deployment
    names = console_projects.names(_PROJECTS)
    await console_projects.put_keyrings(deployment, names)
    await mark_keyrings(deployment, *names)
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        letters = console_letters.refused_uploads(deployment, _FEW if is_calm else _LETTERS)
        await console_letters.publish(channel, letters)
        if not is_calm:
            await console_letters.publish(channel, console_letters.hostile_letters(deployment))
    publisher = SignedPublisher(deployment, site.wire)
    if not is_calm:
        await console_projects.put_with_customer_keys(deployment, WAITING, ERASED)
        waits = await publisher.publish(rq.sweep(WAITING))
        await site.wire.event(
            lambda event: event.get("sweep_id") == waits and "waits_for_key" in event["progress"]
        )
    await publisher.enroll(LONG)
    async with open_world(deployment) as world:
        await world.load(LONG, _OBJECTS, _SIZE_BYTES)
    await asyncio.gather(
        *(
            publisher.upload("initech", [f"q{quarter}/{number:03}.csv" for number in range(50)])
            for quarter in range(1, 5)
        )
    )


async def rotate_long(site: ConsoleSite) -> str:
    """Begin the long rotation; returns its id once it makes progress."""
    publisher = SignedPublisher(site.deployment, site.wire)
    rotation = await publisher.publish(rq.rotation(site.deployment, LONG, new_api_key()))
    await site.wire.event(
        lambda event: event["type"] == "sweep.progressed" and event["sweep_id"] == rotation
    )
    return rotation


_ROOT: Final = Path(__file__).parents[1]
_INTO: Final = _ROOT / ".scratch" / "screenshots"
_README: Final = _ROOT / "docs" / "images"
_README_MAX_BYTES: Final = 200_000
_CHART_S: Final = 15
_MAX_HEIGHT: Final = 2400


@dataclass(frozen=True)
class Look:
    """How a page is shown."""

    name: str
    options: Mapping[str, Any]


LOOKS: Final = (
    Look("light", {"viewport": DESKTOP, "color_scheme": "light"}),
    Look("dark", {"viewport": DESKTOP, "color_scheme": "dark"}),
    Look("narrow", {"viewport": NARROW, "color_scheme": "light", "device_scale_factor": 2}),
    Look("narrow-dark", {"viewport": NARROW, "color_scheme": "dark", "device_scale_factor": 2}),
)


async def take(
    browser: Browser,
    url: str,
    state: StorageState | None,
    pages: Mapping[str, str],
    folder: Path,
    looks: tuple[Look, ...] = LOOKS,
    *,
    whole: bool = True,
) -> list[Path]:
    """Take a picture of each page in each look; `pages` are paths by the names of the files."""
    taken = []
    for look in looks:
        async with visiting(browser, url, storage_state=state, **look.options) as visit:
            # Pages of errors are pages too.
            visit.expected.append("Failed to load resource")
            for name, path in pages.items():
                await visit.goto(path)
                await visit.page.locator("main").wait_for()
                # A page does not wait long for control workers, and asks again a second later.
                await visit.page.get_by_text("not been read yet").first.wait_for(state="hidden")
                height = await visit.page.evaluate("document.documentElement.scrollHeight")
                width = look.options["viewport"]["width"]
                taken.append(folder / f"{name}-{look.name}.png")
                if whole:
                    shown = {"width": width, "height": min(height, _MAX_HEIGHT)}
                    await visit.page.set_viewport_size(shown)  # type: ignore[arg-type]
                await visit.page.screenshot(path=taken[-1])
                await visit.page.set_viewport_size(look.options["viewport"])
    return taken


def file_name(kind: str) -> str:
    """The name of a kind of page as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "now"


async def _pages(site: ConsoleSite) -> dict[str, str]:
    """One page of each kind that a person who may operate can reach by links."""
    async with console_client(site.url, OPERATOR) as client:
        found = await crawl(client)
    return {file_name(kind): path for kind, path in pages_of(found).items()}


async def _all(site: ConsoleSite, browser: Browser, folder: Path) -> list[Path]:
    state = await signed_in(browser, site.url, OPERATOR)
    taken = await take(browser, site.url, None, {"sign-in": "/sign-in"}, folder)
    rotation = await rotate_long(site)
    await asyncio.sleep(_CHART_S)
    live = {"now-live": "/", "sweep-live": f"/sweeps/umbrella/{rotation}", "sweeps-live": "/sweeps"}
    taken += await take(browser, site.url, state, live, folder)
    assert site.history is not None
    more = {
        "sweep-failures": f"/sweeps/globex/{site.history.failed_sweep_id}",
        "project-rotated": "/projects/acme",
        "project-waiting": f"/projects/{WAITING}",
        "project-erased": f"/projects/{ERASED}",
        "projects-with-customer-keys": "/projects?state=customer_key",
        "not-found": "/projects/no-such-project",
    }
    taken += await take(browser, site.url, state, await _pages(site) | more, folder)
    site.broker.stop()
    await asyncio.sleep(_CHART_S)
    away = {"now-broker-away": "/", "queues-broker-away": "/queues"}
    taken += await take(browser, site.url, state, away, folder)
    site.broker.resume()
    return taken


async def _readme(site: ConsoleSite, browser: Browser, folder: Path) -> list[Path]:
    state = await signed_in(browser, site.url, OPERATOR)
    rotation = await rotate_long(site)
    await asyncio.sleep(_CHART_S)
    small = {"width": 1200, "height": 760}
    looks = {
        "now": Look("light", {"viewport": small, "color_scheme": "light"}),
        "sweep": Look("dark", {"viewport": small, "color_scheme": "dark"}),
    }
    paths = {"now": "/", "sweep": f"/sweeps/umbrella/{rotation}"}
    taken = []
    for name, look in looks.items():
        pages = {f"console-{name}": paths[name]}
        taken += await take(browser, site.url, state, pages, folder, (look,), whole=False)
    too_large = [path.name for path in taken if path.stat().st_size > _README_MAX_BYTES]
    if too_large:
        raise SystemExit(f"larger than {_README_MAX_BYTES} bytes: {', '.join(too_large)}")
    return taken


async def _run(folder: Path, *, is_readme: bool) -> list[Path]:
    with (
        Servers("ceph", environ={}) as servers,
        tempfile.TemporaryDirectory(prefix="keyturn-screenshots-") as scratch,
    ):
        async with (
            console_site(
                servers,
                servers.s3,
                Path(scratch),
                furnish=partial(furnish, is_calm=is_readme),
            ) as site,
            launched() as browser,
        ):
            return await (_readme if is_readme else _all)(site, browser, folder)


def main(argv: list[str]) -> int:
    """Take the pictures, and list them."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--readme", action="store_true", help="only those of the README")
    given = parser.parse_args(argv)
    folder = _README if given.readme else _INTO
    folder.mkdir(parents=True, exist_ok=True)
    for path in asyncio.run(_run(folder, is_readme=given.readme)):
        print(f"{path.stat().st_size / 1000:6.0f} kB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
