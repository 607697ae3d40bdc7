"""Links: how they are made, and what they open (SPEC 9.3)."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import os
import string
import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import HEADER_BYTES, LinkClaims, Secret, link_token
from keyturn.crypto.labels import label
from keyturn.identifiers import object_s3_key
from keyturn_workers.gateway import auth as auth_module
from keyturn_workers.gateway import links
from keyturn_workers.gateway.request import Link, Query, object_path, parse_object_path
from tests.unit.keyturn_workers.factories import deleted
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    CHUNK,
    DEPLOYMENT,
    KEY,
    NEW_API_KEY,
    TARGET,
    Bench,
    kek_of,
    turned_to,
)
from tests.unit.keyturn_workers.gateway.serving import PATH, Serving, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from tests.unit.keyturn_workers.gateway.serving import Connection

# --- Links over HTTP: made for the holder of the current key, opened without it (SPEC 9.3)


LINKS = f"{PATH}/links"
_HOST = {"host": "files.example.com"}


async def _post(
    serving: Serving,
    asked: Mapping[str, Any] | bytes = b"",
    *,
    target: str = LINKS,
    key: str | None = API_KEY,
    **more: Any,
) -> Connection:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    headers = {**_HOST, **more.pop("headers", {})}
    return await serving.ask("POST", target, key=key, body=body, headers=headers, **more)


async def make_link(serving: Serving, target: str = LINKS, **asked: Any) -> str:
    """Return the path and query of a new link."""
    made = await _post(serving, asked, target=target)
    assert made.status == 201, made.content
    url = urlsplit(made.document()["url"])
    return f"{url.path}?{url.query}"


@pytest.mark.parametrize(
    ("asked", "expires_s", "inline"),
    [
        (b"", 3600, False),
        ({}, 3600, False),
        ({"expires_s": 1}, 1, False),
        ({"expires_s": 604800, "inline": True}, 604800, True),
        ({"kind": "object", "inline": False}, 3600, False),
    ],
)
async def test_a_link_says_when_it_ends(asked: Any, expires_s: int, *, inline: bool) -> None:
    serving = Serving()
    before = math.ceil(time.time()) + expires_s
    made = await _post(serving, asked)
    after = math.ceil(time.time()) + expires_s
    assert made.status == 201
    assert made.headers["cache-control"] == "no-store"
    document = made.document()
    assert set(document) == {"url", "expires_at"}
    url = urlsplit(document["url"])
    assert (url.scheme, url.netloc, url.path) == ("http", "files.example.com", PATH)
    parameters = parse_qs(url.query)
    assert list(parameters) == ["expires", *["inline"] * inline, "token"]
    expires = int(parameters["expires"][0])
    assert before <= expires <= after
    assert document["expires_at"] == f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert serving.counted("requests_total", route="links", method="POST", status="201") == 1


async def test_a_link_costs_no_request_about_the_object() -> None:
    """Nothing is stored, and the object need not exist yet."""
    serving = Serving()
    link = await make_link(serving)
    assert serving.bench.storage.calls == {"read": 1}  # the keyring
    missing = await serving.ask(target=link, key=None)
    assert (missing.status, missing.document()["code"]) == (404, "not_found")
    serving.bench.plant_sealed(b"later")
    assert (await serving.ask(target=link, key=None)).content == b"later"


@pytest.mark.parametrize(
    "key", [KEY, "links", "a/links", "a/links/links", "ü %2F?&#+;=.pdf", "k" * 900, "objects/x"]
)
async def test_a_link_opens_the_object_of_any_key(key: str) -> None:
    """Also of keys that end like the path of links, and of the longest ones."""
    serving = Serving()
    serving.bench.plant_sealed(b"content", key)
    link = await make_link(serving, f"{object_path('acme', key)}/links")
    got = await serving.ask(target=link, key=None)
    assert (got.status, got.content) == (200, b"content")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (PATH, 405),
        ("/v1/projects/acme/objects/links", 405),
        (f"{PATH}/links/", 405),
        (f"{PATH}/Links", 405),
        ("/v1/projects/acme/objects//links", 404),
        ("/v1/projects/acme/objects/a//links", 404),
        ("/v1/projects/acme/objects/a/../links", 404),
        ("/v1/projects/acme/objects/%ff/links", 404),
        (f"/v1/projects/acme/objects/{'k' * 901}/links", 404),
        ("/v1/projects/acme/links", 404),
    ],
)
async def test_a_post_to_any_other_path_makes_no_link(target: str, status: int) -> None:
    got = await _post(Serving(), {}, target=target)
    assert got.status == status
    if status == 404:
        assert got.document()["code"] == "not_found"


async def test_an_object_whose_key_ends_with_links_is_read_and_stored_as_any_other() -> None:
    serving = Serving()
    serving.bench.plant_sealed(b"content", "a/links")
    target = object_path("acme", "a/links")
    assert (await serving.ask(target=target)).content == b"content"
    assert (await serving.ask("HEAD", target)).status == 200
    assert (await serving.ask("PUT", f"{target}/links", body=b"x")).status == 202


@pytest.mark.parametrize(
    ("target", "key"),
    [(LINKS, None), (LINKS, NEW_API_KEY), (LINKS.replace("acme", "unknown"), API_KEY)],
)
async def test_only_the_current_key_makes_links(target: str, key: str | None) -> None:
    serving = Serving()
    refused = await _post(serving, {}, target=target, key=key)
    assert (refused.status, refused.document()["code"]) == (401, "unauthorized")
    assert refused.content == (await serving.ask(key=key and NEW_API_KEY)).content


async def test_a_link_makes_no_links() -> None:
    serving = Serving()
    query = (await make_link(serving)).partition("?")[2]
    assert (await _post(serving, {}, target=f"{LINKS}?{query}", key=None)).status == 401


MALFORMED = [
    b"[]",
    b"null",
    b"{",
    b"\xff",
    b" ",
    b'{"expires_s": NaN}',
    b'{"expires_s": 5, "expires_s": 5}',
    *(
        json.dumps(asked).encode()
        for asked in (
            {"expires_s": 0},
            {"expires_s": -1},
            {"expires_s": 604801},
            {"expires_s": 1.5},
            {"expires_s": "60"},
            {"expires_s": True},
            {"expires_s": None},
            {"expires_s": 10**30},
            {"inline": 1},
            {"inline": "true"},
            {"inline": None},
            {"kind": "Object"},
            {"kind": None},
            {"kind": "ciphertext", "inline": True},
            {"more": 1},
        )
    ),
]


@pytest.mark.parametrize("body", MALFORMED)
async def test_a_malformed_body_is_a_400(body: bytes) -> None:
    serving = Serving()
    serving.bench.plant_sealed(b"content")
    refused = await _post(serving, body)
    assert (refused.status, refused.document()["code"]) == (400, "malformed_request")
    assert "connection" not in refused.headers  # all of the body was read


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=60).filter(lambda body: b"{" not in body))
def test_what_is_no_object_of_json_is_a_400(body: bytes) -> None:
    async def request() -> None:
        assert (await _post(Serving(), body)).status == 400

    asyncio.run(request())


async def test_a_body_is_limited_in_size_and_time() -> None:
    serving = Serving(idle_timeout_s=0.05)
    large = await _post(serving, b'{"kind": "%s"}' % (b"k" * 1024))
    assert (large.status, large.document()["code"]) == (413, "body_too_large")
    headers = {"authorization": f"Bearer {API_KEY}", **_HOST}
    silent = await serving.ask("POST", LINKS, body=[b"{", None], headers=headers)
    assert silent.status == 408
    assert silent.headers["connection"] == "close"


async def test_a_project_at_its_share_makes_no_links() -> None:
    serving = Serving(concurrency=4, project_share=0.25, idle_timeout_s=0.05)
    asked = serving.ask("POST", LINKS, body=[b"{", None], headers=_HOST)
    silent, refused = await asyncio.gather(asked, _post(serving, {}))
    assert silent.status == 408
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    assert (await _post(serving, {})).status == 201


@pytest.mark.parametrize("hosts", [[], ["a/b"], ["a", "b"], ["x@y"]])
async def test_a_link_begins_with_a_valid_host(hosts: list[str]) -> None:
    serving = Serving()
    pairs = [("authorization", f"Bearer {API_KEY}"), *(("host", host) for host in hosts)]
    refused = await ask(serving.app, "POST", LINKS, headers=pairs)
    assert (refused.status, refused.document()["code"]) == (400, "malformed_request")
    assert "Host" in refused.document()["detail"]


@pytest.mark.parametrize("hosts", [[], ["internal:8080"], ["a/b"], ["a", "b"]])
async def test_links_begin_with_the_public_url_whatever_the_host(hosts: list[str]) -> None:
    serving = Serving(public_url="https://files.example.com/keyturn")
    pairs = [("authorization", f"Bearer {API_KEY}"), *(("host", host) for host in hosts)]
    made = await ask(serving.app, "POST", LINKS, headers=pairs)
    assert made.status == 201
    assert made.document()["url"].startswith(f"https://files.example.com/keyturn{PATH}?expires=")


class TestCiphertext:
    """A link to what is stored, for a reader that opens it without the gateway."""

    @pytest.mark.parametrize(
        ("asked", "expires_s"),
        [({}, 900), ({"expires_s": 1}, 1), ({"expires_s": 901}, 900), ({"expires_s": 604800}, 900)],
    )
    async def test_it_lives_at_most_15_minutes(self, asked: dict[str, int], expires_s: int) -> None:
        """By the storage's own clock, which decides about it."""
        serving = Serving()
        serving.bench.plant_sealed(os.urandom(3 * CHUNK))
        made = await _post(serving, {"kind": "ciphertext", **asked})
        assert made.status == 201
        assert made.headers["cache-control"] == "no-store"
        document = made.document()
        assert set(document) == {"url", "expires_at", "metadata"}
        (lease,) = serving.bench.storage.leases
        assert lease.expires_s == expires_s
        until = lease.read_at + timedelta(seconds=expires_s)
        assert document["expires_at"] == f"{until:%Y-%m-%dT%H:%M:%SZ}"
        assert document["url"].startswith(f"memory:///{TARGET}?")
        # One read, of the header: no chunk of the body.
        assert serving.bench.storage.requested_bytes == HEADER_BYTES

    async def test_it_comes_with_the_metadata_that_opens_the_object(self) -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        made = await _post(serving, {"kind": "ciphertext", "inline": False})
        stored = await serving.bench.storage.head(TARGET)
        own = {name: value for name, value in stored.metadata.items() if name != "author"}
        assert made.document()["metadata"] == own
        assert set(own) >= {"enc-algo", "enc-dek-user", "enc-dek-admin", "enc-kek-user"}

    async def test_there_is_none_of_an_object_that_is_missing_or_deleted(self) -> None:
        serving = Serving()
        for _ in range(2):
            missing = await _post(serving, {"kind": "ciphertext"})
            assert (missing.status, missing.document()["code"]) == (404, "not_found")
            serving.bench.plant(deleted(serving.bench.desired, KEY), b"")

    async def test_there_is_none_of_plaintext(self) -> None:
        serving = Serving()
        serving.bench.allow_plaintext()
        serving.bench.plant({}, b"content")
        refused = await _post(serving, {"kind": "ciphertext"})
        assert (refused.status, refused.document()["code"]) == (400, "malformed_request")
        assert "Cobblestone-256" in refused.document()["detail"]
        assert serving.bench.storage.leases == []

    async def test_what_the_gateway_would_not_open_gets_no_link(self) -> None:
        """A forged object is reported here, and not only by the reader that was sent to it."""
        serving = Serving()
        serving.bench.plant_sealed(b"content", "other")
        stored = await serving.bench.storage.read_start(object_s3_key("acme", "other"), 200)
        serving.bench.plant(dict(stored[0].metadata), stored[1])  # moved to another key
        refused = await _post(serving, {"kind": "ciphertext"})
        assert (refused.status, refused.document()["code"]) == (502, "no_usable_wrap")
        assert serving.bench.storage.leases == []


