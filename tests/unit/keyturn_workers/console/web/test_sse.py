"""Streams of events: what a page is sent, how often, and how many there may be (SPEC 16.3)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from keyturn_workers.console.auth import Person, Session
from keyturn_workers.console.auth.person import SESSION_SCOPE
from keyturn_workers.console.model import Changes
from keyturn_workers.console.web import sse
from keyturn_workers.console.web.sse import Live

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from sse_starlette import EventSourceResponse


class Viewers:
    def __init__(self) -> None:
        self.now = 0

    @contextmanager
    def viewing(self) -> Iterator[None]:
        self.now += 1
        try:
            yield
        finally:
            self.now -= 1


def request(query: str, **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    session = Session("session", Person("ada", "view", "ada"), "csrf", 2**40)
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/events",
            "query_string": query.encode(),
            "headers": raw,
            SESSION_SCOPE: session,
        }
    )


async def stream(live: Live, query: str, **headers: str) -> AsyncGenerator[Any, None]:
    response: EventSourceResponse = await live.serve(request(query, **headers))  # type: ignore[assignment]
    return response.body_iterator  # type: ignore[return-value]


def live(changes: Changes, viewers: Viewers | None = None, interval_s: float = 0) -> Live:
    return Live(changes, (viewers or Viewers()).viewing, min_interval_s=interval_s)


async def is_quiet(events: AsyncGenerator[Any, None]) -> bool:
    """Whether a stream has nothing to say; it cannot be used afterwards."""
    step = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.01)
    is_waiting = not step.done()
    step.cancel()
    await asyncio.gather(step, return_exceptions=True)
    return is_waiting


async def test_a_page_hears_of_its_topics_alone() -> None:
    changes = Changes()
    streams = live(changes)
    events = await stream(streams, f"topics=audit&since={streams.state()}")
    changes.publish("dead")
    assert await is_quiet(events)
    events = await stream(streams, f"topics=audit&since={streams.state()}")
    changes.publish("audit")
    event = await anext(events)
    assert (event.event, event.id) == (sse.REFRESH, streams.state())
    await events.aclose()


async def test_what_changed_before_the_stream_began_is_not_missed() -> None:
    changes = Changes()
    streams = live(changes)
    rendered = streams.state()
    changes.publish("audit")
    async with aclosing(await stream(streams, f"topics=audit&since={rendered}")) as events:
        assert (await anext(events)).event == sse.REFRESH
    again = await stream(streams, f"topics=audit&since={rendered}", last_event_id=streams.state())
    assert await is_quiet(again)


@pytest.mark.parametrize("since", ["", "0", "other.1", "x.y", ".", f"{9**99}.{9**99}"])
async def test_a_state_of_another_run_is_an_old_one(since: str) -> None:
    async with aclosing(await stream(live(Changes()), f"topics=now&since={since}")) as events:
        assert (await anext(events)).event == sse.REFRESH


async def test_a_burst_is_one_event_now_and_one_later() -> None:
    changes = Changes()
    streams = live(changes, interval_s=0.05)
    events = await stream(streams, f"topics=audit&since={streams.state()}")
    got = 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(5):
        changes.publish("audit")
    await anext(events)
    step = asyncio.ensure_future(anext(events))
    while not step.done() and got < 1000:
        changes.publish("audit")
        got += 1
        await asyncio.sleep(0.001)
    await step
    assert loop.time() - began >= 0.05
    assert got > 1
    await events.aclose()


async def test_a_stream_that_ends_leaves_nothing() -> None:
    changes, viewers = Changes(), Viewers()
    streams = live(changes, viewers)
    events = await stream(streams, f"topics=now&since={streams.state()}")
    step = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert (streams.streams, viewers.now, changes.subscribers) == (1, 1, 1)
    step.cancel()
    await asyncio.gather(step, return_exceptions=True)
    assert (streams.streams, viewers.now, changes.subscribers) == (0, 0, 0)


async def test_one_person_cannot_open_streams_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "MAX_STREAMS_OF_A_PERSON", 1)
    streams = live(Changes())
    events = await stream(streams, "topics=now")
    await anext(events)
    with pytest.raises(HTTPException) as caught:
        await streams.serve(request("topics=now"))
    assert caught.value.status_code == 503
    assert caught.value.headers == {"Retry-After": "30"}
    await events.aclose()
    await stream(streams, "topics=now")


async def test_unknown_topics_are_refused_and_none_means_all() -> None:
    changes = Changes()
    streams = live(changes)
    with pytest.raises(HTTPException) as caught:
        await streams.serve(request("topics=nothing"))
    assert caught.value.status_code == 400
    events = await stream(streams, f"since={streams.state()}")
    changes.publish("dead")
    assert (await anext(events)).event == sse.REFRESH
    await events.aclose()
