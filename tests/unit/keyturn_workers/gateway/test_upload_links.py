"""Links that upload one object: how they are made, and what they let in (SPEC 9.3)."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import string
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import Secret, UploadLinkClaims, link_token
from keyturn.crypto.labels import label
from keyturn.identifiers import object_s3_key
from keyturn.messages import INLINE_MAX_BYTES, UploadRejected, UploadStored
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from keyturn_workers.gateway import auth as auth_module
from keyturn_workers.gateway import links
from keyturn_workers.gateway.request import (
    Query,
    UploadLink,
    object_path,
    parse_object_path,
)
from tests.unit.keyturn_workers.factories import deleted
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    DEPLOYMENT,
    KEY,
    NEW_API_KEY,
    Bench,
    kek_of,
    turned_to,
)
from tests.unit.keyturn_workers.gateway.serving import PATH, Connection, Serving, ask
from tests.unit.keyturn_workers.gateway.test_links import make_link, target_of
from tests.unit.keyturn_workers.gateway.test_uploads import until_taken

if TYPE_CHECKING:
    from collections.abc import Callable

EXPIRES = 4_000_000_000
LINKS = f"{PATH}/links"
_HOST = {"host": "files.example.com"}
_PDF = {"content-type": "application/pdf"}
_AT = "2026-11-24T10:00:00.000000Z"


def upload_target(
    expires: int = EXPIRES,
    *,
    max_bytes: int = 10,
    content_type: str | None = "application/pdf",
    project: str = "acme",
    object_key: str = KEY,
    deployment: str = DEPLOYMENT,
    api_key: str = API_KEY,
    token: str | None = None,
) -> str:
    """Return the path and query of an upload link, made without the gateway."""
    claims = UploadLinkClaims(project, object_key, expires, max_bytes, content_type)
    own = link_token(kek_of(api_key, project), deployment, claims)
    link = UploadLink(expires, max_bytes, content_type, own if token is None else token)
    return f"{object_path(project, object_key)}?{link.query}"


async def _put(serving: Serving, target: str, body: Any = b"body", **headers: str) -> Connection:
    return await serving.ask("PUT", target, key=None, body=body, headers=headers)


async def _check_refused(serving: Serving, target: str, **headers: str) -> None:
    """The refusal is that of a wrong key, in every byte."""
    refused = await _put(serving, target, **headers)
    expected = await serving.ask("PUT", key=NEW_API_KEY, body=b"body")
    assert refused.status == expected.status == 401
    assert (refused.headers, refused.content) == (expected.headers, expected.content)
    assert not serving.publisher.uploads


class TestMaking:
    @pytest.mark.parametrize(
        ("asked", "expires_s", "content_type"),
        [
            ({"max_bytes": 10}, 3600, None),
            ({"max_bytes": 10**6, "expires_s": 604800}, 604800, None),
            ({"max_bytes": 1, "content_type": "image/png"}, 3600, "image/png"),
            ({"max_bytes": 1, "content_type": 'text/x; a="b+c&d"'}, 3600, 'text/x; a="b+c&d"'),
            ({"max_bytes": 1, "content_type": "x" * 255}, 3600, "x" * 255),
            ({"max_bytes": 1, "inline": False, "kind": "object"}, 3600, None),
        ],
    )
    async def test_a_link_says_what_it_lets_in(
        self, asked: dict[str, Any], expires_s: int, content_type: str | None
    ) -> None:
        serving = Serving()
        before = math.ceil(time.time()) + expires_s
        target = await make_link(serving, method="PUT", **asked)
        after = math.ceil(time.time()) + expires_s
        path, _, query = target.partition("?")
        names = ["expires", "max_bytes", *["content_type"] * (content_type is not None), "token"]
        parameters = dict(parse_qsl(query, strict_parsing=True))
        assert (path, list(parameters)) == (PATH, names)
        assert before <= int(parameters["expires"]) <= after
        assert parameters["max_bytes"] == str(asked["max_bytes"])
        assert parameters.get("content_type") == content_type
        assert serving.bench.storage.calls == {"read": 1}  # the keyring
        assert (await _put(serving, target, b"x")).status == 202
        (upload,) = serving.publisher.uploads
        assert (upload.key, upload.body, upload.content_type) == (KEY, b"x", content_type)

    @pytest.mark.parametrize(
        "asked",
        [
            {"method": "PUT"},
            {"method": "PUT", "max_bytes": None},
            {"method": "PUT", "max_bytes": -1},
            {"method": "PUT", "max_bytes": 1.0},
            {"method": "PUT", "max_bytes": "10"},
            {"method": "PUT", "max_bytes": True},
            {"method": "PUT", "max_bytes": 10**6 + 1},
            {"method": "PUT", "max_bytes": 10**400},
            {"method": "PUT", "max_bytes": 10, "content_type": ""},
            {"method": "PUT", "max_bytes": 10, "content_type": " text/x"},
            {"method": "PUT", "max_bytes": 10, "content_type": "text/x "},
            {"method": "PUT", "max_bytes": 10, "content_type": "text/x\n"},
            {"method": "PUT", "max_bytes": 10, "content_type": "text/\0"},
            {"method": "PUT", "max_bytes": 10, "content_type": "text/ü"},
            {"method": "PUT", "max_bytes": 10, "content_type": "x" * 256},
            {"method": "PUT", "max_bytes": 10, "content_type": ["text/x"]},
            {"method": "PUT", "max_bytes": 10, "inline": True},
            {"method": "PUT", "max_bytes": 10, "kind": "ciphertext"},
            {"method": "PUT", "max_bytes": 10, "expires_s": 604801},
            {"method": "put", "max_bytes": 10},
            {"method": "DELETE"},
            {"method": None, "max_bytes": 10},
            {"max_bytes": 0},
            {"method": "GET", "content_type": "text/x"},
            {"kind": "ciphertext", "max_bytes": 10},
        ],
    )
    async def test_what_is_no_upload_link_is_a_400(self, asked: dict[str, Any]) -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        body = json.dumps(asked).encode()
        refused = await serving.ask("POST", LINKS, body=body, headers=_HOST)
        assert (refused.status, refused.document()["code"]) == (400, "malformed_request")
        assert refused.document()["detail"]

    async def test_a_link_makes_no_links(self) -> None:
        query = upload_target().partition("?")[2]
        refused = await Serving().ask("POST", f"{LINKS}?{query}", key=None, headers=_HOST)
        assert refused.status == 401


class TestWhatIsLetIn:
    async def test_one_body_of_the_links_own_type(self) -> None:
        serving = Serving()
        got = await _put(serving, upload_target(), b"x" * 10, **_PDF)
        assert got.status == 202
        (upload,) = serving.publisher.uploads
        assert (upload.project, upload.key, upload.body) == ("acme", KEY, b"x" * 10)
        assert (upload.content_type, upload.metadata) == ("application/pdf", {})
        assert got.document() == {"upload_id": upload.upload_id}

    async def test_an_authorization_header_is_ignored(self) -> None:
        """The link alone decides: the right key lifts none of its bounds."""
        serving = Serving()
        wrong = await serving.ask("PUT", upload_target(token="t" * 43), body=b"x")
        large = await serving.ask("PUT", upload_target(), body=b"x" * 11)
        typed = await serving.ask("PUT", upload_target(), headers={"content-type": "text/x"})
        right = await serving.ask("PUT", upload_target(), key=NEW_API_KEY, body=b"x")
        assert [got.status for got in (wrong, large, typed, right)] == [401, 413, 415, 202]

    async def test_the_outcome_is_waited_for(self) -> None:
        serving = Serving()
        serving.publisher.answer = lambda upload_id: UploadStored(
            upload_id=upload_id, project="acme", key=KEY, size=4, generation=1, at=_AT
        )
        got = await _put(serving, upload_target(), prefer="wait=5")
        assert (got.status, got.headers["preference-applied"]) == (201, "wait=5")
        assert got.headers["location"] == PATH  # without the link's query

    @pytest.mark.parametrize(
        ("body", "headers"),
        [
            ([b"x" * 6, b"x" * 5, None], {}),
            ([b"x" * 11], {}),
            ([None], {"content-length": "11"}),
            ([None], {"content-length": "9" * 30}),
        ],
    )
    async def test_more_bytes_than_the_link_allows_are_a_413(
        self, body: list[bytes | None], headers: dict[str, str]
    ) -> None:
        """By the stated length before anything is read; without one, as they come."""
        serving = Serving(idle_timeout_s=5)
        got = await _put(serving, upload_target(), body, **headers)
        assert (got.status, got.document()["code"]) == (413, "body_too_large")
        assert got.document()["detail"] == "at most 10 bytes"
        assert not serving.publisher.uploads
        assert (await _put(serving, upload_target(), b"x" * 10)).status == 202

    async def test_a_link_may_be_for_an_empty_body(self) -> None:
        serving = Serving()
        target = await make_link(serving, method="PUT", max_bytes=0)
        assert (await _put(serving, target, b"x")).status == 413
        assert (await _put(serving, target, b"")).status == 202
        assert serving.publisher.uploads[0].body == b""

    async def test_the_gateways_own_limit_holds_too(self) -> None:
        serving = Serving(max_bytes=5)
        target = upload_target()
        assert (await _put(serving, target, b"x" * 6)).status == 413
        assert (await _put(serving, target, b"x" * 5)).status == 202

    @pytest.mark.parametrize(
        ("own", "sent", "status"),
        [
            ("text/plain", None, 202),
            ("text/plain", "text/plain", 202),
            ("text/plain", "Text/PLAIN", 202),
            ("Text/Plain", "text/plain", 202),
            ("text/plain", "text/plain; charset=utf-8", 415),
            ("text/plain; charset=utf-8", "text/plain", 415),
            ("text/plain; charset=utf-8", "text/plain;charset=utf-8", 415),
            ("text/plain; charset=utf-8", "TEXT/plain; charset=UTF-8", 202),
            ("text/plain", "text/html", 415),
            ("text/plain", "text/plain, text/html", 415),
            ("text/plain", "", 415),
            ("text/plain", "text/plain\xa0", 415),
            (None, "text/html", 202),
            (None, None, 202),
        ],
    )
    async def test_content_types(self, own: str | None, sent: str | None, status: int) -> None:
        serving = Serving()
        headers = {} if sent is None else {"content-type": sent}
        got = await _put(serving, upload_target(content_type=own), **headers)
        assert got.status == status
        if status == 415:
            assert got.document()["code"] == "unsupported_media_type"
            assert not serving.publisher.uploads
        else:
            assert serving.publisher.uploads[0].content_type == (own or sent)

    async def test_two_content_types_are_a_415(self) -> None:
        serving = Serving()
        twice = [("content-type", "application/pdf"), ("content-type", "text/html")]
        got = await ask(serving.app, "PUT", upload_target(), headers=twice, body=b"x")
        assert got.status == 415

    @pytest.mark.parametrize("name", ["x-keyturn-meta-author", "X-Keyturn-Meta-a"])
    async def test_there_is_no_metadata_by_link(self, name: str) -> None:
        serving = Serving()
        got = await _put(serving, upload_target(), **{name: "kim"})
        assert (got.status, got.document()["code"]) == (400, "malformed_request")
        assert "metadata" in got.document()["detail"]
        assert not serving.publisher.uploads

    async def test_a_key_that_is_in_use_has_used_the_link_up(self) -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        got = await _put(serving, upload_target(), [None])
        assert (got.status, got.document()["code"]) == (409, "already_exists")
        serving.bench.plant(deleted(serving.bench.desired, KEY), b"")
        got = await _put(serving, upload_target(), [None])
        assert (got.status, got.document()["code"]) == (409, "deleted_key")

    @pytest.mark.parametrize(
        ("key", "spelled"),
        [
            ("a b", "a%20b"),
            ("a/b", "a%2Fb"),
            ("a/b", "a%2fb"),
            ("reports", "%72eports"),
            ("ü+&?#", None),
            ("a/links", None),
            ("100%25", None),
            ("k" * 900, None),
        ],
    )
    async def test_a_key_may_be_spelled_in_another_way(self, key: str, spelled: str | None) -> None:
        """The MAC is over the key itself: no spelling reaches another one."""
        serving = Serving()
        target = upload_target(object_key=key)
        if spelled is not None:
            target = target.replace(
                object_path("acme", key), f"/v1/projects/acme/objects/{spelled}"
            )
        assert (await _put(serving, target)).status == 202
        assert serving.publisher.uploads[0].key == key

    @pytest.mark.parametrize(
        "change",
        [
            ("&token", "&utm_source=mail&utm_source=mail&token"),
            ("&token", "&inline=1&download=x&token"),
            ("expires", "%65xpires"),
            ("application%2Fpdf", "application/pdf"),
            ("=10&", "=%31%30&"),
        ],
    )
    async def test_other_parameters_and_encodings_have_no_meaning(
        self, change: tuple[str, str]
    ) -> None:
        serving = Serving()
        target = upload_target()
        assert target.count(change[0]) == 1
        assert (await _put(serving, target.replace(*change), **_PDF)).status == 202


class TestOneAtATime:
    async def test_a_second_body_waits_for_the_outcome_of_the_first(self) -> None:
        serving = Serving()
        assert (await _put(serving, upload_target())).status == 202
        refused = await _put(serving, upload_target(), [None])
        assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
        assert "this link" in refused.document()["detail"]
        assert refused.headers["retry-after"] == "1"
        # Another link is another link, and the API key is none.
        assert (await _put(serving, upload_target(max_bytes=11))).status == 202
        assert (await _put(serving, upload_target(object_key="other"))).status == 202
        assert (await serving.ask("PUT", body=b"own")).status == 202
        serving.publisher.answer = lambda upload_id: UploadRejected(
            upload_id=upload_id, project="acme", key=KEY, code="bad_seal", detail="", at=_AT
        )
        serving.publisher.telling.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (await _put(serving, upload_target())).status == 202
        assert len(serving.publisher.uploads) == 5
        await serving.gateway.close()

    @pytest.mark.parametrize("size", [1, INLINE_MAX_BYTES + 1])
    async def test_while_one_is_being_received(self, size: int) -> None:
        serving = Serving(idle_timeout_s=0.2)
        target = upload_target(max_bytes=10**6)
        slow = Connection()
        asking = asyncio.create_task(
            serving.ask("PUT", target, key=None, body=[bytes(size), None], on=slow)
        )
        await until_taken(slow)
        assert (await _put(serving, target)).status == 429
        slow.gone.set()
        await asking
        assert (await _put(serving, target)).status == 202  # what failed does not count

    @pytest.mark.parametrize(
        ("failure", "after"), [(NotDeliveredError("no route"), 202), (OutcomeUnknownError(), 429)]
    )
    async def test_after_a_publish_that_failed(self, failure: Exception, after: int) -> None:
        serving = Serving()
        serving.publisher.fails = failure
        assert (await _put(serving, upload_target())).status == 503
        serving.publisher.fails = None
        assert (await _put(serving, upload_target())).status == after
        await serving.gateway.close()

    async def test_a_refusal_leaves_the_link_as_it_was(self) -> None:
        serving = Serving()
        for headers in ({"content-type": "text/x"}, {"x-keyturn-meta-a": "b"}, {"if-match": "*"}):
            assert (await _put(serving, upload_target(), **headers)).status in (400, 412, 415)
        assert (await _put(serving, upload_target(), b"x" * 11)).status == 413
        assert (await _put(serving, upload_target())).status == 202
        await serving.gateway.close()

    async def test_uploads_by_link_count_for_the_project(self) -> None:
        serving = Serving(max_pending=1)
        assert (await _put(serving, upload_target())).status == 202
        assert (await serving.ask("PUT", object_path("acme", "b"), body=b"b")).status == 429
        busy = await _put(serving, upload_target(object_key="c"))
        assert (busy.status, "project" in busy.document()["detail"]) == (429, True)
        await serving.gateway.close()


class TestRefusals:
    """Whatever is wrong with a link: the words of a wrong key, and nothing is published."""

    @pytest.mark.parametrize(
        "target",
        [
            upload_target(1_000_000_000),
            upload_target(0),
            upload_target(10**15),
            upload_target(api_key=NEW_API_KEY),
            upload_target(deployment="other"),
            upload_target(project="unknown"),
            upload_target(project="No Project"),
            upload_target(project="unknown").replace("unknown", "zero%00byte"),
            upload_target(project="other").replace("/other/", "/acme/"),
            upload_target(object_key="other").replace("other", KEY),
            upload_target().replace("q3", "q4"),
            upload_target().replace("q3", "Q3"),
            upload_target().replace(KEY, f"{KEY}/"),
            upload_target().replace(KEY, f"x/../{KEY}"),
            upload_target().replace("reports", "%ff"),
            upload_target().replace("reports", "%2572eports"),
            upload_target(object_key="\u00e9").replace("%C3%A9", "e%CC%81"),
            upload_target(object_key="a*b").replace("%2A", "%00"),
            upload_target().replace(f"={EXPIRES}", f"={EXPIRES + 1}"),
            upload_target().replace(f"={EXPIRES}", f"=0{EXPIRES}"),
            upload_target().replace(f"={EXPIRES}", f"=%2B{EXPIRES}"),
            upload_target().replace(f"expires={EXPIRES}&", ""),
            upload_target().replace("max_bytes=10", "max_bytes=11"),
            upload_target().replace("max_bytes=10", "max_bytes=010"),
            upload_target().replace("max_bytes=10", "max_bytes=+10"),
            upload_target().replace("max_bytes=10", "max_bytes=10.0"),
            upload_target().replace("max_bytes=10", "max_bytes=1_0"),
            upload_target().replace("max_bytes=10", "max_bytes=%D9%A1%D9%A0"),
            upload_target().replace("max_bytes=10", "max_bytes="),
            upload_target().replace("max_bytes=10", "max_bytes=" + "9" * 5000),
            upload_target().replace("max_bytes=10&", ""),
            upload_target().replace("max_bytes=10", "MAX_BYTES=10"),
            upload_target(max_bytes=0).replace("=0&", "=00&"),
            upload_target(max_bytes=0).replace("=0&", "=-0&"),
            upload_target().replace("pdf", "PDF"),
            upload_target().replace("pdf", "pdf%20"),
            upload_target().replace("pdf", "pdf%00"),
            upload_target().replace("pdf", "pdf%0A"),
            upload_target().replace("application%2Fpdf", ""),
            upload_target().replace("content_type=application%2Fpdf&", ""),
            upload_target(content_type=None) + "&content_type=application%2Fpdf",
            upload_target(content_type=None) + "&content_type=",
            upload_target() + "&content_type=application%2Fpdf",
            upload_target() + "&content_type=text%2Fhtml",
            upload_target() + "&max_bytes=10",
            upload_target() + f"&expires={EXPIRES}",
            upload_target() + "&token",
            upload_target() + "%3D",
            upload_target(token=""),
            upload_target(token="t" * 43),
            target_of(),
            target_of(inline=True),
            target_of().replace("&token", "&max_bytes=10&token"),
        ],
    )
    async def test_the_refusal(self, target: str) -> None:
        await _check_refused(Serving(), target, **_PDF)

    async def test_a_link_ends_at_its_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        serving, expires = Serving(), 2_000_000_000
        now = [float(expires)]
        monkeypatch.setattr(time, "time", lambda: now[0])
        await _check_refused(serving, upload_target(expires))
        now[0] -= 0.001
        assert (await _put(serving, upload_target(expires))).status == 202

    async def test_a_rotation_ends_every_link(self) -> None:
        bench = Bench(cache_s=0)
        serving = Serving(bench)
        link = await make_link(serving, method="PUT", max_bytes=10)
        bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
        refused = await _put(serving, link)
        assert refused.status == 401
        assert refused.content == (await serving.ask("PUT", key=API_KEY, body=b"x")).content
        assert not serving.publisher.uploads
        assert (await _put(serving, upload_target(api_key=NEW_API_KEY))).status == 202

    async def test_a_rotation_before_the_marks_are_known_ends_it_too(self) -> None:
        """A caller by link is authenticated again, and stays bound by the link."""
        bench = Bench(cache_s=60)
        serving = Serving(bench)
        caller = await bench.auth.authenticate_link(
            "acme", KEY, Query(upload_target().partition("?")[2].encode()).upload_link()
        )
        assert caller.upload_link is not None
        again = await bench.auth.reauthenticate(caller)
        assert again.upload_link == caller.upload_link
        assert serving.publisher.uploads == []

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_it_reads_nothing(self, method: str) -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        got = await serving.ask(method, upload_target(), key=None)
        assert got.status == 401
        assert set(serving.bench.storage.calls) <= {"read"}

    async def test_it_deletes_lists_and_rotates_nothing(self) -> None:
        serving = Serving()
        serving.bench.plant_sealed(b"content")
        path, _, query = upload_target().partition("?")
        for method, target in (
            ("DELETE", path),
            ("GET", "/v1/projects/acme/objects"),
            ("POST", "/v1/projects/acme/rotations"),
            ("POST", LINKS),
        ):
            assert (await serving.ask(method, f"{target}?{query}", key=None)).status == 401
        assert await serving.bench.storage.head(object_s3_key("acme", KEY))
        assert serving.publisher.deletes == serving.publisher.rotations == []

    async def test_what_expired_or_is_malformed_costs_no_read(self) -> None:
        serving = Serving()
        for target in (upload_target(5), upload_target() + "&token=x", target_of()):
            assert (await _put(serving, target)).status == 401
        assert not serving.bench.storage.calls["read"]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    at=st.integers(len("/v1/projects/"), len(upload_target()) - 1),
    byte=st.sampled_from([*map(ord, string.printable[:95].replace("#", "")), 0x80, 0xFF]),
    how=st.sampled_from(["replace", "insert", "remove"]),
)
def test_a_link_altered_in_any_byte_is_refused_or_means_the_same(
    at: int, byte: int, how: str
) -> None:
    link = upload_target()
    kept = link[at + 1 :] if how != "insert" else link[at:]
    changed = link[:at] + ("" if how == "remove" else chr(byte)) + kept

    async def check() -> None:
        serving = Serving()
        got = await _put(serving, changed, **_PDF)
        if got.status == 202:
            assert _meaning(changed) == _meaning(link)
            assert serving.publisher.uploads[0].key == KEY
        else:
            assert got.status in (401, 404)
            assert not serving.publisher.uploads

    asyncio.run(check())


def _meaning(target: str) -> tuple[Any, ...]:
    path, _, query = target.partition("?")
    names = ("expires", "max_bytes", "content_type", "token")
    parameters = {n: v for n, v in parse_qs(query, keep_blank_values=True).items() if n in names}
    return parse_object_path(path.encode()), parameters


# Verifiers with one rule taken out: the message of their MAC.
BROKEN: dict[str, Callable[[UploadLinkClaims], bytes]] = {
    "leaves out the size": lambda claims: label(
        claims.project, claims.object_key, str(claims.expires), claims.content_type or ""
    ),
    "leaves out the type": lambda claims: label(
        claims.project, claims.object_key, str(claims.expires), str(claims.max_bytes)
    ),
    "joins the numbers by nothing": lambda claims: label(
        claims.project,
        claims.object_key,
        f"{claims.expires}{claims.max_bytes}",
        claims.content_type or "",
    ),
    "leaves out the object": lambda claims: label(
        claims.project, str(claims.expires), *claims.terms
    ),
}


async def _forgeries() -> list[str]:
    """Change a link that the gateway gave out into other ones; return what is accepted of them."""
    made = await make_link(Serving(), method="PUT", max_bytes=25, content_type="image/png")
    expires = parse_qs(urlsplit(made).query)["expires"][0]
    forged = {
        "larger": made.replace("max_bytes=25", "max_bytes=99"),
        "another type": made.replace("png", "gif"),
        "any type": made.replace("&content_type=image%2Fpng", ""),
        "another object": made.replace(quote(KEY), "other"),
        "a digit moved from the size to the expiry": made.replace(
            f"expires={expires}&max_bytes=25", f"expires={expires}2&max_bytes=5"
        ),
    }
    accepted = []
    for name, target in forged.items():
        serving = Serving()
        if (await _put(serving, target, b"x")).status == 202:
            accepted.append(name)
    return accepted


async def test_no_link_can_be_changed_into_another() -> None:
    assert await _forgeries() == []


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_verifier_is_caught(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def token(kek: Secret, deployment: str, claims: UploadLinkClaims) -> str:
        del deployment
        mac = hmac.digest(kek.reveal(), BROKEN[broken](claims), "sha256")
        return urlsafe_b64encode(mac).decode().rstrip("=")

    def is_token(given: str, kek: Secret, deployment: str, claims: UploadLinkClaims) -> bool:
        return hmac.compare_digest(given, token(kek, deployment, claims))

    monkeypatch.setattr(links, "link_token", token)
    monkeypatch.setattr(auth_module, "is_link_token", is_token)
    assert await _forgeries() != []
