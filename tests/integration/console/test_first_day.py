"""docs/howto/first-day.md: its commands as they are written, and its steps in the console."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.crypto import from_base64
from tests.support.documents import code_blocks, run_shell
from tools.harness.console_client import console_client
from tools.harness.console_site import OPERATOR
from tools.harness.process import gateway

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tools.harness.console_client import Answer, ConsoleClient
    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]

_PAGE: Final = (Path(__file__).parents[3] / "docs/howto/first-day.md").read_text()
PROJECT: Final = "erlich"
"""Stands for `acme`, which the shared deployment has already."""
_GATEWAY: Final = "http://127.0.0.1:8080"
_TIMEOUT_S: Final = 90


class _Reader:
    """A person who follows the page, at a shell in a folder and in the console."""

    def __init__(self, folder: Path, client: ConsoleClient, gateway_url: str) -> None:
        self._folder = folder
        self._client = client
        self._gateway_url = gateway_url

    def write_settings(self, name: str, env: Mapping[str, str]) -> None:
        lines = [f"{key}={shlex.quote(value)}\n" for key, value in env.items()]
        (self._folder / name).write_text("".join(lines))

    def save(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)

    async def run(self, *names: str, fails_with: str = "") -> str:
        """Run the examples with these names, one after the other; return what they print."""
        blocks = [code_blocks(_PAGE, "sh", example=name) for name in ("begin", *names)]
        commands = "".join(block for (block,) in blocks).replace("acme", PROJECT)
        assert _GATEWAY in commands
        commands = commands.replace(_GATEWAY, self._gateway_url)
        async with asyncio.timeout(_TIMEOUT_S):
            status, printed = await run_shell(commands, self._folder, {})
        assert (status == 0) is (not fails_with), printed
        assert fails_with in printed
        return printed

    async def until(self, path: str, *words: str) -> Answer:
        """The page at this path, once it says all of this."""
        async with asyncio.timeout(_TIMEOUT_S):
            while True:
                page = await self._client.get(path)
                if page.status == 200 and all(each in page.text for each in words):
                    return page
                await asyncio.sleep(0.4)

    async def rotate(self) -> str:
        """Step 3: returns the page of the rotation."""
        path = f"/projects/{PROJECT}/rotate"
        await self.until(f"/projects/{PROJECT}", "Rotate key…")
        page = await self._client.submit(await self._client.get(path), "/rotate/key")
        shown = re.search(r'<pre class="secret"[^>]*>([^<]*)</pre>', page.text)
        assert shown is not None
        self.save(f"{PROJECT}.new.key", shown[1] + "\n")
        assert "Rotate to this key" in page.text
        sent = await self._client.submit(page, "/rotate", saved="yes", typed=PROJECT)
        outcome = await self.until(sent.path, "Rotated", "Follow the rotation")
        found = re.search(rf'href="(/sweeps/{PROJECT}/[^"]*)"', outcome.text)
        assert found is not None
        return found[1]


async def test_the_page_leads_from_an_installed_console_to_production(
    site: ConsoleSite, tmp_path: Path
) -> None:
    env = site.deployment.gateway_env(KEYRING_CACHE_S="0.3")
    async with gateway(env) as served, console_client(site.url, OPERATOR) as client:
        reader = _Reader(tmp_path, client, served.url)
        reader.write_settings("publisher.env", site.deployment.publisher_env())

        await reader.until("/queues", "Control workers respond", "upload", "control", "sweep")
        await reader.run("enroll")
        await reader.until(f"/projects/{PROJECT}", "Not rotated yet")

        rotation = await reader.rotate()
        rotation_id = rotation.rpartition("/")[2]
        await reader.run("rotated")
        await reader.until(rotation, ">Clean<")
        assert "the key opens none of 1 wrap" in await reader.run("gone")

        page = await reader.until(f"/projects/{PROJECT}", "/evidence/")
        found = re.search(r'href="([^"]*/evidence/[^"]*)"', page.text)
        assert found is not None
        envelope = await client.get(found[1])
        name = re.search(r'filename="([^"]*)"', envelope.headers["Content-Disposition"])
        assert name is not None
        reader.save(name[1], envelope.text)
        await reader.run("evidence")

        form = await client.get(f"/sweeps/new?project={PROJECT}")
        begun = await client.submit(form, "/sweeps/new", scope="project", project=PROJECT)
        await reader.until(begun.path, ">Clean<")
        await reader.run("verified")

        await reader.run("refused", fails_with="already_exists")
        await reader.until(f"/audit?project={PROJECT}", OPERATOR.name)
        await reader.run("audit")
        lines = (tmp_path / "trail.jsonl").read_text().splitlines()
        records = [json.loads(from_base64(json.loads(line)["body"])) for line in lines]
        actors = {each["actor"] for each in records if each.get("request_id") == rotation_id}
        assert actors == {OPERATOR.name}
