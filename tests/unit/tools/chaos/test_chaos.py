"""The fault injection itself: its schedule, proxy and secret scan (`make chaos`)."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
from collections import Counter
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from tests.support.secret_encodings import ENCODINGS
from tests.unit.keyturn_workers.storage.servers import (
    Reply,
    ScriptedServer,
    scripted_server,
)
from tools.chaos import bucket_checks
from tools.chaos.fault_proxy import FaultProxy, kind_of, run_fault_proxy
from tools.chaos.plan import (
    CONSOLE,
    CUSTOMER_KEYS,
    FALSE_RESPONSES,
    FAULTS,
    FLAWS,
    GATEWAY,
    HOSTILE,
    KEY_OUTAGES,
    KINDS,
    STORED,
    THEFTS,
    WORKERS,
    WRITER,
    Action,
    make_load,
    make_plan,
    plaintext,
)
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

COUNT = 3000
PUT = ("PUT", "/bucket/acme/a.bin")


# The schedule.


def test_a_seed_makes_one_plan() -> None:
    """The same load to the byte, and the same faults at the same points."""
    one, other = make_plan(7, COUNT), make_plan(7, COUNT)
    assert one.shown() == other.shown()
    assert one.load == other.load
    for upload in one.load.uploads[:50]:
        assert plaintext(7, upload) == plaintext(7, upload)
        assert len(plaintext(7, upload)) == upload.size_bytes


def test_another_seed_makes_another_plan() -> None:
    one, other = make_plan(7, COUNT), make_plan(8, COUNT)
    assert one.shown()["actions"] != other.shown()["actions"]
    assert one.load != other.load
    assert plaintext(7, one.load.uploads[0]) != plaintext(8, one.load.uploads[0])


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 300, COUNT])
@pytest.mark.parametrize("seed", range(5))
def test_every_plan_contains_every_kind_of_action(seed: int, count: int) -> None:
    plan = make_plan(seed, count)
    at = [action.at for action in plan.actions]
    assert at == sorted(at)
    assert at[0] >= 0
    assert at[-1] <= len(plan.load.order)
    done = Counter(action.what for action in plan.actions)
    assert done["rotate"] == 6
    assert done["new customer key"] == 2
    kinds = [action.kind for action in plan.actions if action.what == "customer key away"]
    # A key is away while its store is not, and a store with all of its keys.
    assert len({kind.partition(" ")[0] for kind in kinds}) == 2
    assert set(kinds) <= set(KEY_OUTAGES)
    assert len(set(kinds)) == len(kinds)
    assert done["sources away"] >= 2
    assert done["refuse events"] == 1
    assert done["new master key"] == done["enroll"] == 1
    assert done["delete"] >= 2
    assert done["kill"] >= 3
    assert min(done[what] for what in ("terminate", "cut", "stop broker", "kill broker")) >= 1
    twice = Counter(action.to for action in plan.actions if action.what == "rotate")
    assert max(twice.values()) >= 2
    storms_planned = {(action.to, action.kind) for action in plan.actions if action.what == "storm"}
    assert {
        (fault, kind) for fault, kinds in FALSE_RESPONSES.items() for kind in kinds
    } <= storms_planned
    assert {a.to for a in plan.actions if a.what == "attack"} == {*HOSTILE, *WRITER}
    thefts = [action for action in plan.actions if action.what == "steal keyring"]
    assert {theft.kind for theft in thefts} == THEFTS.keys()
    for theft in thefts:
        assert min(a.at for a in plan.actions if (a.what, a.to) == ("rotate", theft.to)) < theft.at
        assert theft.process in (THEFTS[theft.kind] or {""})


def test_a_large_plan_has_every_fault_and_kills_every_process() -> None:
    plan = make_plan(1, COUNT)
    storms = [action for action in plan.actions if action.what == "storm"]
    assert {storm.to for storm in storms} == {*FAULTS, *FALSE_RESPONSES}
    assert {storm.kind for storm in storms} == set(KINDS)
    assert {a.to for a in plan.actions if a.what == "kill"} == {*WORKERS, GATEWAY, CONSOLE}
    assert {a.kind for a in plan.actions if a.what == "customer key away"} == {*KEY_OUTAGES}


@pytest.mark.parametrize("seed", range(5))
def test_a_load_has_every_kind_of_upload(seed: int) -> None:
    plan = make_plan(seed, COUNT)
    uploads = plan.load.uploads
    assert len({upload.upload_id for upload in uploads}) == len(uploads) >= COUNT
    assert {upload.flaw for upload in uploads} == {*FLAWS, None}
    assert 0 in {upload.size_bytes for upload in uploads}
    assert max(upload.size_bytes for upload in uploads) > 2**20
    assert len(plan.load.order) - len(uploads) > COUNT // 30  # these are sent twice
    pairs = Counter(upload.pair for upload in uploads if upload.pair is not None)
    assert set(pairs.values()) == {2}
    writers = Counter(f"{upload.project}/{upload.key}" for upload in uploads)
    shared = {upload for upload in uploads if writers[f"{upload.project}/{upload.key}"] > 1}
    # No other upload uses the key of one that must be stored.
    assert not [upload for upload in shared if upload.is_plain and upload.flaw is None]
    locked = Counter(upload.project for upload in uploads if upload.project in CUSTOMER_KEYS)
    assert locked.keys() == CUSTOMER_KEYS.keys()
    assert COUNT / 20 < locked.total() < COUNT / 10
    for upload in uploads:
        assert (STORED in upload.may_end) != (upload.flaw is not None or _is_late(upload.may_end))


def _is_late(may_end: frozenset[str]) -> bool:
    return may_end == {"deleted_key", "already_exists"}


def test_a_load_repeats_no_upload_before_its_first_publish() -> None:
    seen: set[int] = set()
    for upload in make_load(3, COUNT).order:
        assert upload.number in seen or upload.number == len(seen) or upload.number > max(seen)
        seen.add(upload.number)


# The proxy.


@pytest.mark.parametrize(
    ("method", "target", "headers", "kind"),
    [
        ("PUT", "/bucket/acme/a%20b.bin?X-Amz-Expires=15", {}, "put object"),
        ("PUT", "/bucket/acme/a", {"x-amz-copy-source": "/bucket/acme/a"}, "copy object"),
        ("GET", "/bucket/acme/a", {}, "read object"),
        ("HEAD", "/bucket/acme/a", {}, "read object"),
        ("GET", "/bucket/.keyturn/keyrings/acme.json", {}, "read keyring"),
        ("PUT", "/bucket/.keyturn/keyrings/acme.json", {}, "put keyring"),
        ("PUT", "/bucket/.keyturn/sweeps/1/acme/sweep.json", {}, "put record"),
        ("DELETE", "/bucket/.keyturn/staging/api/1", {}, "delete staged"),
        ("GET", "/bucket?list-type=2&prefix=acme%2F", {}, "list"),
        ("GET", "/bucket/?list-type=2", {}, "list"),
        ("PUT", "/bucket/acme/a?tagging", {}, "tags"),
        ("POST", "/bucket/acme/a?uploads", {}, "multipart"),
        ("PUT", "/bucket/acme/a?partNumber=1&uploadId=x", {}, "multipart"),
        ("PUT", "/bucket/.keyturn/doctor/1/a", {}, "doctor"),
        ("PUT", "/bucket", {}, "other"),
    ],
)
def test_kinds_of_requests(method: str, target: str, headers: dict[str, str], kind: str) -> None:
    assert kind_of(method, target, headers) == kind


@asynccontextmanager
async def _before_a_server() -> AsyncIterator[tuple[ScriptedServer, FaultProxy]]:
    async with (
        scripted_server() as server,
        run_fault_proxy(f"http://127.0.0.1:{server.port}") as proxy,
    ):
        yield server, proxy


async def _ask(
    proxy: FaultProxy, method: str, target: str, body: bytes = b""
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers; or what broke, raised as it is. aiohttp would ask twice."""

    def ask() -> tuple[int, bytes, dict[str, str]]:
        with closing(http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=10)) as client:
            client.request(method, target, body or None)
            answer = client.getresponse()
            return answer.status, answer.read(), dict(answer.headers)

    return await asyncio.to_thread(ask)


