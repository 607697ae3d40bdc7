"""The TypeScript client's sources for a browser, without a build: Node.js strips the types.

A page on loopback imports the modules by their own paths, such as `/src/open/index.ts`.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tools.typescript import NODE, PACKAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_STRIP: Final = """
import { readFileSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";
const paths = JSON.parse(readFileSync(0, "utf8"));
const stripped = paths.map((path) => [path, stripTypeScriptTypes(readFileSync(path, "utf8"))]);
process.stdout.write(JSON.stringify(Object.fromEntries(stripped)));
"""


async def run_node(*arguments: str | Path, input_: str = "") -> str:
    """The output of a program in the package's folder, which must succeed."""
    process = await asyncio.create_subprocess_exec(
        NODE,
        "--disable-warning=ExperimentalWarning",
        *map(str, arguments),
        cwd=PACKAGE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(input_.encode())
    assert process.returncode == 0, output.decode()
    return output.decode()


@asynccontextmanager
async def served_sources() -> AsyncIterator[str]:
    """The address of an empty page, next to the modules."""
    paths = [*PACKAGE.glob("src/**/*.ts"), *PACKAGE.glob("tests/cases/**/*.ts")]
    names = [str(path.relative_to(PACKAGE)) for path in paths]
    stripped = json.loads(
        await run_node("--input-type=module", "-e", _STRIP, input_=json.dumps(names))
    )

    async def answer(request: web.Request) -> web.Response:
        source = stripped.get(request.path[1:])
        if source is not None:
            return web.Response(text=source, content_type="text/javascript")
        status = 200 if request.path == "/" else 404
        return web.Response(text="<!doctype html>", content_type="text/html", status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "http://{}:{}".format(*runner.addresses[0])
    finally:
        await runner.cleanup()
