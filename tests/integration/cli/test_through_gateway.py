"""`ls`, `link` and `download` with only a gateway and an API key; `delete` by the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp
import pytest

from keyturn.crypto import new_api_key
from tests.integration.cli.conftest import Cli, document
from tools.harness.bucket import Bucket
from tools.harness.process import gateway, worker

if TYPE_CHECKING:
    from typer.testing import Result

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}


async def _fetch(link: Result) -> tuple[int, bytes, str]:
    """Status, body and disposition of what a printed link opens."""
    assert link.exit_code == 0, link.stderr
    async with aiohttp.ClientSession() as browser, browser.get(link.stdout.strip()) as answer:
        return (
            answer.status,
            await answer.read(),
            answer.headers.get("Content-Disposition", "").partition(";")[0],
        )


async def test_a_project_works_with_its_objects(cli: Cli) -> None:
    made = cli.deployment
    async with worker(made.worker_env(**_FAST)), gateway(made.gateway_env(**_FAST)) as served:
        enrolled = await cli.arun("enroll", "acme", NEW_API_KEY="", API_KEY=made.api_key)
        assert enrolled.exit_code == 0, enrolled.stderr
        bucket = Bucket(made)
        for key in ("a/1", "a/2", "b"):
            bucket.put_made("acme", bucket.made("acme", key, b"the body"))
        caller = Cli(made, {"KEYTURN_GATEWAY_URL": served.url, "KEYTURN_API_KEY": made.api_key})

        rows = document(await caller.arun("ls", "acme", "--json"))
        assert [(row["key"], row["plaintext_bytes"]) for row in rows] == [
            ("a/1", 8),
            ("a/2", 8),
            ("b", 8),
        ]
        level = document(await caller.arun("ls", "acme", "--folders", "--json"))
        assert [row["key"] for row in level] == ["a/", "b"]
        # The same level of the bucket, without the gateway.
        level = document(await cli.arun("ls", "acme", "--as-operator", "--folders", "--json"))
        assert [row["key"] for row in level] == ["a/", "b"]
        cut = await caller.arun("ls", "acme", "--limit", "2")
        assert len(cut.stdout.splitlines()) == 3
        assert "raise --limit (now 2)" in cut.stderr

        assert await _fetch(await caller.arun("link", "acme", "a/1", "--expires", "5m")) == (
            200,
            b"the body",
            "attachment",
        )
        shown = await caller.arun("link", "acme", "a/1", "--inline")
        assert await _fetch(shown) == (200, b"the body", "inline")
        status, sealed, _ = await _fetch(await caller.arun("link", "acme", "b", "--ciphertext"))
        assert (status, len(sealed)) == (200, 56 + 8 + 16)
        assert (await caller.arun("download", "acme", "b", "-o", "-")).stdout == "the body"

        deleted = await cli.arun("delete", "acme", "a/1", "b")
        assert deleted.exit_code == 0, deleted.stderr
        later = document(await cli.arun("delete", "acme", "a/2", "--no-wait", "--json"))
        assert [row["status"] for row in later] == ["queued"]
        assert later[0]["request_id"]
        assert document(await caller.arun("ls", "acme", "a/1", "--json")) == []

        for key in ("year/1", "year/2", "years"):
            bucket.put_made("acme", bucket.made("acme", key, b"the body"))
        year = await cli.arun("delete", "acme", "--prefix", "year/", "--yes", "--json")
        assert year.exit_code == 0, year.stderr
        assert (document(year)["deleted"], document(year)["failed"]) == (2, [])
        left = document(await caller.arun("ls", "acme", "year", "--json"))
        assert [row["key"] for row in left] == ["years"]
        again = await cli.arun("delete", "acme", "--prefix", "year/", "--yes")
        assert (again.exit_code, again.stdout) == (0, "no objects under year/\n")

        for command in (("ls", "acme"), ("link", "acme", "b")):
            refused = await caller.arun(*command, API_KEY=new_api_key())
            assert refused.exit_code == 1
            assert "unauthorized" in refused.stderr
            assert refused.stderr.count("\n") == 1
