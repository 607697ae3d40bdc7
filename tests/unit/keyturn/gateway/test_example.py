"""The examples of `docs/howto/read.md`, run as they are written there, against a fake gateway."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    json_answer,
    link_document,
    object_of,
    page_of,
    serving,
)

if TYPE_CHECKING:
    from tests.unit.keyturn.gateway.gateway import Answer

_ROOT = Path(__file__).parents[4]


def _example(name: str) -> tuple[str, str]:
    """The program, and what the document says that it prints."""
    found = re.search(
        rf"<!-- example: {name} -->\n```python\n(.*?)```\n\n"
        r"It prints[^\n]*:\n\n(.*?)\n\n(?! {4})",
        (_ROOT / "docs" / "howto" / "read.md").read_text(),
        re.DOTALL,
    )
    assert found is not None
    return found[1], "".join(line.removeprefix("    ") + "\n" for line in found[2].splitlines())


async def _run(name: str, answer: Answer, folder: Path) -> str:
    """What the program prints."""
    script = folder / "service.py"
    script.write_text(_example(name)[0])
    async with serving(answer) as gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            cwd=_ROOT,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(_ROOT),
                "KEYTURN_GATEWAY_URL": gateway.url,
                "KEYTURN_API_KEY": API_KEY,
            },
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()


@pytest.mark.slow
async def test_the_reading_example_prints_what_it_says(tmp_path: Path) -> None:
    stored: list[bytes] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            stored.append(await request.read())
            return json_answer(201, {"upload_id": AN_ID})
        return await object_of(stored[0], {"X-Keyturn-Meta-Author": "kim"})(request)

    assert await _run("read", answer, tmp_path) == _example("read")[1]


@pytest.mark.slow
async def test_the_sharing_example_prints_what_it_says(tmp_path: Path) -> None:
    """But for the link, which the document cannot know."""
    page, link = page_of(["reports/q4.txt"]), link_document("reports/q4.txt")
    page["objects"][0]["size"] = 18

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "DELETE":
            return web.Response(status=204)
        return json_answer(200, page) if request.method == "GET" else json_answer(201, link)

    printed = (await _run("share", answer, tmp_path)).splitlines()
    shown = _example("share")[1].splitlines()
    assert printed[1] == f"until 11:00 UTC: {link['url']}"
    assert re.fullmatch(
        r"until \d\d:\d\d UTC: http://\S+/reports/q4.txt\?expires=…&token=…", shown[1]
    )
    assert (printed[0], printed[2]) == (shown[0], shown[2])


@pytest.mark.parametrize("name", ["read", "share"])
def test_an_example_is_the_same_as_a_file(name: str) -> None:
    assert (_ROOT / "examples" / f"{name}.py").read_text() == _example(name)[0]