async def test_a_link_is_made_under_the_key_of_now() -> None:
    bench = Bench(cache_s=0)
    serving = Serving(bench)
    bench.plant_sealed(b"content")
    before = await make_link(serving)
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    assert (await serving.ask(target=before, key=None)).status == 401
    made = await _post(serving, {}, key=NEW_API_KEY)
    after = urlsplit(made.document()["url"])
    assert (await serving.ask(target=f"{after.path}?{after.query}", key=None)).status == 200


# --- What a link opens, and how it is served: through the whole application (SPEC 9.3)


PLAINTEXT = os.urandom(20 * CHUNK + 7)
# Fixed: parameters of tests must be the same in every process of the suite.
EXPIRES = 4_000_000_000


def target_of(
    expires: int = EXPIRES,
    *,
    inline: bool = False,
    project: str = "acme",
    object_key: str = KEY,
    deployment: str = DEPLOYMENT,
    api_key: str = API_KEY,
    token: str | None = None,
) -> str:
    """Return the path and query of a link, made without the gateway."""
    claims = LinkClaims(project, object_key, expires, inline)
    own = link_token(kek_of(api_key, project), deployment, claims)
    link = Link(expires, inline, own if token is None else token)
    return f"{object_path(project, object_key)}?{link.query}"


def _serving(plaintext: bytes = PLAINTEXT, **more: Any) -> Serving:
    serving = Serving(**more)
    serving.bench.plant_sealed(plaintext)
    return serving


