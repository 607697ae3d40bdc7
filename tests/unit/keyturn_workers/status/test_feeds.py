"""Streams of the broker are followed while they are asked about (SPEC 16.1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import pytest

from keyturn.errors import EventsUnavailableError, StorageUnavailableError
from keyturn_workers.status import feeds
from keyturn_workers.status.feeds import BrokerFeeds, StreamFollower
from tests.unit.keyturn_workers.status.messages import (
    DEPLOYMENT,
    KEY,
    Clock,
    chain,
    stream_record,
    worker,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from keyturn.publisher.event_stream import StreamRecord


class _Streams:
    """Streams in memory, each followed forever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: dict[str, list[StreamRecord]] = {}
        self.problem: str | None = None
        self.starts: list[Any] = []
        self.closed = 0
        self.is_ending, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        monkeypatch.setattr(feeds, "follow", self.follow)
        monkeypatch.setattr(feeds, "last_offset", self.last_offset)
        monkeypatch.setattr(feeds, "_SILENCE_S", 0.01)
        monkeypatch.setattr(feeds, "_FIRST_SILENCE_S", 0.01)

    async def last_offset(self, _connection: object, stream: str) -> int | None:
        records = self.records.get(stream)
        return records[-1].offset if records else None

    async def follow(
        self, _connection: object, start: Any, stream: str, **_: Any
    ) -> AsyncGenerator[StreamRecord, None]:
        if self.problem is not None:
            raise EventsUnavailableError(self.problem)
        self.starts.append(start)
        try:
            for record in self.records.get(stream, ()):
                yield record
            await asyncio.Event().wait()
        finally:
            self.is_ending.set()
            await self.may_end.wait()
            self.closed += 1


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> _Streams:
    return _Streams(monkeypatch)


def _feeds(clock: Clock | None = None) -> BrokerFeeds:
    broker: Any = "amqp://nobody@localhost:1/"
    return BrokerFeeds(broker, DEPLOYMENT, [KEY.verify_key()], clock or Clock(30))


async def test_reports_are_read_from_an_hour_ago_and_forged_ones_are_passed_over(
    streams: _Streams,
) -> None:
    streams.records["keyturn.workers"] = [
        stream_record(0, worker(0, 1)),
        stream_record(1, worker(1, 2), forged=True),
    ]
    clock = Clock(30)
    read = _feeds(clock)
    assert await read.read_workers(None)
    assert [row.host for row in read.workers.rows()] == ["node-1"]
    assert (clock.now - streams.starts[0]).total_seconds() == 3600
    assert await read.read_workers(None)
    assert len(streams.starts) == 1
    await read.close()
    assert streams.closed == 1


async def test_a_question_does_not_wait_longer_than_it_is_told(streams: _Streams) -> None:
    streams.records["keyturn.audit"] = chain(3)
    read = _feeds()
    assert not await read.read_audit(0)
    assert await read.read_audit(None)
    assert [row.counter for row in read.audit.rows()] == [3, 2, 1]
    assert streams.starts == [0]
    await read.close()


async def test_a_stream_that_cannot_be_read_is_the_answer_and_is_tried_again(
    streams: _Streams,
) -> None:
    streams.problem = "the broker is away"
    read = _feeds()
    with pytest.raises(StorageUnavailableError, match="away"):
        await read.read_workers(None)
    streams.problem = None
    assert await read.read_workers(None)
    await read.close()


async def test_a_stream_that_nobody_asks_about_is_followed_no_longer(streams: _Streams) -> None:
    read = _feeds()
    read._of_workers._followed_for_s = 0.05
    await read.read_workers(None)
    task = read._of_workers._task
    assert task is not None
    await asyncio.wait({task})
    assert streams.closed == 1
    assert await read.read_workers(None)
    await read.close()


async def test_a_question_while_the_following_ends_is_answered_by_what_was_read(
    streams: _Streams,
) -> None:
    streams.records["keyturn.workers"] = [stream_record(0, worker(0, 1))]
    streams.may_end.clear()
    rows: list[StreamRecord] = []
    follower = StreamFollower(
        "amqp://nobody@localhost:1/",
        "keyturn.workers",
        _from_first,
        lambda: rows.append,
        followed_for_s=0.05,
    )
    assert await follower.wait(None)
    await streams.is_ending.wait()
    assert await follower.wait(None)
    assert len(rows) == 1
    streams.may_end.set()
    await follower.close()


async def _from_first(_connection: object) -> Literal["first"]:
    return "first"
