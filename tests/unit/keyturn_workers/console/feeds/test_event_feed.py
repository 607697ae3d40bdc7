"""Events: forged ones are ignored, and the past is read once, the newest hour first."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from keyturn.errors import EventsUnavailableError
from keyturn_workers.console.feeds import event_feed, stream_reader
from keyturn_workers.console.feeds.broker_watch import BrokerWatch
from keyturn_workers.console.feeds.event_feed import EventFolder, HistoryReader
from keyturn_workers.console.feeds.feed_state import FeedState
from keyturn_workers.console.feeds.stream_reader import Handled, StreamReader
from tests.unit.keyturn_workers.console.feeds.streams import FakeStream, make_verifier, record
from tests.unit.keyturn_workers.console.model.messages import Clock, at, make_model, stored

if TYPE_CHECKING:
    import pytest

    from keyturn.messages import Event

CONNECTION: Any = None


def test_a_forged_event_is_passed_over() -> None:
    model, noticed = make_model(), list[Any]()
    fold = EventFolder(make_verifier(), model, noticed.append)
    assert fold(record(1, stored(1), forged=True)) == Handled(None, 1)
    assert fold(record(2, stored(2))) == Handled(at(2), 1)
    assert model.history.total("stored", at(0)) == 1
    assert [event.at for event in noticed] == [stored(2).at]
    assert model.sizes()["ranges"] == 1


def test_a_stream_that_was_declared_anew_counts_from_the_start_again() -> None:
    model = make_model()
    fold = EventFolder(make_verifier(), model)
    for offset in (10, 11, 0, 10):
        fold(record(offset, stored(1)))
    assert model.history.total("stored", at(0)) == 4


class Scene:
    """A stream with an event each 10 minutes, up to now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
        self.clock = Clock(hours * 3600)
        self.model = make_model(self.clock)
        self.stream = FakeStream(
            *(record(n, stored(n * 600)) for n in range(6 * hours + 1)),
        )
        self.stream.install(monkeypatch, stream_reader)
        self.order: list[int] = []
        self.state = FeedState("history", self.model)
        self.live = StreamReader(
            CONNECTION,
            "keyturn.events",
            lambda last: last or 0,
            lambda _: Handled(None, 0),
            FeedState("events", self.model),
        )
        self.live.target = self.stream.records[-1].offset
        self.live.attached.set()
        self.watch = BrokerWatch(CONNECTION, ())
        self.watch.is_up.set()

    def reader(self, length: timedelta) -> HistoryReader:
        fold = EventFolder(make_verifier(), self.model, self.notice, is_live=False)
        return HistoryReader(
            CONNECTION,
            self.live,
            fold,
            self.state,
            self.watch,
            length=length,
            now=self.clock,
            silence_s=0.01,
        )

    def notice(self, event: Event) -> None:
        del event
        self.order.append(self.model.sizes()["history"])


async def test_each_event_of_the_past_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_feed, "SHARE", 1.0)
    scene = Scene(monkeypatch, hours=3)
    await scene.reader(timedelta(hours=3)).run(scene.clock)
    total = scene.model.history.total("stored", at(0))
    assert total == 18  # the newest one is the live reader's
    assert scene.stream.starts == [at(2 * 3600), at(0)]
    feed = scene.model.feed("history")
    assert (feed.is_caught_up, feed.behind, feed.progress) == (True, at(0), 1.0)


async def test_a_part_that_is_read_again_after_a_loss_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_feed, "SHARE", 1.0)
    monkeypatch.setattr(event_feed, "PAUSES_S", (0.0,))
    scene = Scene(monkeypatch, hours=3)
    follow, losses = scene.stream.follow, [True]

    async def lose(connection: object, start: Any, *streams: str, **options: Any) -> Any:
        async for each in follow(connection, start, *streams, **options):
            yield each
            if start == at(0) and each.offset == 5 and losses:
                losses.clear()
                raise EventsUnavailableError("lost")

    monkeypatch.setattr(stream_reader, "follow", lose)
    await scene.reader(timedelta(hours=3)).run(scene.clock)
    assert not losses
    assert scene.model.history.total("stored", at(0)) == 18


async def test_without_events_lately_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, hours=3)
    scene.clock.set(100 * 3600)
    newest = at(3 * 3600)
    await asyncio.wait_for(scene.reader(timedelta(hours=24)).run(lambda: newest), 5)
    assert scene.stream.starts == []
    assert scene.model.feed("history").is_caught_up


async def test_a_part_without_a_record_ends_when_nothing_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, hours=1)
    scene.stream.records.clear()
    await asyncio.wait_for(scene.reader(timedelta(minutes=30)).run(lambda: None), 5)
    assert scene.model.feed("history").is_caught_up