async def _open(serving: Serving, target: str, method: str = "GET", **headers: str) -> Connection:
    return await serving.ask(method, target, key=None, headers=headers)


async def _refusal(serving: Serving) -> Connection:
    return await serving.ask(target=PATH, key=NEW_API_KEY)


async def _check_refused(serving: Serving, target: str, method: str = "GET") -> None:
    """The refusal is that of a wrong key, in every byte."""
    refused = await serving.ask(method, target, key=None)
    expected = await _refusal(serving)
    assert refused.status == expected.status == 401
    assert refused.headers == expected.headers
    if method != "HEAD":
        assert refused.content == expected.content


class TestResponses:
    """A link is served like a request with the key, but for a few headers."""

    @pytest.mark.parametrize("inline", [False, True])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_the_object(self, method: str, *, inline: bool) -> None:
        serving = _serving()
        got = await _open(serving, await make_link(serving, inline=inline), method)
        own = await serving.ask(method)
        assert (got.status, got.content) == (200, PLAINTEXT if method == "GET" else b"")
        disposition = "inline" if inline else "attachment"
        assert got.headers == own.headers | {
            "content-disposition": f'{disposition}; filename="q3.pdf"',
            "cache-control": "private, no-store",
            "referrer-policy": "no-referrer",
        }
        assert got.headers["content-security-policy"] == "sandbox"

    async def test_a_stored_disposition_is_replaced(self) -> None:
        """A bucket writer chooses it: it could turn an attachment into a page."""
        serving = Serving()
        serving.bench.plant_sealed(b"x", restated={"content-disposition": "inline"})
        got = await _open(serving, target_of())
        assert got.headers["content-disposition"] == 'attachment; filename="q3.pdf"'
        assert (await serving.ask()).headers["content-disposition"] == "inline"

    async def test_ranges_and_conditions(self) -> None:
        serving = _serving()
        target = target_of(inline=True)
        etag = (await serving.ask("HEAD")).headers["etag"]
        part = await _open(serving, target, range=f"bytes={CHUNK - 1}-{CHUNK}")
        assert (part.status, part.content) == (206, PLAINTEXT[CHUNK - 1 : CHUNK + 1])
        assert part.headers["content-disposition"] == 'inline; filename="q3.pdf"'
        known = await _open(serving, target, **{"if-none-match": etag})
        outside = await _open(serving, target, range="bytes=9999999-")
        failed = await _open(serving, target, **{"if-match": '"x"'})
        assert (known.status, outside.status, failed.status) == (304, 416, 412)
        assert outside.headers["content-range"] == f"bytes */{len(PLAINTEXT)}"
        for got in (part, known, outside, failed):
            assert "no-store" in got.headers["cache-control"]
            assert got.headers["referrer-policy"] == "no-referrer"
        again = await _open(serving, target, range="bytes=0-0", **{"if-range": '"x"'})
        assert (again.status, again.content) == (200, PLAINTEXT)

    @pytest.mark.parametrize("body", ["missing", "tombstone", "corrupt"])
    async def test_problems(self, body: str) -> None:
        serving = Serving()
        if body == "tombstone":
            serving.bench.plant(deleted(serving.bench.desired, KEY), b"")
        elif body == "corrupt":
            serving.bench.plant({"enc-algo": "Cobblestone-256"}, b"x")
        got = await _open(serving, target_of())
        assert got.status == (502 if body == "corrupt" else 404)
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["referrer-policy"] == "no-referrer"

    @pytest.mark.parametrize("inline", [False, True])
    async def test_plaintext_is_streamed_and_never_redirected(self, *, inline: bool) -> None:
        """The storage's own headers would be in a redirect's response, not the link's."""
        serving = Serving(presign_plaintext=True)
        serving.bench.allow_plaintext()
        serving.bench.plant({}, b"content")
        target = target_of(inline=inline)
        got = await _open(serving, target)
        part = await _open(serving, target, range="bytes=-4")
        assert (got.status, got.content) == (200, b"content")
        assert (part.status, part.content) == (206, b"tent")
        assert serving.bench.storage.leases == []
        assert (await serving.ask()).status == 307

    async def test_an_authorization_header_is_ignored(self) -> None:
        """The link alone decides: the right key does not repair it, a wrong one does no harm."""
        serving = _serving()
        right = await serving.ask(target=target_of(), key=NEW_API_KEY)
        wrong = await serving.ask(target=target_of(token="t" * 43), key=API_KEY)
        assert (right.status, wrong.status) == (200, 401)

    async def test_other_methods_ignore_links(self) -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        deleted = await serving.ask("DELETE", target_of(), key=None)
        own = await serving.ask("DELETE", target_of(token="wrong"))
        assert (deleted.status, own.status) == (401, 202)

    async def test_a_download_name_is_ignored(self) -> None:
        got = await _open(_serving(), f"{target_of()}&download=a/b&download=")
        assert got.status == 200
        assert got.headers["content-disposition"] == 'attachment; filename="q3.pdf"'

    async def test_a_link_holds_a_place_of_its_project(self) -> None:
        serving = _serving(concurrency=4, project_share=0.25)
        storage = serving.bench.storage
        storage.pauses_at, storage.reached, storage.resumed = 1, asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(_open(serving, target_of()))
        await storage.reached.wait()
        assert (await _open(serving, target_of())).status == 429
        assert (await _open(serving, target_of(token="wrong"))).status == 401
        storage.resumed.set()
        assert (await first).status == 200


