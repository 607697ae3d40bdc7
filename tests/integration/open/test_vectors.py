"""The shared known answers through `keyturn/open`, in each runtime and in a browser.

The cases are those of `clients/typescript/tests/cases/open_vectors.ts`; the browser gets the
vectors from here, and nothing of Node.js.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

import pytest
from playwright.async_api import async_playwright

from tests.support.typescript_sources import run_node, served_sources
from tools import typescript
from tools.servers.chromium import ARGUMENTS

_FOLDER: Final = Path(__file__).parents[3] / ".." / "shared" / "vectors"
_FILES: Final = {
    "cobblestone": _FOLDER / "wycheproof_c2sp_chunked_encryption_aes_256_gcm_test.json",
    "keyturn": _FOLDER / "keyturn_v1.json",
}
_PASSED: Final = {"cases": 35 + 27, "failures": []}
_IN_PAGE: Final = """async (vectors) => {
    const { runVectors } = await import("/tests/cases/open_vectors.ts");
    return runVectors(vectors);
}"""
needs_vectors = pytest.mark.skipif(
    not all(path.is_file() for path in _FILES.values()),
    reason="the shared known answers are not next to the project",
)


@needs_vectors
async def test_in_a_browser(chromium: Path) -> None:
    vectors = {name: json.loads(path.read_text()) for name, path in _FILES.items()}
    async with served_sources() as url, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        page = await browser.new_page()
        await page.goto(url)
        assert await page.evaluate(_IN_PAGE, vectors) == _PASSED

        # A changed answer is noticed: the page did run them.
        vectors["keyturn"]["objects"][0]["sha256"] = "0" * 64
        changed = await page.evaluate(_IN_PAGE, vectors)
        assert {failure.partition(":")[0] for failure in changed["failures"]} == {"0 bytes"}
        await browser.close()


@needs_vectors
@pytest.mark.parametrize(
    ("name", "arguments"), [("deno", ["run", "--allow-all", "--no-check"]), ("bun", [])]
)
async def test_in_other_runtimes(name: str, arguments: list[str]) -> None:
    try:
        typescript.install(typescript.RUNTIMES)
    except typescript.NpmError as exc:
        pytest.skip(f"npm cannot install {name}: {exc}")
    process = await asyncio.create_subprocess_exec(
        typescript.RUNTIMES / "node_modules/.bin" / name,
        *arguments,
        typescript.PACKAGE / "tests/cases/open_main.ts",
        *_FILES.values(),
        env=typescript.env(),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert json.loads(output) == _PASSED


async def test_in_node() -> None:
    """The package's own tests of it, with the vectors where they are."""
    tests = sorted(typescript.PACKAGE.glob("tests/unit/open/*.test.ts"))
    assert tests
    output = await run_node("--test", "--test-reporter=tap", *tests)
    assert "\n# fail 0\n" in output
    skipped = "\n# skipped 0\n" in output
    assert skipped is all(path.is_file() for path in _FILES.values())
