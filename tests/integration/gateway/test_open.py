"""Objects opened by the reader itself: the gateway gives the link, the storage the bytes.

What the reader needs is the API key and the link's metadata; no operator's key, and no gateway
in the data path (SPEC 9.3, 15.2).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import async_playwright

from keyturn.crypto import new_api_key
from keyturn.errors import LinkExpiredError, NotFoundError, NoUsableWrapError
from keyturn.gateway import Client
from keyturn.open import Reader, open_object
from tests.integration.gateway.scene import CHUNK, plain
from tests.support.typescript_sources import run_node, served_sources
from tools.servers.chromium import ARGUMENTS
from tools.typescript import NODE, PACKAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyturn.gateway import CiphertextLink
    from tests.integration.gateway.scene import Live

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
GATEWAY_ENV = {"KEYRING_CACHE_S": "0"}
KEY = "videos/é & b.mp4"
BODY = plain(9 * 2**20 + 5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(live: Live) -> AsyncIterator[Client]:
    """A client of the gateway; `KEY` is uploaded through it."""
    async with Client.connect(live.scene.process.url, live.scene.deployment.api_key) as opened:
        receipt = await opened.upload(
            "acme", KEY, BODY, content_type="video/mp4", metadata={"author": "kim"}, wait_s=60
        )
        assert receipt.stored
        yield opened


async def test_whole_and_in_part_by_the_storage_alone(live: Live, client: Client) -> None:
    link = await client.ciphertext_link("acme", KEY)
    storage = urlsplit(live.scene.deployment.s3.endpoint_url).netloc
    assert urlsplit(link.url).netloc == storage
    async with Reader.connect("acme", live.scene.deployment.api_key) as reader:
        async with reader.open(link, KEY) as opened:
            assert (opened.content_type, opened.metadata) == ("video/mp4", {"author": "kim"})
            info = await client.stat("acme", KEY)
            assert (opened.etag, opened.size_bytes) == (info.etag, info.size_bytes)
            assert await opened.read() == BODY
        for start, length in [
            (0, 1),
            (3 * CHUNK - 1, 2 * CHUNK),
            (len(BODY) - 7, None),
            (-7, None),
        ]:
            async with reader.open(link, KEY, start=start, length=length) as opened:
                end = None if length is None else start + length
                assert await opened.read() == BODY[start:end]


_OPEN = """async (open, {link, keys, range}) => {
    const attempt = async () => {
        const whole = await (await open({...link, ...keys})).bytes();
        const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", whole));
        const part = await open({...link, ...keys, range});
        return {
            sha256: Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join(""),
            part: Array.from(await part.bytes()),
            size: part.size,
            etag: part.etag,
        };
    };
    return attempt().catch((error) => ({error: error.code ?? error.name}));
}"""
_IN_NODE = f"""
    const {{ open }} = await import("./src/open/index.ts");
    const {{ readFileSync }} = await import("node:fs");
    const result = await ({_OPEN})(open, JSON.parse(readFileSync(0, "utf8")));
    process.stdout.write(JSON.stringify(result));
