"""The commands of docs/howto/console.md, run as they are written, with a provider of others."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from yarl import URL

from tests.support.documents import code_blocks
from tools.harness.console import Account
from tools.harness.console_client import console_client, forms_of
from tools.servers.process import accepts_tcp, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.slow

_PAGE: Final = (Path(__file__).parents[3] / "docs/howto/console.md").read_text()
_KIM: Final = Account("kim", "operate", "correct horse battery")
_TIMEOUT_S: Final = 60


def _commands(name: str, ports: dict[str, int]) -> str:
    """The commands of an example, on free ports."""
    (block,) = code_blocks(_PAGE, "sh", example=name)
    for port, free in ports.items():
        block = block.replace(port, str(free))
    return block


@dataclass(frozen=True)
class _Running:
    """A console, and its terminal."""

    url: str
    terminal: int

    async def link(self) -> str:
        """The path and query of the link that it prints."""
        output = b""
        async with asyncio.timeout(_TIMEOUT_S):
            while (found := re.search(rb"(/sign-in/link\?token=\S+)\s", output)) is None:
                output += await asyncio.to_thread(os.read, self.terminal, 65536)
        return found[1].decode()


@asynccontextmanager
async def _running(folder: Path, commands: str, port: int, *more: int) -> AsyncIterator[_Running]:
    """Run commands that start a console, and servers on other ports; the broker is away."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {
        "PATH": path,
        "HOME": str(folder),
        "KEYTURN_AMQP_URL": f"amqp://127.0.0.1:{free_port()}/",
        "KEYTURN_CONSOLE_PORT": str(port),
    }
    terminal, output = pty.openpty()
    # A session of their own: what they start in the background ends with them.
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", commands, cwd=folder, env=env, stdout=output, start_new_session=True
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while not all(map(accepts_tcp, (port, *more))):
                assert process.returncode is None
                await asyncio.sleep(0.1)
        yield _Running(f"http://127.0.0.1:{port}", terminal)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        os.close(output)
        os.close(terminal)


async def test_kim_signs_in_by_link_by_password_and_by_the_provider(tmp_path: Path) -> None:
    port = free_port()
    async with (
        _running(tmp_path, _commands("link", {}), port) as running,
        console_client(running.url) as client,
    ):
        link = await running.link()
        page = await client.get(link)
        assert (page.status, page.path) == (200, "/")
        assert "one-time link" in page.text
        async with console_client(running.url) as thief:
            assert (await thief.get(link)).status == 403
    port = free_port()
    async with (
        _running(tmp_path, _commands("password", {}), port) as running,
        console_client(running.url, _KIM) as client,
    ):
        page = await client.get("/projects")
        assert (page.status, page.path) == (200, "/projects")
    port, provider = free_port(), free_port()
    async with (
        _running(tmp_path, _commands("provider", {"9400": provider}), port, provider) as running,
        console_client(running.url) as client,
    ):
        url = running.url
        choice = await client.session.get(f"{url}/sign-in/provider?next=/projects")
        assert choice.url.port == provider, await choice.text()
        # Its forms have buttons for the people it knows.
        assert 'value="1001"' in await choice.text()
        form = forms_of(await choice.text())[0]
        async with client.session.post(choice.url, data={**form.fields, "sub": "1001"}) as landed:
            assert landed.url == URL(f"{url}/projects")
            assert "kim (1001)" in await landed.text()
