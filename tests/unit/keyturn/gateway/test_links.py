"""Links of the Python client: checked, used without an API key, shown nowhere (SPEC 9.3)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    GatewayError,
    GatewayUnavailableError,
    MalformedRequestError,
    ResponseLostError,
    TooManyRequestsError,
    UnauthorizedError,
    UnexpectedResponseError,
    UnsupportedMediaTypeError,
    UploadPendingError,
)
from keyturn.gateway import CiphertextLink, Link, UploadLink, UploadReceipt, upload_to
from keyturn.gateway.links import (
    ciphertext_link_request,
    link_request,
    parse_ciphertext_link,
    parse_link,
    parse_upload_link,
)
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    EXPIRES_AT,
    TOKEN,
    UPLOADED,
    always,
    ciphertext_link_document,
    connected,
    drop,
    json_always,
    link_document,
    own_frames,
    problem,
    serving,
)

if TYPE_CHECKING:
    from aiohttp import web

    from tests.unit.keyturn.gateway.gateway import Answer


@pytest.mark.parametrize("key", ["k", "a b/é", "100%25", "q?x=y#z", "v1/projects/other/objects/k"])
@pytest.mark.parametrize("inline", [False, True])
def test_a_link_to_the_object_is_taken(key: str, *, inline: bool) -> None:
    document = link_document(key, inline=inline)
    expected = Link(document["url"], EXPIRES_AT)
    assert parse_link(document, "acme", key, inline=inline) == expected
    assert parse_link(document, "acme", key, inline=not inline) is None
    assert parse_link(document, "other", key, inline=inline) is None
    assert parse_link(document, "acme", f"x{key}", inline=inline) is None


def test_no_link_shows_itself() -> None:
    shown = [
        repr(parse_link(link_document("k"), "acme", "k", inline=False)),
        repr(parse_ciphertext_link(ciphertext_link_document())),
    ]
    assert not [text for text in shown if TOKEN in text or "c2VhbGVk" in text]


_URL = link_document("k")["url"]


@pytest.mark.parametrize(
    "change",
    [
        {"url": None},
        {"url": 7},
        {"url": ""},
        {"url": _URL.removeprefix("https:")},
        {"url": _URL.replace("https:", "javascript:")},
        {"url": _URL.replace("//", "//user@")},
        {"url": _URL + "#fragment"},
        {"url": _URL + "\n"},
        {"url": _URL + "&more=1"},
        {"url": _URL + f"&token={TOKEN}"},
        {"url": _URL[:-1]},
        {"url": _URL[:-1] + "="},
        {"url": _URL.partition("&token")[0]},
        {"url": _URL.partition("?")[0]},
        {"url": _URL.replace("expires=1", "expires=01")},
        {"url": _URL.replace("expires=1", "expires=2")},
        {"expires_at": None},
        {"expires_at": 1795518000},
        {"expires_at": "2026-11-24T11:00:00"},
        {"expires_at": "2026-11-24T11:00:00.5Z"},
        {"expires_at": "2026-11-24T11:00:01Z"},
    ],
)
def test_a_link_of_another_form_is_none(change: dict[str, Any]) -> None:
    assert parse_link({**link_document("k"), **change}, "acme", "k", inline=False) is None


def test_a_link_to_ciphertext_is_taken_with_its_metadata() -> None:
    document = ciphertext_link_document()
    assert parse_ciphertext_link(document) == CiphertextLink(
        document["url"], EXPIRES_AT, document["metadata"]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"url": "/bucket/acme/k"},
        {"expires_at": ""},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"enc-algo": "AES-256-GCM"}},
        {"metadata": {"enc-algo": "Cobblestone-256", "enc-dek-user": 7}},
        {"metadata": {"enc-algo": "Cobblestone-256", "author": "kim"}},
    ],
)
def test_a_link_to_ciphertext_without_its_parts_is_none(change: dict[str, Any]) -> None:
    assert parse_ciphertext_link({**ciphertext_link_document(), **change}) is None


def test_a_request_says_how_long_the_link_is_valid() -> None:
    assert json.loads(link_request(604_800, inline=False)) == {
        "expires_s": 604_800,
        "inline": False,
    }
    assert json.loads(ciphertext_link_request(1)) == {"expires_s": 1, "kind": "ciphertext"}
    for expires_s in (0, 604_801):
        with pytest.raises(MalformedRequestError):
            link_request(expires_s, inline=True)
    for expires_s in (0, 901):
        with pytest.raises(MalformedRequestError):
            ciphertext_link_request(expires_s)


# Links to upload by: requested, and used without an API key.


_TYPE = "text/plain; charset=utf-8"


def upload_document(
    key: str, max_bytes: int = 10, content_type: str | None = _TYPE, base: str | None = None
) -> dict[str, Any]:
    """An upload link to an object of `acme`."""
    typed = {} if content_type is None else {"content_type": content_type}
    document = link_document(key)
    url = document["url"].replace(
        "&token", f"&{urlencode({'max_bytes': max_bytes, **typed})}&token"
    )
    return {**document, "url": url.replace("https://files.example.com/kt", base) if base else url}


async def test_a_link_is_requested_with_its_bounds_and_not_shown() -> None:
    document = upload_document("a b/é")
    async with connected(json_always(201, document)) as (gateway, client):
        link = await client.upload_link(
            "acme", "a b/é", max_bytes=10, content_type=_TYPE, expires_s=60
        )
    assert link == UploadLink(document["url"], EXPIRES_AT)
    assert repr(link) == f"UploadLink(expires_at={EXPIRES_AT!r})"
    (seen,) = gateway.seen
    assert seen.target == "/v1/projects/acme/objects/a%20b/%C3%A9/links"
    assert json.loads(seen.body or b"") == {
        "method": "PUT",
        "expires_s": 60,
        "max_bytes": 10,
        "content_type": _TYPE,
    }


@pytest.mark.parametrize(
    ("named", "more"),
    [
        ("max_bytes", {"max_bytes": -1}),
        ("max_bytes", {"max_bytes": True}),
        ("max_bytes", {"max_bytes": 1.5}),
        ("604800 s", {"expires_s": 604_801}),
        ("content_type", {"content_type": ""}),
        ("content_type", {"content_type": "text/x\r\nX-Evil: 1"}),
        ("content_type", {"content_type": " text/x"}),
        ("content_type", {"content_type": "text/ü"}),
        ("content_type", {"content_type": "x" * 256}),
    ],
)
async def test_what_cannot_be_asked_for_is_not_sent(named: str, more: dict[str, Any]) -> None:
    async with connected(always(500)) as (gateway, client):
        with pytest.raises(MalformedRequestError, match=named):
            await client.upload_link("acme", "k", **{"max_bytes": 10, **more})
    assert gateway.seen == []


_UPLOAD_URL = upload_document("k")["url"]


@pytest.mark.parametrize(
    "url",
    [
        link_document("k")["url"],
        upload_document("other")["url"],
        upload_document("k", 11)["url"],
        upload_document("k", content_type="text/html")["url"],
        upload_document("k", content_type=None)["url"],
        _UPLOAD_URL.replace("max_bytes=10", "max_bytes=010"),
        _UPLOAD_URL + "&max_bytes=10",
        _UPLOAD_URL + "&inline=1",
        _UPLOAD_URL[:-1],
        _UPLOAD_URL + "#x",
    ],
)
async def test_a_link_of_another_form_is_none_and_in_no_error(url: str) -> None:
    """Not even in the variables of a frame, which reporters of errors show."""
    document = {**link_document("k"), "url": url}
    assert parse_upload_link(document, "acme", "k", 10, _TYPE) is None
    async with connected(json_always(201, document)) as (_, client):
        with pytest.raises(UnexpectedResponseError, match="no such link") as raised:
            await client.upload_link("acme", "k", max_bytes=10, content_type=_TYPE)
    frames = list(own_frames(raised.value))
    assert frames
    assert not [text for text in (repr(raised.value), *frames) if TOKEN in text]


@pytest.mark.parametrize("as_text", [False, True])
async def test_a_body_is_put_at_the_link_without_an_api_key(*, as_text: bool) -> None:
    async with serving(UPLOADED) as gateway:
        document = upload_document("a b/é", base=gateway.url)
        link = document["url"] if as_text else UploadLink(document["url"], EXPIRES_AT)
        assert await upload_to(link, b"the body") == UploadReceipt(AN_ID, stored=True)
    (seen,) = gateway.seen
    assert (seen.method, seen.body) == ("PUT", b"the body")
    # The link as it was given: nothing of it is encoded again.
    assert gateway.url + seen.target == document["url"]
    assert (seen.headers["Content-Type"], seen.headers["Prefer"]) == (_TYPE, "wait=50")
    assert seen.headers["Content-Length"] == "8"
    assert "Authorization" not in seen.headers


@pytest.mark.parametrize(
    ("own", "given", "sent"),
    [(None, None, None), (None, "a/b", "a/b"), ("a/b", None, "a/b"), ("a/b", "c/d", "c/d")],
)
async def test_the_content_type_is_the_links_own_by_default(
    own: str | None, given: str | None, sent: str | None
) -> None:
    async with serving(UPLOADED) as gateway:
        url = upload_document("k", content_type=own, base=gateway.url)["url"]
        await upload_to(url, b"x", content_type=given)
    assert gateway.seen[0].headers.get("Content-Type") == sent


async def test_an_upload_that_does_not_wait_or_has_no_outcome() -> None:
    async with serving(json_always(202, {"upload_id": AN_ID})) as gateway:
        url = upload_document("k", base=gateway.url)["url"]
        assert await upload_to(url, b"x", wait=False) == UploadReceipt(AN_ID, stored=False)
        with pytest.raises(UploadPendingError, match=AN_ID):
            await upload_to(url, b"x", wait_s=3)
    assert [seen.headers.get("Prefer") for seen in gateway.seen] == [None, "wait=3"]


async def _hang_up(request: web.Request) -> web.StreamResponse:
    drop(request)
    return await always(500)(request)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (problem(401, "unauthorized", f"not {TOKEN}"), UnauthorizedError),
        (problem(409, "already_exists", TOKEN), AlreadyExistsError),
        (problem(413, "body_too_large"), BodyTooLargeError),
        (problem(415, "unsupported_media_type"), UnsupportedMediaTypeError),
        (problem(429, "too_many_requests"), TooManyRequestsError),
        (always(200, b"<html>"), UnexpectedResponseError),
        (json_always(201, {}), UnexpectedResponseError),
        (_hang_up, ResponseLostError),
    ],
)
async def test_no_error_shows_the_link(
    answer: Answer, expected: type[CodedError | GatewayError]
) -> None:
    async with serving(answer) as gateway:
        link = UploadLink(upload_document("k", base=gateway.url)["url"], EXPIRES_AT)
        with pytest.raises(expected) as raised:
            await upload_to(link, b"x")
    assert raised.value.__cause__ is None
    assert not [
        text
        for text in (str(raised.value), *own_frames(raised.value))
        if TOKEN in text or "max_bytes" in text
    ]


@pytest.mark.parametrize("more", [{"wait_s": 0}, {"content_type": "a\r\nX-Evil: 1"}])
async def test_no_refusal_of_an_argument_shows_the_link(more: dict[str, Any]) -> None:
    async with serving(always(500)) as gateway:
        url = upload_document("k", base=gateway.url)["url"]
        with pytest.raises(MalformedRequestError) as raised:
            await upload_to(url, b"x", **more)
    assert not [text for text in own_frames(raised.value) if TOKEN in text]
    assert gateway.seen == []


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    url = upload_document("k", base="http://127.0.0.1:1")["url"]
    with pytest.raises(GatewayUnavailableError, match="the host and port in the link") as raised:
        await upload_to(url, b"x")
    assert not [text for text in own_frames(raised.value) if TOKEN in text]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "k",
        link_document("k")["url"],
        _UPLOAD_URL.replace("https", "ftp"),
        _UPLOAD_URL + "#x",
        _UPLOAD_URL + "\n",
    ],
)
async def test_what_is_no_upload_link_is_refused_here(url: str) -> None:
    with pytest.raises(MalformedRequestError, match="not an upload link") as raised:
        await upload_to(url, b"x")
    assert not [text for text in own_frames(raised.value) if TOKEN in text]


async def test_a_body_of_the_caller_that_fails_keeps_its_own_error() -> None:
    async def body() -> Any:
        yield b"x"
        raise ZeroDivisionError

    async with serving(UPLOADED) as gateway:
        with pytest.raises(ZeroDivisionError):
            await upload_to(upload_document("k", base=gateway.url)["url"], body())