class TestRefusals:
    """Whatever is wrong with a link: the words of a wrong key."""

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "target",
        [
            target_of(1_000_000_000),
            target_of(0),
            target_of(10**15),
            target_of(api_key=NEW_API_KEY),
            target_of(deployment="other"),
            target_of(project="unknown"),
            target_of(project="No Project"),
            target_of(project="unknown").replace("unknown", "zero%00byte"),
            target_of(object_key="missing").replace("missing", KEY),
            target_of().replace("q3", "q4"),
            target_of().replace(KEY, f"{KEY}/"),
            target_of().replace(KEY, f"/{KEY}"),
            target_of().replace(KEY, f"x/../{KEY}"),
            target_of().replace("reports", "%ff"),
            target_of(object_key="a*b").replace("%2A", "%0A"),
            target_of(inline=True).replace("&inline=1", ""),
            target_of().replace("&token", "&inline=1&token"),
            target_of().replace(f"={EXPIRES}", f"={EXPIRES + 1}"),
            target_of().replace(f"={EXPIRES}", f"=0{EXPIRES}"),
            target_of().replace(f"expires={EXPIRES}&", ""),
            target_of() + "&inline=0",
            target_of() + f"&expires={EXPIRES}",
            target_of() + "&token",
            target_of(token=""),
            target_of(token="t" * 43),
            target_of() + "%3D",
        ],
    )
    async def test_the_refusal(self, target: str, method: str) -> None:
        await _check_refused(_serving(), target, method)

    async def test_a_link_of_another_project_opens_nothing_here(self) -> None:
        serving = _serving()
        link = target_of(project="other")
        await _check_refused(serving, link.replace("/other/", "/acme/"))

    async def test_a_link_ends_at_its_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        serving, expires = _serving(), 2_000_000_000
        now = [float(expires) - 0.001]
        monkeypatch.setattr(time, "time", lambda: now[0])
        assert (await _open(serving, target_of(expires))).status == 200
        now[0] = float(expires)
        await _check_refused(serving, target_of(expires))

    async def test_what_expired_or_is_malformed_costs_no_read(self) -> None:
        """Old links stay in pages and mail: they must not use up the lookups of wrong keys."""
        serving = _serving()
        for target in (target_of(5), target_of() + "&token=x", f"{PATH}?token"):
            assert (await _open(serving, target)).status == 401
        assert not serving.bench.storage.calls["read"]

    async def test_a_rotation_ends_every_link(self) -> None:
        bench = Bench(cache_s=0)
        serving = Serving(bench)
        bench.plant_sealed(b"content")
        assert (await _open(serving, target_of())).status == 200
        bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
        await _check_refused_after_rotation(serving, target_of())
        assert (await _open(serving, target_of(api_key=NEW_API_KEY))).status == 200

    async def test_an_object_that_was_rewrapped_ends_the_link_within_the_cache_time(self) -> None:
        """The cached keyring would accept the link; the object shows that there is a newer one."""
        bench = Bench(cache_s=60)
        serving = Serving(bench)
        bench.plant_sealed(b"content")
        assert (await _open(serving, target_of())).status == 200
        bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
        assert (await _open(serving, target_of())).status == 200  # of the generation in the cache
        bench.plant_sealed(b"content")
        await _check_refused_after_rotation(serving, target_of())

    async def test_nothing_about_the_object_is_read(self) -> None:
        serving = _serving()
        await _open(serving, target_of(token="t" * 43))
        assert set(serving.bench.storage.calls) == {"read"}


