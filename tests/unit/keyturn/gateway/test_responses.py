"""A response has to fit its request, and each code becomes its own error (SPEC 9, 12)."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from keyturn.errors import (
    UnauthorizedError,
    all_errors,
)
from keyturn.gateway import (
    UnexpectedResponseError,
)
from keyturn.gateway.responses import is_web_address
from tests.unit.keyturn.gateway.gateway import (
    API_KEY,
    CALLS,
    EACH_WAY,
    HEADERS,
    NEW_API_KEY,
    Answer,
    always,
    connected,
    json_answer,
    object_of,
    problem,
    read,
    refusal,
    serving,
)


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (200, {}, "the range was ignored"),
        (206, {}, "states no range"),
        (206, {"Content-Range": "bytes 0-9/1000"}, "another range"),
        (206, {"Content-Range": "bytes 100-109/105"}, "another range"),
        (206, {"Content-Range": "bytes 100-108/1000"}, "another range"),
        (206, {"Content-Range": "bytes 100-109/*"}, "states no range"),
        (206, {"Content-Range": "bytes */1000"}, "states no range"),
        (206, {"Content-Range": "chars 100-109/1000"}, "states no range"),
        (206, {"Content-Range": "bytes 100-109/1000", "Content-Encoding": "br"}, "encoded"),
    ],
)
async def test_an_answer_that_is_not_the_range_is_not_taken_for_it(
    status: int, headers: dict[str, str], reason: str
) -> None:
    async with serving(always(status, b"0123456789", headers)) as gateway:
        with pytest.raises(UnexpectedResponseError, match=reason) as raised:
            await read(gateway.url, 100, 10)
    assert raised.value.status == status


async def test_another_length_than_the_range_has_is_not_taken_for_it() -> None:
    headers = {"Content-Range": "bytes 100-109/1000"}
    async with serving(always(206, b"012345678", headers)) as gateway:
        with pytest.raises(UnexpectedResponseError, match="another range"):
            await read(gateway.url, 100, 10)


async def test_a_part_is_not_taken_for_the_whole() -> None:
    headers = {"Content-Range": "bytes 0-9/10"}
    async with serving(always(206, b"0123456789", headers)) as gateway:
        with pytest.raises(UnexpectedResponseError, match="the status is 206"):
            await read(gateway.url)


async def test_an_answer_without_a_length_is_not_taken() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"0123456789")
        return response

    async with serving(answer) as gateway:
        with pytest.raises(UnexpectedResponseError, match="no length"):
            await read(gateway.url)


async def test_a_body_that_a_proxy_compressed_is_not_taken() -> None:
    async with serving(
        object_of(b"0123456789", {**HEADERS, "Content-Encoding": "gzip"})
    ) as gateway:
        with pytest.raises(UnexpectedResponseError, match="encoded"):
            await read(gateway.url)


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://files.example.com/a?b=c", True),
        ("http://127.0.0.1:8080", True),
        ("/a", False),
        ("//127.0.0.1/a", False),
        ("ftp://127.0.0.1/a", False),
        ("https://user@127.0.0.1/a", False),
        ("https://[::1/a", False),
        ("https://127.0.0.1/a b", False),
        ("https://127.0.0.1/é", False),
        ("https://127.0.0.1/a\n", False),
    ],
)
def test_a_web_address_is_whole_and_encoded(url: str, *, is_one: bool) -> None:
    assert is_web_address(url) is is_one


async def test_headers_that_say_nothing_are_none() -> None:
    headers = {"Last-Modified": "yesterday", "Content-Type": "a/b"}
    async with connected(object_of(b"x", headers)) as (_, client):
        info = await client.stat("acme", "k")
    assert (info.etag, info.last_modified, info.metadata) == (None, None, {})


_STATUSES = {
    400: "malformed_request bad_seal staged_body_missing unknown_intake_key unknown_source",
    401: "unauthorized",
    403: "not_permitted bad_signature request_expired customer_key_refused",
    404: "not_found unknown_project project_erased source_missing",
    409: "already_exists already_enrolled deleted_key generation_mismatch kek_reused "
    "locked_object archived_object source_changed",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "too_many_requests",
    502: "corrupt_object no_usable_wrap unknown_algorithm wraps_disagree",
    503: "keyring_rolled_back unknown_master_key storage_unavailable foreign_object hidden_wrap "
    "lease_mismatch kms_unavailable marks_unavailable source_unavailable "
    "customer_key_unavailable",
}
_CODES = {code: status for status, codes in _STATUSES.items() for code in codes.split()}


def test_the_statuses_here_are_those_of_every_code() -> None:
    assert sorted(_CODES) == sorted(all_errors())


@pytest.mark.parametrize("code", sorted(_CODES))
@pytest.mark.parametrize("how", EACH_WAY)
async def test_every_code_becomes_its_own_error(code: str, how: str) -> None:
    error = await refusal(problem(_CODES[code], code, "for a reason"), how)
    assert type(error) is all_errors()[code]
    assert str(error) == f"{code}: for a reason"


@pytest.mark.parametrize("status", sorted(_STATUSES))
@pytest.mark.parametrize("typed", [False, True])
async def test_head_is_refused_by_the_code_that_its_status_can_mean_alone(
    status: int, *, typed: bool
) -> None:
    headers = {"Content-Type": "application/problem+json"} if typed else {}
    error = await refusal(always(status, b"", headers), "stat")
    expected = {
        401: "unauthorized",
        404: "not_found",
        416: "range_not_satisfiable",
        429: "too_many_requests",
    }.get(status)
    if expected is None:
        assert isinstance(error, UnexpectedResponseError)
        assert error.status == status
    else:
        assert type(error) is all_errors()[expected]


@pytest.mark.parametrize("status", [401, 404, 416, 429])
async def test_a_page_is_no_refusal_of_the_gateway(status: int) -> None:
    """A proxy's own 404 says nothing about the object."""
    for how in CALLS:
        error = await refusal(always(status, b"<html>", {"Content-Type": "text/html"}), how)
        assert isinstance(error, UnexpectedResponseError), how


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (502, b"<html>Bad Gateway</html>", "text/html"),
        (502, b"", ""),
        (404, b"", ""),
        (404, b'{"detail":"Not Found"}', "application/json"),
        (404, b'{"code":"not_found"}', "application/json"),
        (405, b'{"type":"about:blank"}', "application/problem+json"),
        (418, b'{"code":"teapot"}', "application/problem+json"),
        (400, b'{"code":7}', "application/problem+json"),
        (400, b'{"code":["not_found"]}', "application/problem+json"),
        (400, b"[]", "application/problem+json"),
        (400, b"not json", "application/problem+json"),
        (400, b'{"code":"not_found","pad":"' + b"x" * 70_000 + b'"}', "application/problem+json"),
        (204, b"", ""),
        (203, b"x", "text/plain"),
    ],
)
@pytest.mark.parametrize("how", EACH_WAY)
async def test_what_is_no_problem_document_is_an_error_of_its_own(
    status: int, body: bytes, content_type: str, how: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    error = await refusal(always(status, body, headers), how)
    assert isinstance(error, UnexpectedResponseError)
    assert error.status == status
    assert str(error) == f"status {status} without a code of Keyturn"


async def test_a_problem_documents_type_may_have_parameters_and_odd_details() -> None:
    for detail in (None, 7, {"a": "b"}):
        headers = {"Content-Type": "Application/Problem+JSON; charset=utf-8"}
        body = json.dumps({"code": "unauthorized", "detail": detail}).encode()
        error = await refusal(always(401, body, headers), "open")
        assert isinstance(error, UnauthorizedError)
        assert error.detail == ""


async def _echo(request: web.Request) -> web.StreamResponse:
    """A gateway that repeats what it must not."""
    echoed = f"{dict(request.headers)} {NEW_API_KEY}"
    headers = {"X-Debug": request.headers["Authorization"]}
    return json_answer(
        401,
        {"code": "unauthorized", "detail": echoed},
        headers,
        content_type="application/problem+json",
    )


async def _echo_page(request: web.Request) -> web.StreamResponse:
    echoed = f"{dict(request.headers)} {NEW_API_KEY}".encode()
    return web.Response(status=500, body=echoed, headers={"Content-Type": "text/plain"})


@pytest.mark.parametrize("answer", [_echo, _echo_page])
@pytest.mark.parametrize("how", CALLS)
async def test_an_answer_that_repeats_the_key_is_not_repeated(answer: Answer, how: str) -> None:
    error = await refusal(answer, how)
    own = (API_KEY, NEW_API_KEY) if how == "rotate" else (API_KEY,)
    shown = [str(error), repr(error), repr(vars(error))]
    assert not [text for text in shown for key in own if key in text]
