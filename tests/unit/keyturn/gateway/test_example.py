"""The example of `docs/howto/read.md`, run as it is written there, against a fake gateway."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.keyturn.gateway.gateway import AN_ID, API_KEY, json_answer, object_of, serving

if TYPE_CHECKING:
    from aiohttp import web

_ROOT = Path(__file__).parents[4]


def _example() -> tuple[str, str]:
    """The program, and what the document says that it prints."""
    found = re.search(
        r"<!-- example: read -->\n```python\n(.*?)```\n\nIt prints[^\n]*:\n\n(.*?)\n\nOne",
        (_ROOT / "docs" / "howto" / "read.md").read_text(),
        re.DOTALL,
    )
    assert found is not None
    return found[1], "".join(line.removeprefix("    ") + "\n" for line in found[2].splitlines())


async def test_the_reading_example_prints_what_it_says(tmp_path: Path) -> None:
    program, prints = _example()
    script = tmp_path / "service.py"
    script.write_text(program)
    stored: list[bytes] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT":
            stored.append(await request.read())
            return json_answer(201, {"upload_id": AN_ID})
        return await object_of(stored[0], {"X-Keyturn-Meta-Author": "kim"})(request)

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
    assert output.decode() == prints
