"""All feeds learn at once that the broker is away, and that it is back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from keyturn_workers.console.feeds.broker_watch import BrokerWatch
from keyturn_workers.console.feeds.feed_state import FeedState
from tests.unit.keyturn_workers.console.feeds.streams import FakeConnection
from tests.unit.keyturn_workers.console.model.messages import make_model


async def test_feeds_follow_the_broker() -> None:
    model, connection = make_model(), FakeConnection()
    states = [FeedState("events", model), FeedState("audit", model)]
    for state in states:
        state.attached()
    connection.problem = "the broker cannot be reached"
    fake: Any = connection
    watch = BrokerWatch(fake, states, interval_s=0)
    task = asyncio.create_task(watch.run())
    while connection.connects < 2:  # noqa: ASYNC110 - a fake has no event
        await asyncio.sleep(0)
    assert not watch.is_up.is_set()
    assert model.feed("audit").problem == "the broker cannot be reached"
    connection.problem = None
    await watch.is_up.wait()
    assert [state.is_connected for state in states] == [True, True]
    connection.problem = "gone again"
    while watch.is_up.is_set():  # noqa: ASYNC110 - the event is only cleared
        await asyncio.sleep(0)
    assert model.feed("events").problem == "gone again"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
