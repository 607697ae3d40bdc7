"""What the gateway refuses, what is no answer of it, and what no error holds (SPEC 9.6, 12)."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from pydantic import SecretStr

from keyturn.errors import CodedError, UnauthorizedError, all_errors
from keyturn.gateway import (
    Client,
    GatewayError,
    GatewayUnavailableError,
    ResponseLostError,
    UnexpectedResponseError,
)
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    NEW_API_KEY,
    Answer,
    always,
    drop,
    json_answer,
    problem,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOW = ["open", "stat", "upload", "rotate", "rotation"]
_STATUSES = {
    400: "malformed_request bad_seal staged_body_missing unknown_intake_key",
    401: "unauthorized",
    403: "not_permitted bad_signature request_expired",
    404: "not_found unknown_project",
    409: "already_exists already_enrolled deleted_key generation_mismatch kek_reused "
    "locked_object archived_object",
    413: "body_too_large",
    416: "range_not_satisfiable",
    429: "too_many_requests",
    502: "corrupt_object no_usable_wrap unknown_algorithm",
    503: "keyring_rolled_back unknown_master_key storage_unavailable foreign_object lease_mismatch",
}
_CODES = {code: status for status, codes in _STATUSES.items() for code in codes.split()}


async def _ask(client: Client, how: str) -> None:
    if how == "open":
        async with client.open("acme", "k"):
            pass
    elif how == "stat":
        await client.stat("acme", "k")
    elif how == "upload":
        await client.upload("acme", "k", b"the body")
    elif how == "rotate":
        await client.rotate("acme", SecretStr(NEW_API_KEY))
    else:
        await client.rotation("acme", AN_ID)


async def _refused(answer: Answer, how: str) -> Exception:
    async with serving(answer) as gateway:
        return await _failed(gateway.url, how)


async def _failed(url: str, how: str) -> Exception:
    async with Client.connect(url, SecretStr(API_KEY), idle_timeout_s=5) as client:
        with pytest.raises((GatewayError, CodedError)) as raised:
            await _ask(client, how)
    error: Exception = raised.value
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


def test_the_statuses_here_are_those_of_every_code() -> None:
    assert sorted(_CODES) == sorted(all_errors())


@pytest.mark.parametrize("code", sorted(_CODES))
@pytest.mark.parametrize("how", ["open", "upload", "rotate", "rotation"])
async def test_every_code_becomes_its_own_error(code: str, how: str) -> None:
    error = await _refused(problem(_CODES[code], code, "for a reason"), how)
    assert type(error) is all_errors()[code]
    assert str(error) == f"{code}: for a reason"


@pytest.mark.parametrize("status", sorted(_STATUSES))
@pytest.mark.parametrize("typed", [False, True])
async def test_head_is_refused_by_the_code_that_its_status_can_mean_alone(
    status: int, *, typed: bool
) -> None:
    headers = {"Content-Type": "application/problem+json"} if typed else {}
    error = await _refused(always(status, b"", headers), "stat")
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
    for how in _HOW:
        error = await _refused(always(status, b"<html>", {"Content-Type": "text/html"}), how)
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
@pytest.mark.parametrize("how", ["open", "upload", "rotate", "rotation"])
async def test_what_is_no_problem_document_is_an_error_of_its_own(
    status: int, body: bytes, content_type: str, how: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    error = await _refused(always(status, body, headers), how)
    assert isinstance(error, UnexpectedResponseError)
    assert error.status == status
    assert str(error) == f"status {status} without a code of Keyturn"


@pytest.mark.parametrize("how", ["open", "upload", "rotation"])
async def test_a_page_without_an_end_is_not_read_to_it(how: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=502)
        response.enable_chunked_encoding()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b"x" * 2**16)
        return response

    error = await _refused(answer, how)
    assert isinstance(error, UnexpectedResponseError)


async def test_a_problem_documents_type_may_have_parameters_and_odd_details() -> None:
    for detail in (None, 7, {"a": "b"}):
        headers = {"Content-Type": "Application/Problem+JSON; charset=utf-8"}
        body = json.dumps({"code": "unauthorized", "detail": detail}).encode()
        error = await _refused(always(401, body, headers), "open")
        assert isinstance(error, UnauthorizedError)
        assert error.detail == ""


@pytest.mark.parametrize("how", _HOW)
async def test_a_gateway_that_is_not_there_is_unavailable(how: str) -> None:
    error = await _failed("http://127.0.0.1:1", how)
    assert isinstance(error, GatewayUnavailableError)
    assert "ECONNREFUSED" in str(error)


async def _hang_up(request: web.Request) -> web.StreamResponse:
    drop(request)
    return web.Response()


@pytest.mark.parametrize("how", _HOW)
async def test_a_gateway_that_hangs_up_leaves_open_what_was_sent(how: str) -> None:
    error = await _refused(_hang_up, how)
    sent = how in ("upload", "rotate")
    assert isinstance(error, ResponseLostError if sent else GatewayUnavailableError)


async def _garbage(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 twohundred OK\r\n\r\n")
    drop(request)
    return web.Response()


@pytest.mark.parametrize("how", _HOW)
async def test_an_answer_that_is_no_http_is_none(how: str) -> None:
    """The HTTP client's own error would hold the request with its headers here."""
    error = await _refused(_garbage, how)
    assert isinstance(error, (ResponseLostError, GatewayUnavailableError))


