"""Upload links of the Python client: requested, used without an API key, shown nowhere."""

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
from keyturn.gateway import UploadLink, UploadReceipt, upload_to
from keyturn.gateway.links import parse_upload_link
from tests.unit.keyturn.gateway.asking import connected, own_frames
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    EXPIRES_AT,
    TOKEN,
    UPLOADED,
    always,
    drop,
    json_always,
    link_document,
    problem,
    serving,
)

if TYPE_CHECKING:
    from aiohttp import web

    from tests.unit.keyturn.gateway.gateway import Answer

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


_URL = upload_document("k")["url"]


@pytest.mark.parametrize(
    "url",
    [
        link_document("k")["url"],
        upload_document("other")["url"],
        upload_document("k", 11)["url"],
        upload_document("k", content_type="text/html")["url"],
        upload_document("k", content_type=None)["url"],
        _URL.replace("max_bytes=10", "max_bytes=010"),
        _URL + "&max_bytes=10",
        _URL + "&inline=1",
        _URL[:-1],
        _URL + "#x",
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


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    url = upload_document("k", base="http://127.0.0.1:1")["url"]
    with pytest.raises(GatewayUnavailableError, match="the host and port in the link") as raised:
        await upload_to(url, b"x")
    assert not [text for text in own_frames(raised.value) if TOKEN in text]


@pytest.mark.parametrize(
    "url",
    ["", "k", link_document("k")["url"], _URL.replace("https", "ftp"), _URL + "#x", _URL + "\n"],
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
