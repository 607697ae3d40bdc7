"""The other end of a connection: slow, silent or gone (SPEC 9.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.gateway.client_connection import (
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
    """These messages, and then nothing for ever."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


async def _never() -> None:
    await asyncio.Event().wait()


async def test_sending_is_given_up_where_nothing_is_taken() -> None:
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


async def test_what_fails_while_sending_is_raised_as_it_is() -> None:
    async def fails(message: Message) -> None:
        raise OSError(str(message["type"]))

    with pytest.raises(OSError, match="body"):
        await with_send_timeout(fails, {}, 5)(_BODY)


async def test_an_answer_is_sent_to_its_end_while_somebody_is_there() -> None:
    done = []

    async def sending() -> None:
        await asyncio.sleep(0)
        done.append(1)

    # What is left of the request's body is passed over.
    await run_while_connected(_receiving(_piece(b"left"), _piece(b"", more=False)), sending())
    assert done == [1]


async def test_who_goes_ends_what_is_being_sent() -> None:
    ended = asyncio.Event()

    async def sending() -> None:
        try:
            await _never()
        finally:
            ended.set()

    with pytest.raises(ClientGoneError):
        await run_while_connected(_receiving(_piece(b"x"), _GONE), sending())
    assert ended.is_set()


async def test_who_goes_once_all_is_sent_has_taken_it() -> None:
    async def sending() -> None:
        pass

    await run_while_connected(_receiving(_GONE), sending())


async def test_what_fails_is_raised_and_nothing_is_left_running() -> None:
    async def sending() -> None:
        await asyncio.sleep(0)
        raise ValueError("why")

    before = asyncio.all_tasks()
    with pytest.raises(ValueError, match="why"):
        await run_while_connected(_receiving(), sending())
    assert asyncio.all_tasks() == before


async def test_whoever_is_cancelled_takes_the_sending_along() -> None:
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


async def test_a_body_is_its_pieces_but_the_empty_ones() -> None:
    pieces = [_piece(b"a"), _piece(b""), _piece(b"b"), _piece(b"c", more=False)]
    assert await _taken(_receiving(*pieces)) == [b"a", b"b", b"c"]
    assert await _taken(_receiving(_piece(b"", more=False))) == []
    assert await _taken(_receiving({"type": "http.request"})) == []


async def test_a_body_that_is_cut_never_looks_whole() -> None:
    taking = read_body(_receiving(_piece(b"a"), _GONE), 5)
    assert await anext(taking) == b"a"
    with pytest.raises(ClientGoneError, match="closed"):
        await anext(taking)


async def test_a_body_that_stalls_is_given_up() -> None:
    with pytest.raises(ClientGoneError, match="too slowly"):
        await _taken(_receiving(_piece(b"a")), 0.01)


async def test_a_body_may_take_long_as_long_as_it_comes() -> None:
    """The time is of each piece, not of the whole."""

    async def receive() -> Message:
        await asyncio.sleep(0.02)
        left.pop()
        return _piece(b"a" * 1024, more=bool(left))

    left = [1] * 5
    assert len(await _taken(receive, 0.06)) == 5


async def test_a_body_that_only_holds_its_place_is_given_up() -> None:
    """A byte now and then: each would begin the time anew."""

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return _piece(b"a", more=True)

    async with asyncio.timeout(5):
        with pytest.raises(ClientGoneError):
            await _taken(receive, 0.1)


def test_a_connection_is_reset_by_its_own_call() -> None:
    called = []
    abort({"state": {"keyturn.abort": lambda: called.append(1)}})
    assert called == [1]
    with pytest.raises(RuntimeError):
        abort({"state": {}})