async def test_without_a_storm_requests_pass_unchanged() -> None:
    async with _before_a_server() as (server, proxy):
        server.script = [Reply(body=b"read"), Reply(404, b"gone")]
        assert (await _ask(proxy, "GET", "/bucket/acme/a"))[:2] == (200, b"read")
        assert (await _ask(proxy, *PUT, b"x" * 300_000))[:2] == (404, b"gone")
        assert server.requests[1].body == b"x" * 300_000
        assert (proxy.seen, proxy.done) == ({"read object": 1, "put object": 1}, {})


async def test_while_a_server_is_away_nothing_reaches_it() -> None:
    async with _before_a_server() as (server, proxy):
        proxy.is_away = True
        for request in (PUT, ("GET", "/bucket?list-type=2")):
            with pytest.raises((OSError, http.client.HTTPException)):
                await _ask(proxy, *request)
        assert (server.requests, proxy.done.total()) == ([], 2)
        proxy.is_away = False
        assert (await _ask(proxy, *PUT))[0] == 200


async def test_the_proxy_answers_expect_100_continue() -> None:
    """`Expect: 100-continue` is answered by the proxy, which sends body and all at once."""
    async with _before_a_server() as (server, proxy), aiohttp.ClientSession() as session:
        async with session.put(proxy.url + PUT[1], data=b"body", expect100=True) as answer:
            assert answer.status == 200
        assert server.requests[0].body == b"body"
        assert "expect" not in server.requests[0].headers


