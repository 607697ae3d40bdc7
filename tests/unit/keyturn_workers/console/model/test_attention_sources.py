"""Rules about the console's sources: each fires when it should, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from keyturn_workers.console.model.attention_facts import Facts, Rule
from keyturn_workers.console.model.attention_sources import (
    audit_gap,
    broker_gone,
    cut,
    feed_behind,
    feed_lost,
    status_unanswered,
    unsigned_events,
    unsigned_messages,
)
from keyturn_workers.console.model.rows import Feed, FeedName
from tests.unit.keyturn_workers.console.model.messages import at

UP = Feed("events", is_connected=True, is_caught_up=True)


def feed(name: FeedName, **fields: Any) -> dict[str, Feed]:
    return {"events": UP, name: Feed(name, **fields)}


@pytest.mark.parametrize(
    ("rule", "fires", "quiet"),
    [
        (
            broker_gone,
            {"feeds": {"events": Feed("events", problem="away")}},
            {"feeds": {"events": UP}},
        ),
        (
            feed_lost,
            {"feeds": feed("workers", problem="may not read keyturn.workers")},
            {"feeds": feed("workers", is_connected=True)},
        ),
        (
            feed_lost,
            {"feeds": feed("queues", problem="away")},
            # The broker is away: that is an item of its own.
            {"feeds": {"events": Feed("events"), "queues": Feed("queues", problem="away")}},
        ),
        (
            feed_behind,
            {"feeds": {"events": Feed("events", is_connected=True, since=at(-500))}},
            {"feeds": {"events": Feed("events", is_connected=True, since=at(-5))}},
        ),
        (
            status_unanswered,
            {"feeds": feed("status", problem="nothing was published in time")},
            {"feeds": feed("status", is_connected=True)},
        ),
        (
            status_unanswered,
            {"feeds": feed("status", is_connected=True, problem="storage_unavailable: away")},
            {"feeds": {"events": Feed("events"), "status": Feed("status", problem="away")}},
        ),
        (
            unsigned_events,
            {"feeds": feed("reports", is_connected=True, refused=2)},
            {"feeds": feed("reports", is_connected=True)},
        ),
        (unsigned_messages, {"unsigned_depth": 3}, {"unsigned_depth": 0}),
        (audit_gap, {"audit_findings": {4: ("MISSING: record 3",)}}, {}),
        (cut, {"notes": ("The oldest sweeps are not shown.",)}, {}),
    ],
)
def test_a_rule_fires_when_it_should_and_only_then(
    rule: Rule, fires: dict[str, Any], quiet: dict[str, Any]
) -> None:
    items = list(rule(Facts(now=at(0), started_at=at(-1000), **fires)))
    assert len(items) == 1
    assert items[0].title
    assert items[0].remedy
    assert items[0].link.startswith("/")
    assert list(rule(Facts(now=at(0), started_at=at(-1000), **quiet))) == []


def test_control_workers_that_answer_without_a_storage_are_another_item() -> None:
    away = feed("status", is_connected=True, problem="storage_unavailable: away")
    (item,) = status_unanswered(Facts(feeds=away))
    assert (item.rule, item.detail) == ("status_unreadable", "storage_unavailable: away")
