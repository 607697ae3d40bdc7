"""A clean end leaves nothing that an old key opens (SPEC 8.6), on Ceph's gateway.

The worker reaches the storage through a proxy that answers 404 for some reads: as the storage
itself does, by its code, or as a proxy does that is set up wrongly, by a page.
"""

from __future__ import annotations

import io
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
import pytest_asyncio
from aiohttp import ClientSession, DummyCookieJar, web
from yarl import URL

from keyturn.identifiers import format_time, keyring_s3_key
from tests.integration.sweep.scene import WORKER_ENV, Scene, counts
from tools.harness import requests
from tools.harness.worker_under_test import run_worker

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

OWN: bytes = b"<Error><Code>NoSuchKey</Code></Error>"
PAGE: bytes = b"<html><body>404 Not Found</body></html>"
_HOP_BY_HOP = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "transfer-encoding"}
)


@dataclass
class Hiding:
    """A proxy before the storage; reads of keys that are hidden answer 404."""

    target: str
    url: str = ""
    _hidden: dict[str, tuple[bytes, int]] = field(default_factory=dict)

    def hide(self, s3_key: str, answer: bytes, *, times: int = 10**9) -> None:
        """From now on, `times` times."""
        self._hidden[s3_key] = (answer, times)

    def show(self, s3_key: str) -> None:
        self._hidden.pop(s3_key, None)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        key = unquote(request.raw_path.partition("?")[0]).split("/", 2)[-1]
        answer, left = self._hidden.get(key, (b"", 0))
        if request.method in ("GET", "HEAD") and left:
            self._hidden[key] = (answer, left - 1)
            return web.Response(status=404, body=b"" if request.method == "HEAD" else answer)
        body = await request.read()
        # The signature is over the host that the worker named.
        headers = {n: v for n, v in request.headers.items() if n.lower() not in _HOP_BY_HOP}
        async with self._session.request(
            request.method,
            URL(self.target + request.raw_path, encoded=True),
            headers=headers,
            data=io.BytesIO(body) if body else None,  # of raw bytes aiohttp warns
            allow_redirects=False,
        ) as got:
            kept = {n: v for n, v in got.headers.items() if n.lower() not in _HOP_BY_HOP}
            if request.method != "HEAD":
                return web.Response(status=got.status, headers=kept, body=await got.read())
            # Its length is that of the object, and it has no body.
            kept["Content-Length"] = got.headers.get("Content-Length", "0")
            response = web.StreamResponse(status=got.status, headers=kept)
            await response.prepare(request)
            return response

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Hiding]:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self.serve)
        runner = web.AppRunner(app)
        skipped = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
        async with ClientSession(
            auto_decompress=False, cookie_jar=DummyCookieJar(), skip_auto_headers=skipped
        ) as self._session:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
            await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hiding(ceph: S3Server) -> AsyncIterator[Hiding]:
    async with Hiding(ceph.endpoint_url).running() as proxy:
        yield proxy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(broker: Servers, ceph: S3Server, hiding: Hiding) -> AsyncIterator[Scene]:
    """A worker of all roles that reaches the storage through the proxy."""
    async with run_worker(broker, ceph, endpoint_url=hiding.url, **WORKER_ENV) as running:
        found = Scene(running)
        found.hiding = hiding  # type: ignore[attr-defined]
        yield found


def _hiding(scene: Scene) -> Hiding:
    proxy: Hiding = scene.hiding  # type: ignore[attr-defined]
    return proxy


async def an_object_that_answers_404(scene: Scene) -> None:
    """It is listed and never found: failed, and not gone; a later sweep proves it."""
    project = await scene.enrolled("absent")
    plaintexts = project.fill(9)
    at = project.s3_key("k/004")
    _hiding(scene).hide(at, OWN)
    document = project.rotation()
    await scene.send(document)
    end = await scene.ended(document["rotation_id"])
    assert counts(end) == {
        "objects": 9,
        "rewrapped": 8,
        "current": 8,
        "failed": 1,
        "clean": False,
    }
    assert scene.failures("absent", document["rotation_id"]) == {"k/004": "not_found"}
    # The old key opens it, so the sweep was not clean.
    assert project.bucket.unwrapped(project.user_kek(1), "user", at, 1) is not None
    _hiding(scene).show(at)
    after = await scene.swept("absent")
    assert counts(after) == {"objects": 9, "rewrapped": 1, "current": 9, "clean": True}
    project.assert_opens_as(plaintexts)