async def test_a_chunked_response_is_passed_on_completely() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two", b"x" * 100_000):
            yield piece

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=pieces())

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port := free_port())
    await site.start()
    try:
        async with run_fault_proxy(f"http://127.0.0.1:{port}") as proxy:
            for _ in range(2):
                _, body, headers = await _ask(proxy, "GET", "/bucket?list-type=2")
                assert headers["Transfer-Encoding"] == "chunked"
                assert body == b"onetwo" + b"x" * 100_000
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("fault", "status", "arrives"),
    [
        ("500", 500, 0),
        ("503", 503, 0),
        ("slow", 200, 1),
        # What breaks the connection may or may not have reached the server.
        ("reset", None, 0),
        ("request cut", None, 0),
        ("answer lost", None, 1),
        ("answer cut", None, 1),
        ("late", None, 1),
    ],
)
async def test_a_fault_is_injected_once(fault: str, status: int | None, arrives: int) -> None:
    async with _before_a_server() as (server, proxy):
        server.script = [Reply(body=b"x" * 1000)] * arrives
        proxy.storm(Action(0, "storm", fault, kind="put object", every=1, times=1, seconds=0.3))
        began = asyncio.get_running_loop().time()
        if status is None:
            with pytest.raises((OSError, http.client.HTTPException)):
                await _ask(proxy, *PUT, b"body")
        else:
            got, body, headers = await _ask(proxy, *PUT, b"body")
            assert got == status
            assert (b"<Code>" in body) == (status >= 500)
            assert ("Retry-After" in headers) == (status == 503)
        if fault == "slow":
            assert asyncio.get_running_loop().time() - began >= 0.3
        if fault == "late":
            assert server.requests == []
            await asyncio.sleep(0.7)  # longer than it is late
        assert [request.body for request in server.requests] == [b"body"] * arrives
        assert (await _ask(proxy, *PUT, b"body"))[0] == 200
        assert proxy.done == {(fault, "put object"): 1}


async def test_successful_puts_are_counted_by_key() -> None:
    async with _before_a_server() as (server, proxy):
        server.script = [Reply(), Reply(503), Reply()]
        for _ in range(3):
            await _ask(proxy, *PUT, b"body")
        assert (proxy.puts, proxy.unanswered) == ({"acme/a.bin": 2}, 0)


DATED = Reply(body=b"read", headers={"Date": "Tue, 24 Nov 2026 10:00:00 GMT"})


@pytest.mark.parametrize(
    ("fault", "code"), [("404", b"<Code>NoSuchKey</Code>"), ("404 page", b"<html>")]
)
async def test_an_existing_object_is_denied(fault: str, code: bytes) -> None:
    """To a GET that found it; not to a HEAD, and not of what is not there."""
    async with _before_a_server() as (server, proxy):
        server.script = [Reply(404, b"gone"), Reply(), DATED, DATED]
        proxy.storm(Action(0, "storm", fault, kind="read object", every=1, times=9))
        get = ("GET", "/bucket/acme/a%20b")
        assert (await _ask(proxy, *get))[:2] == (404, b"gone")
        proxy._spared.clear()
        assert (await _ask(proxy, "HEAD", get[1]))[0] == 200
        proxy._spared.clear()
        assert (proxy.done, proxy.denied) == ({}, {})
        status, body, headers = await _ask(proxy, *get)
        assert (status, headers["Date"]) == (404, DATED.headers["Date"])
        assert code in body
        assert (b"NoSuchKey" in body) == (fault == "404")
        assert (await _ask(proxy, *get))[:2] == (200, b"read")
        assert (proxy.done, [*proxy.denied]) == ({(fault, "read object"): 1}, ["acme/a b"])


