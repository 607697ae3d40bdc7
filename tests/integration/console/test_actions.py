"""What people do by the console, on real workers, broker and storage (SPEC 16.2).

A sweep, its failures that are fixed and swept again, a rotation to a key that
was shown once, a delete: each in the name of the person, in the audit trail too.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import aiohttp
import pytest

from tools.harness import requests as rq
from tools.harness.bucket import Bucket
from tools.harness.console_client import console_client
from tools.harness.console_site import OPERATOR, VIEWER
from tools.harness.process import gateway
from tools.harness.wire import SignedPublisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.harness.console_client import Answer, ConsoleClient
    from tools.harness.console_site import ConsoleSite

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
]

PROJECT: Final = "hooli"
_TIMEOUT_S: Final = 60


@asynccontextmanager
async def _signed_in(site: ConsoleSite) -> AsyncIterator[ConsoleClient]:
    async with console_client(site.url, OPERATOR) as client:
        yield client


async def _sweep(client: ConsoleClient, project: str) -> Answer:
    """The page of a sweep that has ended, started by its form."""
    form = await client.get(f"/sweeps/new?project={project}")
    begun = await client.submit(form, "/sweeps/new", scope="project", project=project)
    assert begun.status == 200
    return await client.until(begun.path, ">Clean<", "Not clean")


async def _audited(client: ConsoleClient, request_id: str) -> None:
    """Wait until the audit trail names the person beside this request."""
    page = await client.until(f"/audit?text={request_id}", f"{request_id}</span>")
    assert OPERATOR.name in page.text


async def test_the_failures_of_a_sweep_are_fixed_and_swept_again(
    site: ConsoleSite,
) -> None:
    publisher = SignedPublisher(site.deployment, site.wire)
    await publisher.enroll(PROJECT)
    await publisher.upload(PROJECT, [f"sheets/{number}" for number in range(5)])
    bucket = Bucket(site.deployment)
    made = bucket.made(PROJECT, "sheets/damaged")
    made.metadata["enc-dek-user"] = made.metadata["enc-dek-admin"] = "AAAA" * 40
    bucket.put_made(PROJECT, made)
    async with _signed_in(site) as client:
        first = await _sweep(client, PROJECT)
        assert "Not clean" in first.text
        shown = await client.until(first.path, "sheets/damaged")
        assert "no_usable_wrap" in shown.text
        listed = await client.get(f"{first.path}/failures.txt")
        assert listed.text == f"no_usable_wrap\t{PROJECT}\tsheets/damaged\n"

        # The cause is fixed by the console, too: what cannot be opened is deleted.
        form = await client.get(f"/projects/{PROJECT}/delete?key=sheets/damaged")
        key = {"key": "sheets/damaged", "typed": "sheets/damaged"}
        deleted = await client.submit(form, "/delete", **key)
        await client.until(deleted.path, "A tombstone has taken")
        await _audited(client, deleted.path.rpartition("/")[2])

        again = await client.get(first.path)
        assert f"/sweeps/new?project={PROJECT}" in again.text
        second = await _sweep(client, PROJECT)
        assert ">Clean<" in second.text
        proven = await client.until(second.path, "First inspection that counted")
        assert "/evidence/" in proven.text
        await _audited(client, second.path.rpartition("/")[2])


async def test_a_rotation_to_a_key_that_is_shown_once(site: ConsoleSite) -> None:
    project = "aviato"
    publisher = SignedPublisher(site.deployment, site.wire)
    enrolled = rq.enroll(site.deployment, project)
    await publisher.publish_and_wait(enrolled)
    await publisher.upload(project, ["flights"])
    old_key = site.deployment.api_key
    path = f"/projects/{project}/rotate"
    async with (
        gateway(site.deployment.gateway_env(KEYRING_CACHE_S="0.3")) as door,
        aiohttp.ClientSession() as http,
        _signed_in(site) as client,
    ):

        async def status(api_key: str) -> int:
            url = f"{door.url}/v1/projects/{project}/objects/flights"
            headers = {"Authorization": f"Bearer {api_key}"}
            async with http.get(url, headers=headers) as response:
                return response.status

        assert await status(old_key) == 200
        await client.until(f"/projects/{project}", "Rotate key")
        page = await client.submit(await client.get(path), "/rotate/key")
        found = re.search(r'<pre class="secret"[^>]*>([^<]*)</pre>', page.text)
        assert found is not None
        assert page.headers["Cache-Control"] == "no-store"
        assert await status(found[1]) == 401

        confirmed = {"saved": "yes", "typed": project}
        sent = await client.submit(page, "/rotate", **confirmed)
        twice = await client.submit(page, "/rotate", **confirmed)
        assert twice.path == sent.path
        outcome = await client.until(sent.path, "is at generation")
        assert "generation 2" in outcome.text
        assert found[1] not in outcome.text
        rotation_id = sent.path.rpartition("/")[2]
        ended = await client.until(f"/sweeps/{project}/{rotation_id}", ">Clean<")
        assert "Rotation of" in ended.text
        await asyncio.sleep(0.5)  # the gateway's cache of keyrings
        assert await status(found[1]) == 200
        assert await status(old_key) == 401
        await _audited(client, rotation_id)
        await client.until(f"/audit?text={rotation_id}", "to generation 2")


async def test_a_rotation_from_a_page_that_is_too_old_is_refused(site: ConsoleSite) -> None:
    project = "bachmanity"
    publisher = SignedPublisher(site.deployment, site.wire)
    await publisher.enroll(project)
    path = f"/projects/{project}/rotate"
    # Two sessions: a fresh key belongs to the one that it was shown in.
    async with (
        _signed_in(site) as client,
        console_client(site.url, OPERATOR, is_new=True) as other,
    ):
        await client.until(f"/projects/{project}", "Rotate key")
        pages = [await each.submit(await each.get(path), "/rotate/key") for each in (client, other)]
        first = await client.submit(pages[0], "/rotate", saved="yes", typed=project)
        await client.until(first.path, "is at generation")
        second = await other.submit(pages[1], "/rotate", saved="yes", typed=project)
        refused = await other.until(second.path, "Refused")
        assert "generation_mismatch" in refused.text


async def test_the_master_keys_are_counted(site: ConsoleSite) -> None:
    async with _signed_in(site) as client:
        page = await client.until("/keys", "Move all projects to it")
        await client.submit(page, "/keys/count")
        counted = await client.until("/keys", "The numbers above come from the count")
        assert "in use by" in counted.text
        assert "m2" in counted.text


async def test_the_role_view_is_refused_by_the_server(site: ConsoleSite) -> None:
    async with console_client(site.url, VIEWER) as client, _signed_in(site) as operator:
        for path in ("/sweeps/new", "/projects/acme/rotate", "/projects/acme/delete"):
            assert (await client.get(path)).status == 403
            # With a token of its own session, and the form of a person who may.
            form = await operator.get(path)
            assert form.status == 200
        page = await client.get("/keys")
        assert "/keys/count" not in page.text
        csrf = re.search(r'name="csrf" value="([^"]*)"', page.text)
        assert csrf is not None
        for path in ("/keys/count", "/sweeps/new", "/projects/acme/rotate/key"):
            assert (await client.post(path, {"csrf": csrf[1]})).status == 403