async def the_page_of_a_proxy(scene: Scene) -> None:
    """A 404 without the storage's own code is an outage: read again, until it is over."""
    project = await scene.enrolled("proxied")
    plaintexts = project.fill(5)
    # Each read is tried four times: the first attempt at the page fails for the object.
    _hiding(scene).hide(project.s3_key("k/002"), PAGE, times=6)
    end = await project.rotated()
    assert counts(end) == {"objects": 5, "rewrapped": 5, "current": 5, "clean": True}
    project.assert_opens_as(plaintexts)


async def names_that_no_object_can_have(scene: Scene) -> None:
    """Those with wraps have failed, and are left alone; those of other programs are counted."""
    project = await scene.enrolled("foreign")
    plaintexts = project.fill(4)
    named = ("reports//q3.txt", "folder/", "../up", "k/\x07", "x" * 901)
    for key in named:
        project.put(key)
        project.bucket.put(project.s3_key(f"{key}//plain"), b"", {"author": "kim"})
    before = {key: project.bucket.head(project.s3_key(key)) for key in named}
    document = project.rotation()
    await scene.send(document)
    end = await scene.ended(document["rotation_id"])
    assert counts(end) == {
        "objects": 9,
        "rewrapped": 4,
        "current": 4,
        "foreign": 5,
        "failed": 5,
        "clean": False,
    }
    found = scene.failures("foreign", document["rotation_id"])
    assert found == dict.fromkeys(named, "foreign_object")
    for key in named:
        at = project.s3_key(key)
        assert project.bucket.head(at) == before[key]
        assert project.bucket.unwrapped(project.user_kek(1), "user", at, 1) is not None
        project.bucket.delete(at)
    after = await scene.swept("foreign")
    assert counts(after) == {"objects": 4, "current": 4, "foreign": 5, "clean": True}
    project.assert_opens_as(plaintexts)


async def when_an_object_was_stored(scene: Scene) -> None:
    """No rotation makes a file look changed."""
    project = await scene.enrolled("stored")
    project.fill(2)
    at = project.s3_key("k/001")
    before = project.bucket.head(at)["LastModified"]
    for _ in range(2):
        assert (await project.rotated())["clean"]
        head = project.bucket.head(at)
        assert head["Metadata"]["enc-stored-at"] == format_time(before)
    assert head["LastModified"] > before


SCENARIOS: dict[str, Callable[[Scene], Coroutine[object, object, None]]] = {
    play.__name__: play
    for play in (
        an_object_that_answers_404,
        the_page_of_a_proxy,
        names_that_no_object_can_have,
        when_an_object_was_stored,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_proof(running: dict[str, asyncio.Task[None]], scenario: str) -> None:
    """The scenario of that name; see its docstring."""
    await running[scenario]


async def test_a_keyring_that_answers_404(scene: Scene) -> None:
    """A sweep of all projects lists it and cannot read it: its part has failed.

    After the scenarios: it would do their objects as well.
    """
    project = await scene.enrolled("unread")
    project.fill(3)
    at = keyring_s3_key("unread")
    _hiding(scene).hide(at, OWN)
    end = await scene.swept("*")
    _hiding(scene).show(at)
    assert not end["clean"]
    ended = _part_of_unread(scene, end["sweep_id"])
    assert (ended["clean"], ended["counts"]["failed"]) == (False, 1)
    again = requests.sweep("*")
    await scene.send(again)
    await scene.ended(again["sweep_id"])
    assert _part_of_unread(scene, again["sweep_id"])["clean"]


def _part_of_unread(scene: Scene, sweep_id: str) -> dict[str, Any]:
    """How the part of one project ended in a sweep of all."""
    walk_id = scene.origin("*", sweep_id)["end"]["round_id"]
    return scene.bucket.record(f".keyturn/sweeps/*/{walk_id}/unread.json", "*")