async def _check_refused_after_rotation(serving: Serving, target: str) -> None:
    refused = await _open(serving, target)
    assert refused.status == 401
    assert refused.content == (await serving.ask(key=API_KEY)).content


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    at=st.integers(len("/v1/projects/"), len(target_of(inline=True)) - 1),
    byte=st.sampled_from([*map(ord, string.printable[:95].replace("#", "")), 0x80, 0xFF]),
    how=st.sampled_from(["replace", "insert", "remove"]),
)
def test_a_link_altered_in_any_byte_is_refused_or_means_the_same(
    at: int, byte: int, how: str
) -> None:
    """What is not refused says, by the rules of URLs, the same as the link itself."""
    link = target_of(inline=True)
    kept = link[at + 1 :] if how != "insert" else link[at:]
    changed = link[:at] + ("" if how == "remove" else chr(byte)) + kept

    async def check() -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        got = await serving.ask(target=changed, key=None)
        if got.status == 200:
            assert got.content == b"content"
            assert _meaning(changed) == _meaning(link)
        elif changed.startswith("/v1/projects/acme/objects/") or got.status != 404:
            path, _, query = changed.partition("?")
            # Only objects have links: without the slash after it, `objects` is a listing.
            is_link = "/objects/" in path and Query(query.encode("latin-1")).is_link
            expected = _refusal(serving) if is_link else serving.ask(target=PATH, key=None)
            assert got.content == (await expected).content
            assert got.status == 401
        else:
            assert b"there is no such path" in got.content

    asyncio.run(check())


