"""What a link opens, and how it is served: through the whole application (SPEC 9.3)."""

from __future__ import annotations

import asyncio
import hmac
import os
import string
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import LinkClaims, Secret, link_token
from keyturn.crypto.labels import label
from keyturn_workers.gateway import auth as auth_module
from keyturn_workers.gateway import links
from keyturn_workers.gateway.request import Link, Query, link_query, object_path, parse_object_path
from tests.unit.keyturn_workers.factories import deleted
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    CHUNK,
    DEPLOYMENT,
    KEY,
    NEW_API_KEY,
    Bench,
    kek_of,
    turned_to,
)
from tests.unit.keyturn_workers.gateway.serving import PATH, Serving
from tests.unit.keyturn_workers.gateway.test_link_routes import make_link

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tests.unit.keyturn_workers.gateway.asgi import Connection

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
    query = link_query(Link(expires, inline, own if token is None else token))
    return f"{object_path(project, object_key)}?{query}"


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
        serving.bench.allow(plaintext=True)
        serving.bench.plant({}, b"content")
        target = target_of(inline=inline)
        got = await _open(serving, target)
        part = await _open(serving, target, range="bytes=-4")
        assert (got.status, got.content) == (200, b"content")
        assert (part.status, part.content) == (206, b"tent")
        assert serving.bench.storage.leases == []
        assert (await serving.ask()).status == 307

    async def test_an_object_of_the_earlier_system(self) -> None:
        serving = Serving()
        serving.bench.allow(v0=True)
        serving.bench.plant_v0(b"content", bytes(32), bytes(32))
        got = await _open(serving, target_of())
        assert (got.status, got.content) == (200, b"content")

    async def test_an_authorization_header_is_ignored(self) -> None:
        """The link alone decides: the right key does not repair it, a wrong one does no harm."""
        serving = _serving()
        right = await serving.ask(target=target_of(), key=NEW_API_KEY)
        wrong = await serving.ask(target=target_of(token="t" * 43), key=API_KEY)
        assert (right.status, wrong.status) == (200, 401)

    async def test_other_methods_ignore_links(self) -> None:
        serving = Serving()
        put = await serving.ask("PUT", target_of(), key=None, body=b"x")
        own = await serving.ask("PUT", target_of(token="wrong"), body=b"x")
        assert (put.status, own.status) == (401, 202)

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
@settings(max_examples=1000, deadline=None)
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
            is_link = Query(changed.partition("?")[2].encode("latin-1")).is_link
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
