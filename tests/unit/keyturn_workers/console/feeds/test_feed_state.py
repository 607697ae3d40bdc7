"""A source is connected while its reader reads and the broker is up."""

from __future__ import annotations

from keyturn_workers.console.feeds.feed_state import FeedState
from tests.unit.keyturn_workers.console.model.messages import Clock, at, make_model


def test_both_the_reader_and_the_broker_count() -> None:
    clock = Clock(0)
    model = make_model(clock)
    state = FeedState("events", model)
    state.broker(None)
    assert not state.is_connected
    clock.set(5)
    state.attached()
    assert (state.is_connected, model.feed("events").since) == (True, at(5))
    clock.set(9)
    state.broker("the broker cannot be reached")
    feed = model.feed("events")
    assert (feed.is_connected, feed.problem, feed.since) == (
        False,
        "the broker cannot be reached",
        at(9),
    )
    clock.set(20)
    state.broker("the broker cannot be reached")
    assert model.feed("events").since == at(9)
    state.broker(None)
    assert (state.is_connected, model.feed("events").problem) == (True, None)


def test_the_time_is_that_of_the_newest_signed_message() -> None:
    model = make_model()
    state = FeedState("events", model)
    for moment, refused in ((at(5), 0), (at(3), 0), (None, 2)):
        state.seen(moment, refused)
    state.publish()
    assert (model.feed("events").as_of, model.feed("events").refused) == (at(5), 2)


def test_a_message_from_the_future_does_not_make_a_feed_newer_than_now() -> None:
    model = make_model(Clock(60))
    state = FeedState("events", model)
    state.seen(at(86400), 0)
    state.publish()
    assert model.feed("events").as_of == at(60)