def _meaning(target: str) -> tuple[Any, ...]:
    """Parse a link by its own means: the path, and each parameter that has a meaning."""
    path, _, query = target.partition("?")
    parameters = sorted(
        (name, value)
        for name, _, value in (field.partition("=") for field in query.split("&"))
        if name in ("expires", "inline", "token")
    )
    return parse_object_path(path.encode()), parameters


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [f"expires={EXPIRES}", "inline=1", "token", f"expires={EXPIRES + 1}", "x=1", "download"]
        ),
        max_size=3,
    ),
    st.sets(st.sampled_from(["expires", "inline"])),
)
def test_parameters_added_or_removed_are_refused_unless_they_have_no_meaning(
    added: list[str], removed: set[str]
) -> None:
    path, _, query = target_of(inline=True).partition("?")
    left = [field for field in query.split("&") if field.partition("=")[0] not in removed]
    target = f"{path}?{'&'.join([*left, *added])}"

    async def check() -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        got = await serving.ask(target=target, key=None)
        assert got.status == (200 if _meaning(target) == _meaning(target_of(inline=True)) else 401)

    asyncio.run(check())


# Verifiers with one rule taken out: the message of their MAC.
BROKEN: dict[str, Callable[[LinkClaims], bytes]] = {
    "leaves out whether it is inline": lambda claims: label(
        claims.project, claims.object_key, str(claims.expires)
    ),
    "joins the parts by nothing": lambda claims: (
        f"{claims.project}{claims.object_key}{claims.expires}"
        f"{'inline' if claims.inline else 'attachment'}"
    ).encode(),
    "leaves out the expiry": lambda claims: label(
        claims.project, claims.object_key, str(claims.inline)
    ),
    "leaves out the object": lambda claims: label(
        claims.project, str(claims.expires), str(claims.inline)
    ),
}