@pytest.mark.parametrize("how", ["open", "upload", "rotate", "rotation"])
async def test_a_refusal_that_is_cut_is_no_answer(how: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Length": "100", "Content-Type": "application/problem+json"}
        response = web.StreamResponse(status=401, headers=headers)
        await response.prepare(request)
        await response.write(b'{"code":"unauthorized"}')
        drop(request)
        return response

    error = await _refused(answer, how)
    sent = how in ("upload", "rotate")
    assert isinstance(error, ResponseLostError if sent else GatewayUnavailableError)


async def _echo(request: web.Request) -> web.StreamResponse:
    """A gateway that repeats what it must not."""
    told = f"{dict(request.headers)} {NEW_API_KEY}"
    headers = {"X-Debug": request.headers["Authorization"]}
    return json_answer(
        401,
        {"code": "unauthorized", "detail": told},
        headers,
        content_type="application/problem+json",
    )


async def _echo_page(request: web.Request) -> web.StreamResponse:
    told = f"{dict(request.headers)} {NEW_API_KEY}".encode()
    return web.Response(status=500, body=told, headers={"Content-Type": "text/plain"})


def _frames(error: BaseException) -> Iterator[str]:
    """The variables of every frame of ours that an error passed: reporters of errors show them."""
    trace = error.__traceback__
    while trace is not None:
        if "/keyturn/" in trace.tb_frame.f_code.co_filename:
            yield repr(trace.tb_frame.f_locals)
        trace = trace.tb_next


@pytest.mark.parametrize("answer", [_hang_up, _garbage, always(302), problem(401, "unauthorized")])
@pytest.mark.parametrize("how", _HOW)
async def test_no_error_and_no_log_holds_an_api_key(
    answer: Answer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = await _refused(answer, how)
    frames = list(_frames(error))
    assert frames
    shown = [str(error), repr(error), repr(vars(error)), *frames, caplog.text]
    assert not [text for text in shown if API_KEY in text or NEW_API_KEY in text]


@pytest.mark.parametrize("answer", [_echo, _echo_page])
@pytest.mark.parametrize("how", _HOW)
async def test_an_answer_that_repeats_the_key_is_not_repeated(answer: Answer, how: str) -> None:
    error = await _refused(answer, how)
    own = (API_KEY, NEW_API_KEY) if how == "rotate" else (API_KEY,)
    shown = [str(error), repr(error), repr(vars(error))]
    assert not [text for text in shown for key in own if key in text]


async def test_a_client_does_not_print_its_key() -> None:
    async with Client.connect("http://127.0.0.1:1", API_KEY) as client:
        shown = [repr(client), str(client), repr(vars(client)), repr(vars(client._transport))]
    assert not [text for text in shown if API_KEY in text]
