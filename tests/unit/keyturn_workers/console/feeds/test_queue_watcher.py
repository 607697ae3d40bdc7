"""Depths by passive declarations: what does not exist is left out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from aio_pika.exceptions import ChannelNotFoundEntity, ProbableAuthenticationError

from keyturn_workers.console.feeds import queue_watcher
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.feeds.queue_watcher import QueueWatcher
from tests.unit.keyturn_workers.console.model.messages import make_model

if TYPE_CHECKING:
    import pytest


class FakeBroker:
    """Channels that close at a queue that does not exist."""

    def __init__(self, depths: dict[str, int]) -> None:
        self.depths = depths
        self.channels = 0
        self.problem: Exception | None = None

    async def channel(self, _prefetch: int) -> FakeChannel:
        if self.problem is not None:
            raise self.problem
        self.channels += 1
        return FakeChannel(self)


class FakeChannel:
    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.is_closed = False

    async def get_queue(self, name: str, *, ensure: bool) -> Any:
        assert ensure
        if name not in self.broker.depths:
            self.is_closed = True
            raise ChannelNotFoundEntity(name)
        declared = SimpleNamespace(message_count=self.broker.depths[name], consumer_count=1)
        return SimpleNamespace(declaration_result=declared)

    async def close(self) -> None:
        self.is_closed = True


async def watch(broker: Any, model: Any) -> asyncio.Task[None]:
    state = FeedState("queues", model)
    state.broker(None)
    watcher = QueueWatcher(
        broker, model, state, queues=("keyturn.sweep", "missing", "keyturn.upload")
    )
    task = asyncio.create_task(watcher.run(lambda: False))
    for _ in range(20):
        await asyncio.sleep(0)
    watcher.look()
    return task


async def test_the_model_has_the_depth_of_each_queue_that_exists() -> None:
    broker = FakeBroker({"keyturn.upload": 7, "keyturn.sweep": 0})
    model = make_model()
    task = await watch(broker, model)
    depths = {row.queue: row.depth for row in model.queues()}
    assert (depths["keyturn.upload"], depths["keyturn.sweep"]) == (7, 0)
    assert depths["keyturn.control"] is None
    assert broker.channels == 2  # one was closed by the missing queue
    assert model.feed("queues").is_connected
    task.cancel()


async def test_after_a_failure_it_asks_soon_although_no_page_is_viewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue_watcher, "VIEWED_S", 0)
    broker: Any = FakeBroker({"keyturn.upload": 7})
    broker.problem = ProbableAuthenticationError("canary")
    model = make_model()
    state = FeedState("queues", model)
    state.broker(None)
    watcher = QueueWatcher(broker, model, state, queues=("keyturn.upload",))
    task = asyncio.create_task(watcher.run(lambda: False))
    async with asyncio.timeout(5):
        while model.feed("queues").problem is None:  # noqa: ASYNC110 - the model has no event
            await asyncio.sleep(0)
    assert model.feed("queues").problem == (
        "the broker does not report queue depths "
        "(it refuses the user name or password in KEYTURN_AMQP_URL)"
    )
    broker.problem = None
    async with asyncio.timeout(5):
        while not model.feed("queues").is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0)
    task.cancel()


async def test_a_broker_that_is_away_is_a_problem_until_it_is_back() -> None:
    broker = FakeBroker({})
    broker.problem = ConnectionError("refused")
    model = make_model()
    task = await watch(broker, model)
    assert "ConnectionError" in (model.feed("queues").problem or "")
    broker.problem = None
    for _ in range(20):
        await asyncio.sleep(0)
    assert model.feed("queues").is_connected
    task.cancel()
