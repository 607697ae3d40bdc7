"""The TypeScript client in each runtime, against a gateway, a broker, a worker and a storage.

The cases are in `clients/typescript/tests/cases`: one bundle runs in Node.js, Deno, Bun and
Chromium. Each case is a subtest of its runtime's test.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import async_playwright

from keyturn.crypto import new_api_key
from keyturn.identifiers import object_s3_key
from tests.integration.gateway.scene import SEALED_CHUNK, plain
from tests.support.cutting_proxies import cutting_responses
from tools import typescript
from tools.servers.chromium import ARGUMENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.integration.gateway.scene import Live

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"KEYRING_CACHE_S": "0", "GATEWAY_CORS_ORIGINS": '["*"]'}
_BIG = plain(1024 * 1024)
_PLAINTEXT = "older than Keyturn"
_BREAKS_AFTER_BYTES = 300_000
_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases and the client in one file, for any runtime."""
    target = tmp_path_factory.mktemp("cases") / "main.mjs"
    return typescript.bundle(typescript.PACKAGE / "tests/cases/main.ts", target)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(live: Live) -> AsyncIterator[dict[str, Any]]:
    """What the cases of all runtimes share."""
    scene = live.scene
    scene.put("big", _BIG, ContentType="video/mp4")
    made = scene.bucket.made("acme", "corrupt", _BIG)
    changed = bytearray(made.body)
    changed[40 * SEALED_CHUNK] ^= 1
    scene.replace(made, body=bytes(changed))
    scene.bucket.put_keyring("plaintext", plaintext="allowed")
    scene.bucket.put(object_s3_key("plaintext", "old"), _PLAINTEXT.encode(), {"author": "kim"})
    with socket.create_server(("127.0.0.1", 0)) as closed:
        closed_url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    async with cutting_responses(scene.process.url, _BREAKS_AFTER_BYTES) as broken_url:
        yield {
            "url": scene.process.url,
            "project": "acme",
            "apiKey": scene.deployment.api_key,
            "brokenUrl": broken_url,
            "closedUrl": closed_url,
            "bigKey": "big",
            "corruptKey": "corrupt",
            "plaintextProject": "plaintext",
            "plaintextKey": "old",
            "plaintext": _PLAINTEXT,
        }


async def _scene(live: Live, shared: dict[str, Any], runtime: str) -> dict[str, Any]:
    rotated = f"rotated-{runtime}"
    await live.served.enroll(rotated)
    return {
        **shared,
        "runtime": runtime,
        "prefix": f"{runtime}/",
        "rotatedProject": rotated,
        "newApiKey": new_api_key(),
    }


def _report(subtests: pytest.Subtests, results: list[dict[str, str]]) -> None:
    assert len(results) > 10
    for result in results:
        with subtests.test(result["name"]):
            assert "error" not in result, result["error"]


async def _run(command: list[str | Path], scene: dict[str, Any]) -> list[dict[str, str]]:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**typescript.env(), "KEYTURN_SCENE": json.dumps(scene)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()[-4000:]
    results: list[dict[str, str]] = json.loads(output)
    return results


async def test_node(
    live: Live, shared: dict[str, Any], bundle: Path, subtests: pytest.Subtests
) -> None:
    scene = await _scene(live, shared, "node")
    _report(subtests, await _run([typescript.NODE, bundle], scene))


@pytest.mark.parametrize(
    ("name", "program", "arguments"),
    [
        ("deno", ".bin/deno", ["run", "--allow-all"]),
        ("bun", ".bin/bun", []),
        # The oldest one of `engines`, and the one between it and that of `test_node`.
        ("node20", "node20/bin/node", []),
        ("node22", "node22/bin/node", []),
    ],
)
async def test_other_runtimes(
    live: Live,
    shared: dict[str, Any],
    bundle: Path,
    subtests: pytest.Subtests,
    *,
    name: str,
    program: str,
    arguments: list[str],
) -> None:
    try:
        typescript.install(typescript.RUNTIMES)
    except typescript.NpmError as exc:
        pytest.skip(f"npm cannot install {name}: {exc}")
    path = typescript.RUNTIMES / "node_modules" / program
    if not path.exists():
        pytest.skip(f"{name} is locked for Linux on x86-64 alone")
    scene = await _scene(live, shared, name)
    _report(subtests, await _run([path, *arguments, bundle], scene))


@asynccontextmanager
async def _site(folder: Path) -> AsyncIterator[str]:
    """A page of another origin than the gateway's, with the cases beside it."""

    async def page(request: web.Request) -> web.Response:
        del request
        return web.Response(text="<!doctype html><title>cases</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_chromium(
    live: Live,
    shared: dict[str, Any],
    chromium: Path,
    subtests: pytest.Subtests,
    tmp_path: Path,
) -> None:
    typescript.bundle(typescript.PACKAGE / "tests/cases/cases.ts", tmp_path / "cases.js")
    scene = await _scene(live, shared, "chromium")
    async with _site(tmp_path) as origin, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        try:
            page = await browser.new_page()
            await page.goto(origin)
            results = await page.evaluate(
                "async (scene) => (await import('/cases.js')).run(scene)", scene
            )
        finally:
            await browser.close()
    _report(subtests, results)
