"""Each rule fires when it should, and only then."""

from __future__ import annotations

from keyturn_workers.console.model.rows import Feed
from tests.unit.keyturn_workers.console.model.messages import at, make_model


def test_a_broker_that_cannot_be_read_needs_a_person() -> None:
    model = make_model()
    model.set_feed(Feed("events", problem="the broker cannot be reached", since=at(1)))
    item = model.attention()[0]
    assert (item.rule, item.severity, item.as_of) == ("broker_gone", "act", at(1))
    model.set_feed(Feed("events", is_connected=True))
    assert "broker_gone" not in {item.rule for item in model.attention()}