"""
_IN_PAGE = f"""async (given) => {{
    const {{ open }} = await import("/src/open/index.ts");
    return ({_OPEN})(open, given);
}}"""


def _asked(link: CiphertextLink, api_key: str) -> dict[str, Any]:
    return {
        "link": {"url": link.url, "metadata": dict(link.metadata)},
        "keys": {"project": "acme", "key": KEY, "apiKey": api_key},
        "range": {"start": 2 * CHUNK - 3, "end": 2 * CHUNK + 4},
    }


async def _expected(client: Client) -> dict[str, Any]:
    return {
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "part": list(BODY[2 * CHUNK - 3 : 2 * CHUNK + 4]),
        "size": len(BODY),
        "etag": (await client.stat("acme", KEY)).etag,
    }


async def test_the_same_in_node(live: Live, client: Client) -> None:
    link = await client.ciphertext_link("acme", KEY)
    api_key = live.scene.deployment.api_key
    for asked, expected in [
        (_asked(link, api_key), await _expected(client)),
        (_asked(link, new_api_key()), {"error": "no_usable_wrap"}),
    ]:
        output = await run_node("--input-type=module", "-e", _IN_NODE, input_=json.dumps(asked))
        assert json.loads(output) == expected


async def test_the_same_in_a_page_that_the_buckets_cors_rules_allow(
    live: Live, client: Client, chromium: Path
) -> None:
    """The rules are those of the how-to; without them a page gets nothing."""
    link = await client.ciphertext_link("acme", KEY)
    asked = _asked(link, live.scene.deployment.api_key)
    asked["keys"]["resumes"] = 0
    async with served_sources() as origin, async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=[*ARGUMENTS])
        page = await browser.new_page()
        await page.goto(origin)
        assert await page.evaluate(_IN_PAGE, asked) == {"error": "storage_unavailable"}
        rules = _cors_rules(origin)
        live.scene.bucket.client.put_bucket_cors(
            Bucket=live.scene.deployment.bucket, CORSConfiguration={"CORSRules": rules}
        )
        assert await page.evaluate(_IN_PAGE, asked) == await _expected(client)
        await browser.close()


def _cors_rules(origin: str) -> list[Any]:
    rules = _block("cors rules", "json")[0].replace("https://tools.example.com", origin)
    found: list[Any] = json.loads(rules)
    return found


def _block(name: str, language: str) -> tuple[str, str]:
    """A marked block of the how-to, and what the page says that it prints."""
    page = (PACKAGE.parents[1] / "docs/howto/read-without-gateway.md").read_text()
    found = re.search(
        rf"<!-- {name} -->\n```{language}\n(.*?)```\n(?:\nIt prints:\n\n(.*?)\n\n)?",
        page,
        re.DOTALL,
    )
    assert found is not None
    printed = [line.removeprefix("    ") for line in (found[2] or "").splitlines()]
    return found[1], "".join(line + "\n" for line in printed)


_RESOLVE_SOURCES = """
import { registerHooks } from "node:module";
const sources = { keyturn: "index.ts", "keyturn/open": "open/index.ts" };
registerHooks({
    resolve(specifier, context, next) {
        const source = sources[specifier];
        return source
            ? { url: new URL(source, "%s").href, shortCircuit: true }
            : next(specifier, context);
    },
});
"""


@pytest.mark.parametrize("language", ["python", "ts"])
async def test_the_how_to_prints_what_it_says(
    live: Live, client: Client, tmp_path: Path, language: str
) -> None:
    """Its programs as they are written; TypeScript on the package's sources, without a build."""
    if language == "python":
        await client.upload(
            "acme", "reports/q4.txt", b"the fourth quarter", metadata={"author": "kim"}, wait_s=60
        )
    name = "Python" if language == "python" else "TypeScript"
    program, prints = _block(f"example: open in {name}", language)
    script, hooks = tmp_path / f"program.m{language}", tmp_path / "hooks.mjs"
    script.write_text(program)
    hooks.write_text(_RESOLVE_SOURCES % f"{(PACKAGE / 'src').as_uri()}/")
    ts = (str(NODE), "--disable-warning=ExperimentalWarning", "--import", hooks.as_uri())
    command = (sys.executable,) if language == "python" else ts
    process = await asyncio.create_subprocess_exec(
        *command,
        str(script),
        env={
            "PATH": os.environ["PATH"],
            "KEYTURN_GATEWAY_URL": live.scene.process.url,
            "KEYTURN_API_KEY": live.scene.deployment.api_key,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (output.decode(), errors.decode()) == (prints, "")


async def test_an_expired_link_has_its_error(live: Live, client: Client) -> None:
    link = await client.ciphertext_link("acme", KEY, expires_s=1)

    async def read() -> None:
        async with open_object(
            link, project="acme", object_key=KEY, api_key=live.scene.deployment.api_key
        ) as opened:
            await opened.read()

    async with asyncio.timeout(30):
        while True:
            try:
                await read()
            except LinkExpiredError:
                break
            await asyncio.sleep(0.3)  # the storage's clock decides


async def test_after_a_rotation_the_old_key_opens_old_links_alone(
    live: Live, client: Client
) -> None:
    """The stored bytes are the same, so what was given out lives until it expires."""
    old_key, new_key = live.scene.deployment.api_key, new_api_key()
    before = await client.ciphertext_link("acme", KEY)
    rotation_id = await client.rotate("acme", new_key)
    renewed = client.with_api_key(new_key)
    await live.served.wire.event(
        lambda event: event["type"] == "rotation.completed" and event["rotation_id"] == rotation_id
    )
    after = await renewed.ciphertext_link("acme", KEY)
    assert after.metadata != before.metadata

    async def read(link: CiphertextLink, api_key: str) -> bytes:
        async with open_object(
            link, project="acme", object_key=KEY, api_key=api_key, start=5, length=20
        ) as opened:
            return await opened.read()

    assert await read(before, old_key) == BODY[5:25]
    assert await read(after, new_key) == BODY[5:25]
    for link, api_key in [(before, new_key), (after, old_key)]:
        with pytest.raises(NoUsableWrapError, match="after a rotation"):
            await read(link, api_key)


async def test_a_deleted_object_is_gone_for_its_links_too(live: Live) -> None:
    await live.served.enroll("deletes")
    api_key = live.scene.deployment.api_key
    async with Client.connect(live.scene.process.url, api_key) as client:
        assert (await client.upload("deletes", "k", b"content", wait_s=60)).stored
        link = await client.ciphertext_link("deletes", "k")
        assert (await client.delete("deletes", "k", wait_s=60)).deleted
    for start in (0, 2):
        with pytest.raises(NotFoundError):
            async with open_object(
                link, project="deletes", object_key="k", api_key=api_key, start=start
            ):
                pass
