"""The other end of a connection: slow, silent or gone (SPEC 9.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.http_server.client_connection import (
    ClientGoneError,
    ClientSlowError,
    abort,
    read_body,
    run_while_connected,
    with_send_timeout,
)

if TYPE_CHECKING:
    from starlette.types import Message, Receive

_BODY: Message = {"type": "http.response.body", "body": b"x", "more_body": True}
_GONE: Message = {"type": "http.disconnect"}


def _piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _receiving(*messages: Message) -> Receive:
    """Receive these messages, and then nothing."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


async def _never() -> None:
    await asyncio.Event().wait()


async def test_sending_to_a_client_that_reads_nothing_times_out() -> None:
    sent: list[Message] = []

    async def takes(message: Message) -> None:
        sent.append(message)

    async def takes_nothing(message: Message) -> None:
        del message
        await _never()

    await with_send_timeout(takes, {}, 5)(_BODY)
    assert sent == [_BODY]
    with pytest.raises(ClientSlowError):
        await with_send_timeout(takes_nothing, {}, 0.01)(_BODY)


async def test_an_error_while_sending_is_raised_unchanged() -> None:
    async def fails(message: Message) -> None:
        raise OSError(str(message["type"]))

    with pytest.raises(OSError, match="body"):
        await with_send_timeout(fails, {}, 5)(_BODY)


async def test_a_response_is_sent_to_its_end_while_the_client_is_connected() -> None:
    done = []

    async def sending() -> None:
        await asyncio.sleep(0)
        done.append(1)

    # What is left of the request's body is passed over.
    await run_while_connected(_receiving(_piece(b"left"), _piece(b"", more=False)), sending())
    assert done == [1]


async def test_a_disconnect_cancels_the_sending() -> None:
    ended = asyncio.Event()

    async def sending() -> None:
        try:
            await _never()
        finally:
            ended.set()

    with pytest.raises(ClientGoneError):
        await run_while_connected(_receiving(_piece(b"x"), _GONE), sending())
    assert ended.is_set()


async def test_a_disconnect_after_the_end_is_no_error() -> None:
    async def sending() -> None:
        pass

    await run_while_connected(_receiving(_GONE), sending())


async def test_an_error_is_raised_and_no_task_is_left() -> None:
    async def sending() -> None:
        await asyncio.sleep(0)
        raise ValueError("why")

    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="why"):
        await run_while_connected(_receiving(), sending())
    assert asyncio.all_tasks() == before


async def test_cancellation_cancels_the_sending() -> None:
    ended, began = asyncio.Event(), asyncio.Event()

    async def sending() -> None:
        began.set()
        try:
            await _never()
        finally:
            ended.set()

    before = asyncio.all_tasks()
    task = asyncio.create_task(run_while_connected(_receiving(), sending()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert asyncio.all_tasks() == before


async def _taken(receive: Receive, idle_timeout_s: float = 5) -> list[bytes]:
    return [piece async for piece in read_body(receive, idle_timeout_s)]


async def test_a_body_is_yielded_without_empty_pieces() -> None:
    pieces = [_piece(b"a"), _piece(b""), _piece(b"b"), _piece(b"c", more=False)]
    assert await _taken(_receiving(*pieces)) == [b"a", b"b", b"c"]
    assert await _taken(_receiving(_piece(b"", more=False))) == []
    assert await _taken(_receiving({"type": "http.request"})) == []


async def test_a_truncated_body_never_looks_complete() -> None:
    taking = read_body(_receiving(_piece(b"a"), _GONE), 5)
    assert await anext(taking) == b"a"
    with pytest.raises(ClientGoneError, match="closed"):
        await anext(taking)


async def test_a_stalled_body_times_out() -> None:
    with pytest.raises(ClientGoneError, match="too slowly"):
        await _taken(_receiving(_piece(b"a")), 0.01)


async def test_a_long_body_may_take_long_if_it_keeps_arriving() -> None:
    """The timeout is for each piece, not for the whole body."""

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        left.pop()
        return _piece(b"a" * 1024, more=bool(left))

    left = [1] * 5
    assert len(await _taken(receive, 0.06)) == 5


async def test_a_body_below_the_minimum_rate_times_out() -> None:
    """A byte now and then would otherwise restart the timeout each time."""

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return _piece(b"a", more=True)

    async with asyncio.timeout(5):
        with pytest.raises(ClientGoneError):
            await _taken(receive, 0.1)


def test_abort_resets_the_requests_own_connection() -> None:
    called = []
    abort({"state": {"keyturn.abort": lambda: called.append(1)}})
    assert called == [1]
    with pytest.raises(RuntimeError):
        abort({"state": {}})