@pytest.mark.parametrize(
    ("fault", "seconds", "date"),
    [
        ("date ahead", 7200, "Tue, 24 Nov 2026 12:00:00 GMT"),
        ("date behind", -30, "Tue, 24 Nov 2026 09:59:30 GMT"),
    ],
)
async def test_only_the_date_is_skewed(fault: str, seconds: float, date: str) -> None:
    async with _before_a_server() as (server, proxy):
        server.script = [DATED, DATED]
        proxy.storm(Action(0, "storm", fault, kind="put object", every=1, times=1, seconds=seconds))
        status, body, headers = await _ask(proxy, *PUT, b"body")
        assert (status, body, headers["Date"]) == (200, b"read", date)
        assert server.requests[0].body == b"body"
        assert (await _ask(proxy, *PUT, b"body"))[2]["Date"] == DATED.headers["Date"]
        assert proxy.done == {(fault, "put object"): 1}


async def test_a_storm_selects_its_requests() -> None:
    """Every second one of its kind, `times` in all, never two in a row; `calm` ends the rest."""
    async with _before_a_server() as (_, proxy):
        proxy.storm(Action(0, "storm", "500", kind="put object", every=2, times=2))
        storms_planned = [(await _ask(proxy, *PUT, b"body"))[0] for _ in range(7)]
        assert storms_planned == [200, 500, 200, 200, 500, 200, 200]
        assert (await _ask(proxy, "GET", "/bucket/acme/a"))[0] == 200
        proxy.storm(Action(0, "storm", "500", kind="put object", every=1, times=9))
        assert [(await _ask(proxy, *PUT, b"body"))[0] for _ in range(3)] == [500, 200, 500]
        assert proxy.calm() == 1
        assert [(await _ask(proxy, *PUT, b"body"))[0] for _ in range(2)] == [200, 200]


async def test_a_storm_ends_with_its_time() -> None:
    async with _before_a_server() as (_, proxy):
        proxy.storm(Action(0, "storm", "500", kind="put object", until=50, every=1, times=9))
        assert proxy.calm(50) == 0
        assert (await _ask(proxy, *PUT, b"body"))[0] == 500
        assert proxy.calm(51) == 1
        assert [(await _ask(proxy, *PUT, b"body"))[0] for _ in range(2)] == [200, 200]


# The secret scan.


IN_A_FILE: dict[str, Callable[[bytes], bytes]] = {
    **ENCODINGS,
    "raw": bytes,
    "UTF-8": lambda key: key.decode("latin-1").encode(),
    "inside 1": lambda key: base64.b64encode(b"1" + key),
    "inside 2": lambda key: base64.b64encode(b"22" + key),
    "inside 3": lambda key: base64.b64encode(b"333" + key + b"more"),
}


@pytest.mark.parametrize("encode", IN_A_FILE.values(), ids=IN_A_FILE)
def test_a_secret_in_a_file_is_found(tmp_path: Path, encode: Callable[[bytes], bytes]) -> None:
    """In any encoding, in a subfolder, between other bytes; and no other secret."""
    keys = {f"key {number}": os.urandom(32) for number in range(300)}
    (tmp_path / "below").mkdir()
    noise = os.urandom(100_000)
    (tmp_path / "below" / "segment.1").write_bytes(noise + encode(keys["key 7"]) + noise)
    (tmp_path / "other").write_bytes(noise)
    assert bucket_checks.scan_folder(tmp_path, keys) == ["key 7 in below/segment.1"]


@pytest.mark.slow
def test_no_secret_is_found_in_unrelated_files(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(os.urandom(1_000_000))
    assert bucket_checks.scan_folder(tmp_path, {str(n): os.urandom(32) for n in range(2000)}) == []


@pytest.mark.parametrize(
    "key",
    [
        b"\n\0" * 5 + b"\nabcdefghijklmnopqrst",
        b"0123456789\n0123456789\x00ABCDEFGHIJ",
        b"\xe9\n" + bytes(range(0xE0, 0xFE)),
        b"\0" + bytes(range(0xE0, 0xFF)),
        b"it's \"both\" quotes, and \\' both",
        b"'" * 12 + b"one kind first" + b'"' * 6,
        b"\"\\'" * 10 + b"!!",
        bytes(range(32)),
        bytes(range(0x22, 0x42)),
        bytes(range(0x7F, 0x9F)),
    ],
    ids=range(10),
)
def test_a_secret_with_newlines_or_quotes_is_found(tmp_path: Path, key: bytes) -> None:
    utf_8 = key.decode("latin-1").encode()
    shown = [key, repr(key).encode(), json.dumps(repr(key)).encode(), utf_8]
    for number, text in enumerate(shown):
        (tmp_path / f"log-{number}").write_bytes(b"before" + text + b"after")
    found = bucket_checks.scan_folder(tmp_path, {"key": key, "other": os.urandom(32)})
    assert found == [f"key in log-{number}" for number in range(len(shown))]
