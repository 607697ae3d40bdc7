"""A read goes on where its connection broke, of one object alone; errors name no URL (SPEC 9.2)."""

from __future__ import annotations

import pytest
from aiohttp import web

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    CorruptObjectError,
    GatewayError,
    IncompleteBodyError,
    KeyturnError,
    LinkExpiredError,
    NotFoundError,
    StorageUnavailableError,
    UnexpectedResponseError,
)
from keyturn.open import stored_body
from tests.unit.keyturn.gateway.gateway import Answer, always, drop, object_of
from tests.unit.keyturn.open.storage import HEADERS, PATH, link_to, made, open_link, opening

OBJECT = made(100_000)
PAUSES = "_RESUME_PAUSES_S"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_body, PAUSES, (0.0, 0.0, 0.0))


def dropping(every_bytes: int, body: bytes = OBJECT.body) -> Answer:
    """The connection is dropped after so many bytes, each time."""

    async def answer(request: web.Request) -> web.StreamResponse:
        first = int(request.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        last = int(request.headers.get("Range", "").partition("-")[2] or len(body) - 1)
        last = min(last, len(body) - 1)
        headers = {**HEADERS, "Content-Length": str(last - first + 1)}
        if "Range" in request.headers:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        status = 206 if "Range" in request.headers else 200
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        await response.write(body[first : min(last + 1, first + every_bytes)])
        if last - first + 1 > every_bytes:
            drop(request)
        return response

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The answers one after the other; the last one again and again."""
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(request)

    return answer


@pytest.mark.parametrize("start", [0, 20_000])
@pytest.mark.parametrize("every_bytes", [10_000, 60_000])
async def test_a_read_goes_on_where_the_connection_broke(start: int, every_bytes: int) -> None:
    async with opening(dropping(every_bytes), OBJECT.metadata, start) as (opened, storage):
        assert await opened.read() == OBJECT.plaintext[start:]
    assert len(storage.seen) > 1


@pytest.mark.parametrize("start", [0, 20_000])
async def test_a_storage_that_fails_for_a_moment_is_asked_again(start: int) -> None:
    answer = in_turn(always(503), always(500), object_of(OBJECT.body, HEADERS))
    async with opening(answer, OBJECT.metadata, start) as (opened, _):
        assert await opened.read() == OBJECT.plaintext[start:]


async def test_a_connection_that_breaks_without_progress_is_given_up() -> None:
    with pytest.raises(IncompleteBodyError):
        async with opening(dropping(0), OBJECT.metadata):
            pass


@pytest.mark.parametrize("start", [0, 20_000])
async def test_another_body_in_the_objects_place_does_not_continue_it(start: int) -> None:
    other = made(100_000)
    answer = in_turn(dropping(30_000), object_of(other.body, HEADERS))
    received = bytearray()

    async def read() -> None:
        async with opening(answer, OBJECT.metadata, start) as (opened, _):
            async for piece in opened.chunks():
                received.extend(piece)

    with pytest.raises(CorruptObjectError):
        await read()
    assert OBJECT.plaintext[start:].startswith(bytes(received))


@pytest.mark.parametrize(
    ("later", "error"),
    [
        (object_of(b"", HEADERS), NotFoundError),
        (object_of(made(50_000).body, HEADERS), CorruptObjectError),
        (always(404), NotFoundError),
        (always(403), LinkExpiredError),
        (always(503), StorageUnavailableError),
    ],
)
async def test_what_ends_a_read_that_is_under_way(later: Answer, error: type[Exception]) -> None:
    async with opening(in_turn(dropping(30_000), later), OBJECT.metadata) as (opened, _):
        with pytest.raises(error):
            await opened.read()


async def test_another_length_than_before_is_noticed_at_once() -> None:
    later = object_of(made(150_000).body, HEADERS)
    async with opening(in_turn(dropping(30_000), later), OBJECT.metadata) as (opened, _):
        with pytest.raises(CorruptObjectError, match="the object was replaced by another body"):
            await opened.read()


GLACIER = b"<Error><Code>InvalidObjectState</Code></Error>"
EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"


def cut(status: int) -> Answer:
    """The connection is dropped within the body, which therefore cannot be read."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(EXPIRED)
        drop(request)
        return response

    return answer


@pytest.mark.parametrize("start", [0, 20_000])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (always(404), NotFoundError),
        (always(403, EXPIRED), LinkExpiredError),
        (always(403), LinkExpiredError),
        (cut(403), LinkExpiredError),
        (always(403, GLACIER), ArchivedObjectError),
        (always(500, PATH.encode()), StorageUnavailableError),
        (always(400, PATH.encode()), UnexpectedResponseError),
        (
            always(302, headers={"Location": "http://127.0.0.1:1/elsewhere"}),
            UnexpectedResponseError,
        ),
        (always(200, b"<html>", {"Content-Length": "6"}), KeyturnError),
    ],
)
async def test_a_refusal_has_its_class_and_shows_no_url(
    answer: Answer, error: type[Exception], start: int
) -> None:
    with pytest.raises((CodedError, GatewayError)) as raised:
        async with opening(answer, OBJECT.metadata, start):
            pass
    assert isinstance(raised.value, error)
    assert "5ec4e7" not in repr(raised.value)
    assert "5ec4e7" not in str(raised.value)


async def test_no_storage_at_all() -> None:
    async with opening(object_of(OBJECT.body, HEADERS), OBJECT.metadata) as (opened, storage):
        await opened.read()

    async def ask() -> None:
        async with open_link(link_to(storage, OBJECT.metadata)):
            pass

    with pytest.raises(StorageUnavailableError) as raised:
        await ask()
    assert "5ec4e7" not in repr(raised.value)
