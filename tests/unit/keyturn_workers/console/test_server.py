"""A console process starts without its broker, and ends in order on a signal (SPEC 16)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import structlog

from keyturn.errors import SettingsError
from keyturn_workers.console.server import open_console, run_console
from keyturn_workers.errors import AddressError
from tests.unit.keyturn_workers.console.console_env import console_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text("")
    return path


@pytest.fixture
def logged() -> Iterator[asyncio.Queue[dict[str, Any]]]:
    """The log lines, and all as before afterwards."""
    lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def take(_: Any, __: str, fields: Any) -> Any:
        lines.put_nowait(dict(fields))
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    structlog.configure(processors=[take])
    yield lines
    structlog.configure(processors=before)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.slow
async def test_without_a_broker_its_pages_are_served(passwords: Path) -> None:
    async with open_console(console_settings(passwords), 8090) as app:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8090"
        ) as client:
            assert (await client.get("/healthz")).text == "ok\n"
            page = await client.get("/sign-in")
            away = await client.get("/projects")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert (away.status_code, away.headers["location"]) == (303, "/sign-in?next=/projects")


@pytest.mark.slow
async def test_a_signal_ends_it(passwords: Path, logged: asyncio.Queue[dict[str, Any]]) -> None:
    running = asyncio.create_task(run_console(console_settings(passwords)))
    async with asyncio.timeout(10):
        while (line := await logged.get())["event"] != "console started":
            pass
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{line['port']}/healthz")).text == "ok\n"
        os.kill(os.getpid(), signal.SIGTERM)
        await running
    while (line := logged.get_nowait())["event"] != "console stopped":
        pass


async def test_what_it_cannot_do_stops_the_start(passwords: Path, tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(AddressError, match="change KEYTURN_CONSOLE_PORT"):
        await run_console(console_settings(passwords, CONSOLE_PORT=str(port)))
    taken.close()
    await taken.wait_closed()
    with pytest.raises(SettingsError, match="KEYTURN_CONSOLE_PASSWORD_FILE"):
        await run_console(console_settings(tmp_path / "missing"))