async def _forgeries(serving: Serving) -> list[str]:
    """Change links that the gateway gave out into other ones; return what it accepts of them."""
    longer = f"{KEY}2"
    serving.bench.plant_sealed(b"shorter")
    serving.bench.plant_sealed(b"longer", longer)
    link = await make_link(serving, f"{object_path('acme', longer)}/links")
    expires = parse_qs(urlsplit(link).query)["expires"][0]
    assert (await _open(serving, link)).content == b"longer"
    forged = {
        "shown in place of saved": f"{link}&inline=1",
        "later": link.replace(f"={expires}", f"={int(expires) + 60}"),
        "another object": link.replace(longer, KEY),
        "a digit moved from the key to the expiry": link.replace(longer, KEY).replace(
            f"={expires}", f"=2{expires}"
        ),
    }
    return [name for name, url in forged.items() if (await _open(serving, url)).status == 200]


async def test_no_link_can_be_changed_into_another() -> None:
    assert await _forgeries(Serving()) == []


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_verifier_is_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def token(kek: Secret, deployment: str, claims: LinkClaims) -> str:
        del deployment
        mac = hmac.digest(kek.reveal(), BROKEN[broken](claims), "sha256")
        return urlsafe_b64encode(mac).decode().rstrip("=")

    def is_token(given: str, kek: Secret, deployment: str, claims: LinkClaims) -> bool:
        return hmac.compare_digest(given, token(kek, deployment, claims))

    monkeypatch.setattr(links, "link_token", token)
    monkeypatch.setattr(auth_module, "is_link_token", is_token)
    assert await _forgeries(Serving()) != []
