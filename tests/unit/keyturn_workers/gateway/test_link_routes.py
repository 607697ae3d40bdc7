"""Links over HTTP: made for the holder of the current key, opened without it (SPEC 9.3)."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import HEADER_BYTES
from keyturn.identifiers import object_s3_key
from keyturn_workers.gateway.request import object_path
from tests.unit.keyturn_workers.factories import deleted
from tests.unit.keyturn_workers.gateway.asgi import ask
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    CHUNK,
    KEY,
    NEW_API_KEY,
    TARGET,
    Bench,
    turned_to,
)
from tests.unit.keyturn_workers.gateway.serving import PATH, Serving

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.unit.keyturn_workers.gateway.asgi import Connection

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

    @pytest.mark.parametrize("kind", ["plaintext", "v0"])
    async def test_there_is_none_of_an_object_of_another_format(self, kind: str) -> None:
        serving = Serving()
        serving.bench.allow(plaintext=True, v0=True)
        if kind == "plaintext":
            serving.bench.plant({}, b"content")
        else:
            serving.bench.plant_v0(b"content", bytes(32), bytes(32))
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
