"""A stream is read for ever, and it is known when its reader has caught up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.console.feeds import stream_reader
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.feeds.stream_reader import Handled, StreamReader, read_until
from tests.unit.keyturn_workers.console.feeds.streams import FakeStream, record
from tests.unit.keyturn_workers.console.model.messages import at, make_model, stored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.publisher.event_stream import StreamRecord

CONNECTION: Any = None


class Scene:
    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream
        self.model = make_model()
        self.state = FeedState("events", self.model)
        self.state.broker(None)
        self.read: list[int] = []
        self.reader = StreamReader(
            CONNECTION,
            "keyturn.events",
            lambda last: "first" if last is None else last,
            self.handle,
            self.state,
            silence_s=0.01,
        )
        self.tasks: list[asyncio.Task[None]] = []

    def handle(self, each: StreamRecord) -> Handled:
        self.read.append(each.offset)
        return Handled(at(each.offset), 0)

    def start(self) -> None:
        self.tasks = [
            asyncio.create_task(self.reader.run()),
            asyncio.create_task(self.reader.watch(0.001)),
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    stream = FakeStream(*(record(offset, stored(offset)) for offset in range(3)))
    stream.install(monkeypatch, stream_reader)
    monkeypatch.setattr(stream_reader, "PAUSES_S", (0.001,))
    scene = Scene(stream)
    yield scene
    await scene.stop()


async def test_it_has_caught_up_at_the_last_offset_of_the_start(scene: Scene) -> None:
    scene.start()
    await scene.reader.caught_up.wait()
    assert (scene.reader.target, scene.read) == (2, [2])
    feed = scene.model.feed("events")
    assert (feed.is_connected, feed.is_caught_up, feed.as_of) == (True, True, at(2))


async def test_an_empty_stream_is_caught_up_with_at_once(scene: Scene) -> None:
    scene.stream.records.clear()
    scene.start()
    await scene.reader.caught_up.wait()
    assert scene.reader.target is None


async def test_a_stream_that_delivers_nothing_more_is_caught_up_with(scene: Scene) -> None:
    scene.stream.records[2:] = []
    scene.start()
    await scene.reader.attached.wait()
    scene.reader.target = 99  # of a record that was removed for its age
    await scene.reader.caught_up.wait()


async def test_what_cannot_be_read_is_tried_again(scene: Scene) -> None:
    scene.stream.problem = "no worker has declared keyturn.events; start one"
    scene.start()
    while scene.model.feed("events").problem is None:  # noqa: ASYNC110 - the model has no event
        await asyncio.sleep(0.001)
    assert "start one" in (scene.model.feed("events").problem or "")
    scene.stream.problem = None
    await scene.reader.attached.wait()
    assert scene.model.feed("events").problem is None


async def test_a_reader_that_is_refused_later_is_disconnected_until_it_reads_again(
    scene: Scene,
) -> None:
    scene.start()
    await scene.reader.caught_up.wait()
    note_problem = scene.stream.note_problem
    assert note_problem is not None
    note_problem("the broker's user may not read keyturn.events")
    feed = scene.model.feed("events")
    assert (feed.is_connected, feed.problem) == (
        False,
        "the broker's user may not read keyturn.events",
    )
    note_problem(None)
    feed = scene.model.feed("events")
    assert (feed.is_connected, feed.problem) == (True, None)


async def test_reading_ends_before_an_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeStream(*(record(offset, stored(offset)) for offset in range(5)))
    stream.install(monkeypatch, stream_reader)
    read = [each.offset async for each in read_until(CONNECTION, "s", "first", 3)]
    assert read == [0, 1, 2]
    assert [each.offset async for each in read_until(CONNECTION, "s", "first", 0)] == []


async def test_a_message_that_a_bug_cannot_take_is_passed_over(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.stream.add(record(3, stored(3)))

    def handle(each: StreamRecord) -> Handled:
        if each.offset == 3:
            raise KeyError(each.offset)
        return scene.handle(each)

    scene.reader._handle = handle
    scene.start()
    await scene.reader.caught_up.wait()
    scene.stream.add(record(4, stored(4)))
    while scene.read != [4]:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0)
    assert "at offset 3" in caplog.text
